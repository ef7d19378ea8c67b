"""States made where the activations lie: to the bit those that the host makes, and no host call.

The path of an accelerator is forced on the CPU. All weights and data are whole numbers, so that
activations are the same however a step is compiled.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, only_on, outputs_of
from sampling_oracle import sampled_efficiency

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.backends import current_backend

N, BATCH = 37, 16
RNG = np.random.default_rng(5)
X = RNG.integers(-3, 4, size=(N, 6, 6, 2)).astype("float32")
Y = np.arange(N) % 2
GRAPHS = only_on("tensorflow", "jax", because="makes states in its recorder")


@keras.saving.register_keras_serializable("on_device")
class Cast(layers.Layer):
    def __init__(self, to, **options):
        super().__init__(**options)
        self.to = to

    def call(self, x):
        return keras.ops.cast(x, self.to)


@keras.saving.register_keras_serializable("on_device")
class BackToFloat(layers.Layer):
    def call(self, x):
        return keras.ops.cast(x, "float32")


def whole(model):
    """Give a model weights that are whole numbers, and compile it."""
    rng = np.random.default_rng(1)
    model.set_weights([rng.integers(-2, 3, w.shape) for w in model.get_weights()])
    return model


def compiled(model, **options):
    optimizer = keras.optimizers.SGD(0.0)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    return whole(model)


def head(x):
    return layers.Dense(2, activation="softmax", name="out")(x)


KINDS = ["float16", "bfloat16", "int32", "uint8", "bool"]
# The axes of the neurons of each layer, and of its positions.
AXES = {
    "conv": (-1,),
    "first": (1,),
    "between": (2,),
    "heads": (-2, -1),
    "inner/tokens": (-1,),
    "twice": (-1,),
    "fc": (-1,),
    **{f"to_{kind}": (-1,) for kind in KINDS},
}


def every_kind():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(20, 3, name="conv")(inputs)
    first = layers.Permute((3, 1, 2), name="first")(x)
    between = layers.Permute((1, 3, 2), name="between")(x)
    heads = layers.Reshape((16, 4, 5), name="heads")(x)
    inside = keras.Input((16, 20))
    inner = keras.Model(inside, layers.Dense(11, name="tokens")(inside), name="inner")
    tokens = inner(layers.Reshape((16, 20))(x))
    twice = layers.Activation("relu", name="twice")
    casts = [BackToFloat()(Cast(kind, name=f"to_{kind}")(tokens)) for kind in KINDS]
    parts = [first, between, heads, twice(tokens), twice(keras.ops.negative(tokens)), *casts]
    flat = layers.Concatenate()([layers.Flatten()(part) for part in parts])
    return compiled(keras.Model(inputs, head(layers.Dense(13, name="fc")(flat))))


def plain(**options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(20, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(13, name="fc")(layers.Flatten()(x))
    return compiled(keras.Model(inputs, head(x)), **options)


NAMES = ["conv", "fc"]


@pytest.fixture
def device(monkeypatch):
    """Tell where states are made from now on."""
    return lambda forced: monkeypatch.setenv("TENSORSTATE_KERAS_ON_DEVICE", str(int(forced)))


def evaluated(model, *callbacks, x=X, y=Y):
    model.evaluate(x, y, batch_size=BATCH, verbose=0, callbacks=list(callbacks))
    return [dict(callback.last.layers) for callback in callbacks]


def in_a_loop(model, callback):
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_test_begin()
    for start in range(0, N, BATCH):
        part = slice(start, start + BATCH)
        logs = model.test_on_batch(X[part], Y[part], return_dict=True)
    callbacks.on_test_end(dict(logs))
    return [dict(callback.last.layers)]


def on_both(device, model, names, run=evaluated, **options):
    """Evaluate on the host and on the device; return what the callbacks found."""
    found = []
    for forced in (False, True):
        device(forced)
        callback = EfficiencyCallback(names, **options)
        found += run(model, callback)
    return found


@pytest.fixture(scope="module")
def model_of_every_kind():
    model = every_kind()
    found = outputs_of(model, [name.rpartition("/")[2] for name in AXES if name != "twice"], X)
    return model, {name: found.get(name.rpartition("/")[2]) for name in AXES}


@pytest.mark.parametrize(
    ("group_size", "positions"),
    [(None, None), (None, 5), (1, None), (4, 5), (8, None), (16, 3)],
)
def test_states_are_those_of_the_host_and_of_numpy(
    model_of_every_kind, device, group_size, positions
):
    model, activations = model_of_every_kind
    axes = {name: where if len(where) > 1 else where[0] for name, where in AXES.items()}
    options = {"group_size": group_size, "positions": positions, "channel_axis": axes}
    host, ours = on_both(device, model, list(AXES), **options)
    assert list(ours) == list(host)
    for name, report in ours.items():
        assert report == host[name], name
        if name == "twice":
            assert report.n_states == 2 * ours["inner/tokens"].n_states
            continue
        values = activations[name].astype("float64")
        moved = np.moveaxis(values, AXES[name], range(-len(AXES[name]), 0))
        grid = moved.shape[1 : -len(AXES[name])]
        values = moved.reshape(N, *grid, -1)
        expected, n_states = sampled_efficiency(values, grid, group_size, positions)
        assert report.n_states == n_states
        assert report.efficiency == pytest.approx(expected, rel=1e-12)


@only_on("jax", because="compiles loops within a step otherwise")
@pytest.mark.parametrize("group_size", [None, 3])
def test_layers_in_compiled_loops_and_test_functions_of_ones_own_are_counted(group_size, device):
    import jax

    class Scans(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.step = layers.Dense(5, name="step")

        def build(self, shape):
            self.step.build((shape[0], shape[2]))

        def call(self, x):
            _, rows = jax.lax.scan(lambda at, row: (at, self.step(row)), 0, x.swapaxes(0, 1))
            return rows.swapaxes(0, 1)

    class Own(keras.Model):
        def make_test_function(self, force=False):
            step = jax.jit(super().test_step)
            self.test_function = lambda state, iterator: step(state, next(iterator))

    found = []
    for kind in (keras.Model, Own):
        for forced in (False, True):
            inputs = keras.Input((6, 6, 2))
            x = Scans(name="scans")(layers.Reshape((6, 12))(inputs))
            x = layers.Dense(7, name="fc")(layers.Flatten()(x))
            device(forced)
            callback = EfficiencyCallback(["scans/step", "fc"], group_size=group_size)
            # JAX itself keeps what it compiled of a step: a model for each.
            found += evaluated(compiled(kind(inputs, head(x))), callback)
    assert [layer.n_states for layer in found[0].values()] == [6 * N, N]
    assert all(list(each.items()) == list(found[0].items()) for each in found[1:])


@only_on("tensorflow", because="XLA runs all that a step has")
@pytest.mark.parametrize("jit_compile", [True, False])
def test_groups_need_no_host_call_and_xla_stays_on(jit_compile, device, monkeypatch):
    import tensorflow as tf

    device(True)
    monkeypatch.setattr(tf, "numpy_function", lambda *args, **kwargs: 1 / 0)
    made = []
    original = tf.function

    def function(*args, **kwargs):
        made.append(kwargs.get("jit_compile"))
        return original(*args, **kwargs)

    model = plain(jit_compile=jit_compile)
    evaluated(model)
    monkeypatch.setattr(tf, "function", function)
    callback = EfficiencyCallback(NAMES, group_size=8)
    evaluated(model, callback)
    assert made[0] is jit_compile
    assert callback.last.layers["conv"].n_states == N * 16


@only_on("tensorflow", because="XLA runs all that a step has")
def test_xla_goes_off_where_a_layer_needs_the_host(device, monkeypatch):
    from tensorstate_callbacks.keras import counting

    model = plain(jit_compile=True)
    host, ours = on_both(device, model, NAMES, group_size=8)
    assert ours == host
    planned = counting.plan_states

    def no_plan_for_conv(shape, *args, **kwargs):
        return None if len(shape) == 4 else planned(shape, *args, **kwargs)

    monkeypatch.setattr(counting, "plan_states", no_plan_for_conv)
    callback = EfficiencyCallback(NAMES, group_size=8)
    assert evaluated(model, callback) == [host]
    assert list(callback.last.layers) == list(host)
    built = callback.built
    assert built.has_taps
    assert evaluated(model, callback) == [host]
    assert callback.built is built


@GRAPHS
@pytest.mark.parametrize("group_size", [None, 8])
def test_only_states_leave_the_step(group_size, device, monkeypatch):
    backend, seen = current_backend(), []
    original = backend.tap

    def tap(tensor, observe):
        seen.append((str(np.dtype(keras.backend.standardize_dtype(tensor.dtype))), tensor.shape))
        return original(tensor, observe)

    monkeypatch.setattr(backend, "tap", tap)
    device(True)
    model, callback = plain(), EfficiencyCallback(NAMES, group_size=group_size)
    evaluated(model, callback)
    if group_size is None:
        assert {(dtype, shape[-1]) for dtype, shape in seen} == {("uint8", 3), ("uint8", 2)}
    elif BACKEND == "jax":
        assert {shape for _, shape in seen} == {(2 * 256 + 16,), (256 + 32,)}
    else:
        assert seen == []


@only_on("torch", because="makes states in the step")
def test_a_recorder_of_tensors_takes_them_where_they_lie(device, monkeypatch):
    from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

    taken, original = [], TensorRecorder.observe_tensor

    def observe(recorder, name, tensor, *args):
        taken.append(name)
        if len(taken) == 6:
            raise ProbeError("layer 'fc' could not be counted: lost")
        original(recorder, name, tensor, *args)

    monkeypatch.setattr(TensorRecorder, "observe_tensor", observe)
    model, callback = plain(), EfficiencyCallback(NAMES)
    device(False)
    evaluated(model, callback)
    assert taken == []
    device(True)
    with pytest.raises(ProbeError, match="layer 'fc' could not be counted: lost"):
        evaluated(model, callback)
    assert taken == NAMES * 3


def test_a_budget_thins_the_same_layers(device):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(40, 1, name="wide")(inputs)
    x = layers.Dense(13, name="fc")(layers.Flatten()(x))
    model = compiled(keras.Model(inputs, head(x)))
    with pytest.warns(TensorStateWarning, match=r"fewer positions .* wide \("):
        host, ours = on_both(device, model, ["wide", "fc"], max_memory=8_000)
    assert ours == host
    assert ours["wide"].n_states < N * 36
    with pytest.warns(TensorStateWarning, match="wide could not be counted at all"):
        host, ours = on_both(device, model, ["wide", "fc"], max_memory=4_000, group_size=8)
    assert list(ours) == ["fc"]
    assert ours == host


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_steps_that_run_in_other_ways_are_counted(options, device):
    if BACKEND == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras runs one step per execution only")
    model = plain(**options)
    for group_size in (None, 4):
        host, ours = on_both(device, model, NAMES, group_size=group_size)
        assert ours == host
        assert ours["fc"].n_states == N


def test_two_callbacks_and_repeated_fits_begin_at_zero(device):
    found = []
    for forced in (False, True):
        device(forced)
        model = plain()
        paper = EfficiencyCallback(NAMES)
        groups = EfficiencyCallback(NAMES, group_size=4, prefix="g4_", every_n_epochs=2)
        options = {"validation_data": (X, Y), "validation_batch_size": BATCH, "verbose": 0}
        for _ in range(2):
            model.fit(X, Y, epochs=2, shuffle=False, callbacks=[paper, groups], **options)
        found.append([dict(r.layers) for each in (paper, groups) for r in each.history])
        assert len(found[-1]) == 6
    assert found[0] == found[1]
    assert found[1][0] == found[1][1] == found[1][3]
    assert found[1][4] == found[1][5]


def test_a_loop_over_batches_is_counted(device):
    model = plain()
    for group_size in (None, 8):
        host, ours = on_both(device, model, NAMES, group_size=group_size, run=in_a_loop)
        assert ours == host == evaluated(model, EfficiencyCallback(NAMES, group_size=group_size))[0]


@only_on("tensorflow", because="XLA runs all that a step has")
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}])
def test_a_batch_that_cannot_be_had_again_is_not_run_twice(options, device, monkeypatch):
    from tensorstate_callbacks.keras import counting

    planned = counting.plan_states

    def no_plan_for_fc(shape, *args, **kwargs):
        return None if len(shape) == 2 else planned(shape, *args, **kwargs)

    monkeypatch.setattr(counting, "plan_states", no_plan_for_fc)
    model = plain(**options)
    for run in (evaluated, in_a_loop):
        host, ours = on_both(device, model, NAMES, group_size=8, run=run)
        assert list(ours.items()) == list(host.items())
        assert ours["conv"].n_states == 16 * N


class Stops(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


def weights_kept(model):
    """Keras on JAX loses the weights of a step that is broken off."""
    kept = [
        (v, keras.ops.convert_to_numpy(v)) for v in [*model.variables, *model.metrics_variables]
    ]

    def give_back():
        for variable, value in kept:
            if getattr(variable, "_value", value) is None:
                variable._value = keras.ops.convert_to_tensor(value, variable.dtype)

    return give_back


@pytest.mark.parametrize("group_size", [None, 8])
def test_nothing_of_a_pass_that_was_broken_off_is_counted(group_size, device):
    device(True)
    model, callback = plain(), EfficiencyCallback(NAMES, group_size=group_size)
    (expected,) = evaluated(model, callback)
    give_back = weights_kept(model)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            evaluated(model, callback, Stops())
        give_back()
        assert evaluated(model, callback) == [expected]
    assert evaluated(model, callback) == [expected]
    assert len(callback.history) == 4


@pytest.mark.parametrize("group_size", [None, 8])
def test_a_model_keeps_no_trace_and_its_step_is_traced_once(group_size, device, tmp_path):
    calls = []

    class Counts(layers.Layer):
        def call(self, x):
            calls.append(x.shape)
            return x

    def fit(epochs, *callbacks):
        calls.clear()
        data = {"validation_data": (X, Y), "validation_batch_size": BATCH, "batch_size": N}
        model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), verbose=0, **data)
        return len(calls)

    device(True)
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(Counts()(layers.Conv2D(20, 3, name="conv")(inputs)))
    model = compiled(keras.Model(inputs, head(layers.Dense(13, name="fc")(x))))
    fit(1)
    paths, entries = [each.path for each in model.variables], set(vars(model))
    callback = EfficiencyCallback(NAMES, group_size=group_size)
    once = fit(1, callback)
    if BACKEND != "torch":
        assert fit(3, callback) == once
    assert [each.path for each in model.variables] == paths
    assert set(vars(model)) == entries
    model.save(tmp_path / "model.keras")
    model.export(tmp_path / "exported", verbose=False) if BACKEND == "tensorflow" else None


def test_another_threshold_or_choice_is_taken_at_once(device):
    device(True)
    model, ours = plain(), EfficiencyCallback(NAMES, group_size=4)
    for name, value in [("threshold", 5), ("group_size", 8), ("positions", 3), ("threshold", -1)]:
        evaluated(model, ours)
        setattr(ours, name, value)
        device(False)
        options = {key: getattr(ours, key) for key in ("threshold", "group_size", "positions")}
        fresh = EfficiencyCallback(NAMES, **options)
        expected = evaluated(model, fresh)
        device(True)
        assert evaluated(model, ours) == expected


def batches(sizes, n=10):
    """Batches of tokens, of another length each."""
    rng = np.random.default_rng(2)
    for size in sizes:
        yield rng.integers(-3, 4, size=(n, size, 4)).astype("float32"), np.arange(n) % 2


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("group_size", [None, 4])
def test_batches_of_other_lengths_are_counted(group_size, positions, device):
    inputs = keras.Input((None, 4))
    x = layers.Dense(11, name="tokens")(inputs)
    model = compiled(keras.Model(inputs, head(layers.GlobalMaxPooling1D()(x))))
    found = []
    for forced in (False, True):
        device(forced)
        callback = EfficiencyCallback("tokens", group_size=group_size, positions=positions)
        model.evaluate(batches((5, 7, 5, 9)), steps=4, verbose=0, callbacks=[callback])
        found.append(dict(callback.last.layers))
    assert found[1] == found[0]
    assert found[1]["tokens"].n_states == 10 * (12 if positions else 26)


@keras.saving.register_keras_serializable("on_device")
class Turns(layers.Layer):
    """Moves the tokens of an input to the end, so that nothing tells where its neurons are."""

    def call(self, x):
        return keras.ops.transpose(x, (0, 2, 1))

    def compute_output_shape(self, shape):
        return (shape[0], shape[2], shape[1])


@pytest.mark.parametrize("group_size", [None, 4])
def test_a_guessed_axis_that_changes_its_size_is_an_error(group_size, device):
    inputs = keras.Input((None, 4))
    x = Turns(name="turns")(inputs)
    model = compiled(
        keras.Model(inputs, head(layers.GlobalMaxPooling1D(data_format="channels_first")(x)))
    )
    for forced in (False, True):
        device(forced)
        callback = EfficiencyCallback("turns", group_size=group_size)
        with (
            pytest.warns(TensorStateWarning, match="nothing tells which axis"),
            pytest.raises(ProbeError, match="had 5 entries in an earlier batch"),
        ):
            model.evaluate(batches((5, 7)), steps=2, verbose=0, callbacks=[callback])


def test_devices_are_not_asked_for_before_an_evaluation(monkeypatch):
    # Frameworks take no other configuration of devices from then on.
    monkeypatch.setattr(current_backend(), "makes_states", lambda: 1 / 0)
    callback = EfficiencyCallback(NAMES, group_size=8)
    with pytest.raises(ZeroDivisionError):
        evaluated(plain(), callback)


def test_the_environment_has_the_last_word(monkeypatch):
    from tensorstate_callbacks.keras.backends import wants_device

    monkeypatch.delenv("TENSORSTATE_KERAS_ON_DEVICE", raising=False)
    assert [wants_device(found) for found in (False, True)] == [False, True]
    for asked, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("TENSORSTATE_KERAS_ON_DEVICE", asked)
        assert [wants_device(found) for found in (False, True)] == [wanted] * 2
    monkeypatch.setenv("TENSORSTATE_KERAS_ON_DEVICE", "yes")
    with pytest.raises(ValueError, match=r"takes 1 \(always\), 0 \(never\) or nothing; got 'yes'"):
        wants_device(True)

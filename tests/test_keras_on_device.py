"""States made where the activations lie: to the bit those that the host makes, and no host call.

The path of an accelerator is forced on the CPU.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, only_on, outputs_of
from keras_on_device import (
    BATCH,
    NAMES,
    N,
    X,
    Y,
    compiled,
    evaluated,
    head,
    in_a_loop,
    on_both,
    plain,
)
from sampling_oracle import sampled_efficiency

from tensorstate_callbacks import ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback


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


KINDS = ["float16", "bfloat16", "int32", "uint8", "bool"]
# The axes of each layer's neurons.
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
    model_of_every_kind, force_device, group_size, positions
):
    model, activations = model_of_every_kind
    axes = {name: where if len(where) > 1 else where[0] for name, where in AXES.items()}
    options = {"group_size": group_size, "positions": positions, "channel_axis": axes}
    host, ours = on_both(force_device, model, list(AXES), **options)
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
def test_layers_in_compiled_loops_and_test_functions_of_ones_own_are_counted(
    group_size, force_device
):
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
            force_device(forced)
            callback = EfficiencyCallback(["scans/step", "fc"], group_size=group_size)
            # JAX itself keeps what it compiled of a step: a model for each.
            found += evaluated(compiled(kind(inputs, head(x))), callback)
    assert [layer.n_states for layer in found[0].values()] == [6 * N, N]
    assert all(list(each.items()) == list(found[0].items()) for each in found[1:])


def test_a_budget_thins_the_same_layers(force_device):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(40, 1, name="wide")(inputs)
    x = layers.Dense(13, name="fc")(layers.Flatten()(x))
    model = compiled(keras.Model(inputs, head(x)))
    with pytest.warns(TensorStateWarning, match=r"fewer positions .* wide \("):
        host, ours = on_both(force_device, model, ["wide", "fc"], max_memory=8_000)
    assert ours == host
    assert ours["wide"].n_states < N * 36
    with pytest.warns(TensorStateWarning, match="wide could not be counted at all"):
        host, ours = on_both(force_device, model, ["wide", "fc"], max_memory=4_000, group_size=8)
    assert list(ours) == ["fc"]
    assert ours == host


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}])
def test_steps_that_run_in_other_ways_are_counted(options, force_device):
    if BACKEND == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras runs one step per execution only")
    model = plain(**options)
    for group_size in (None, 4):
        host, ours = on_both(force_device, model, NAMES, group_size=group_size)
        assert ours == host
        assert ours["fc"].n_states == N


def test_two_callbacks_and_repeated_fits_begin_at_zero(force_device):
    found = []
    for forced in (False, True):
        force_device(forced)
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


def test_a_loop_over_batches_is_counted(force_device):
    model = plain()
    for group_size in (None, 8):
        host, ours = on_both(force_device, model, NAMES, group_size=group_size, run=in_a_loop)
        assert ours == host == evaluated(model, EfficiencyCallback(NAMES, group_size=group_size))[0]


def test_another_threshold_or_choice_is_taken_at_once(force_device):
    force_device(True)
    model, ours = plain(), EfficiencyCallback(NAMES, group_size=4)
    for name, value in [("threshold", 5), ("group_size", 8), ("positions", 3), ("threshold", -1)]:
        evaluated(model, ours)
        setattr(ours, name, value)
        force_device(False)
        options = {key: getattr(ours, key) for key in ("threshold", "group_size", "positions")}
        fresh = EfficiencyCallback(NAMES, **options)
        expected = evaluated(model, fresh)
        force_device(True)
        assert evaluated(model, ours) == expected


def batches(sizes, n=10):
    """Batches of tokens, of another length each."""
    rng = np.random.default_rng(2)
    for size in sizes:
        yield rng.integers(-3, 4, size=(n, size, 4)).astype("float32"), np.arange(n) % 2


@pytest.mark.parametrize("positions", [None, 3])
@pytest.mark.parametrize("group_size", [None, 4])
def test_batches_of_other_lengths_are_counted(group_size, positions, force_device):
    inputs = keras.Input((None, 4))
    x = layers.Dense(11, name="tokens")(inputs)
    model = compiled(keras.Model(inputs, head(layers.GlobalMaxPooling1D()(x))))
    found = []
    for forced in (False, True):
        force_device(forced)
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
def test_a_guessed_axis_that_changes_its_size_is_an_error(group_size, force_device):
    inputs = keras.Input((None, 4))
    x = Turns(name="turns")(inputs)
    model = compiled(
        keras.Model(inputs, head(layers.GlobalMaxPooling1D(data_format="channels_first")(x)))
    )
    for forced in (False, True):
        force_device(forced)
        callback = EfficiencyCallback("turns", group_size=group_size)
        with (
            pytest.warns(TensorStateWarning, match="nothing tells which axis"),
            pytest.raises(ProbeError, match="had 5 entries in an earlier batch"),
        ):
            model.evaluate(batches((5, 7)), steps=2, verbose=0, callbacks=[callback])

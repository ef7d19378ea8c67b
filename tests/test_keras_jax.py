"""JAX under Keras: what only its traces, its purged variables and its devices bring about."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, X_VAL, Y_VAL, X, Y, compiled, count_states, sequential

from tensorstate_callbacks import StateCounter, entropy
from tensorstate_callbacks.keras import EfficiencyCallback

if BACKEND != "jax":
    pytest.skip("Keras doesn't run on JAX", allow_module_level=True)

import jax


class Scans(layers.Layer):
    """Applies a layer to one row of an image after the other, in a compiled loop."""

    def __init__(self, **options):
        super().__init__(**options)
        self.step = layers.Dense(5, activation="tanh", name="step")

    def build(self, shape):
        self.step.build((shape[0], shape[2]))

    def call(self, x):
        def step(carry, row):
            return carry + 1, self.step(row)

        _, rows = jax.lax.scan(step, 0, jax.numpy.moveaxis(x, 1, 0))
        return jax.numpy.moveaxis(rows, 0, 1)


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}, {"steps_per_execution": 2}])
def test_a_layer_in_a_compiled_loop_is_counted_in_forward_order(options):
    parts = [layers.Dense(6, name="first"), Scans(name="scans"), layers.Flatten()]
    model = keras.Sequential([keras.Input((10, 10)), *parts, layers.Dense(2, name="last")])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], **options)
    callback = EfficiencyCallback("Dense")
    activations = parts[1](parts[0](X[:64, :, :, 0]))
    counts = count_states(np.asarray(activations))
    for _ in range(2):
        model.evaluate(X[:64, :, :, 0], Y[:64], batch_size=24, callbacks=[callback], verbose=0)
        seen = callback.last.layers
        assert list(seen) == ["first", "scans/step", "last"]
        assert [layer.n_states for layer in seen.values()] == [640, 640, 64]
        assert seen["scans/step"].n_distinct == len(counts)
        assert seen["scans/step"].entropy == pytest.approx(entropy(counts), rel=1e-3)


def test_rematerialized_layers_are_counted():
    with keras.RematScope(mode="full"):
        model = compiled(sequential())
    plain = compiled(sequential())
    plain.set_weights(model.get_weights())
    reports = []
    for each in (model, plain):
        callback = EfficiencyCallback()
        each.evaluate(X, Y, callbacks=[callback], verbose=0)
        reports.append(dict(callback.last.layers))
    assert reports[0] == reports[1]
    assert reports[0]["conv_1"].n_states == 300 * 64
    model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, callbacks=[callback])
    assert callback.last.layers["fc"].n_states == 101


def test_a_test_step_may_take_derivatives():
    class Model(keras.Sequential):
        def test_step(self, state, data):
            def loss(x):
                return jax.numpy.sum(self.stateless_call(state[0], state[1], x)[0])

            jax.grad(loss)(data[0])
            return super().test_step(state, data)

    model = compiled(Model(sequential().layers))
    callback = EfficiencyCallback("fc")
    model.evaluate(X, Y, callbacks=[callback], verbose=0)
    # The step calls the model twice.
    assert callback.last.layers["fc"].n_states == 2 * 300


def test_a_test_function_of_the_models_own_making_is_counted():
    class Model(keras.Sequential):
        def make_test_function(self, force=False):
            step = jax.jit(super().test_step)
            self.test_function = lambda state, iterator: step(state, next(iterator))

    model, plain = compiled(Model(sequential().layers)), EfficiencyCallback("conv_1")
    model.evaluate(X, Y, callbacks=[plain], verbose=0)
    counts = count_states(np.asarray(model.layers[0](X)))
    assert plain.last.layers["conv_1"].n_states == counts.sum()
    assert plain.last.layers["conv_1"].n_distinct == pytest.approx(len(counts), abs=2)


@pytest.mark.parametrize("batch", [1, 2])
def test_weights_survive_when_counting_is_broken_off(batch, monkeypatch):
    model, seen = compiled(sequential()), []

    def breaks_off(counter, *args, **kwargs):
        seen.append(counter)
        if len(seen) == batch:
            raise KeyboardInterrupt

    class Keeps(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            self.weights = self.model.get_weights()

    keeps = Keeps()
    for name in ("update", "update_packed"):
        monkeypatch.setattr(StateCounter, name, breaks_off)
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            *(X, Y),
            validation_data=(X_VAL, Y_VAL),
            verbose=0,
            callbacks=[EfficiencyCallback("conv_1"), keeps],
        )
    assert len(seen) == batch
    for before, after in zip(keeps.weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_activations_on_several_devices_are_counted_once_and_weights_stay_where_they_are():
    code = """
import numpy as np
import keras, jax
keras.utils.set_random_seed(1)
if len(jax.devices()) > 1:
    keras.distribution.set_distribution(keras.distribution.DataParallel())
from keras_models import X, Y, compiled, functional
from tensorstate_callbacks.keras import EfficiencyCallback
model, ours = compiled(functional()), EfficiencyCallback(["conv_1", "fc"])
model.set_weights([np.round(w * 8) for w in model.get_weights()])
before = [v.value.sharding for v in model.variables]
model.evaluate(np.round(X), Y, batch_size=100, verbose=0, callbacks=[ours])
assert [v.value.sharding for v in model.variables] == before
print(len(jax.devices()), ours.last.layers["conv_1"], ours.last.layers["fc"])
"""
    printed = []
    for devices in (1, 2):
        flags = f"--xla_force_host_platform_device_count={devices}"
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.strip())
    assert [line[0] for line in printed] == ["1", "2"]
    assert printed[0][1:] == printed[1][1:]
    assert "n_states=19200" in printed[0]

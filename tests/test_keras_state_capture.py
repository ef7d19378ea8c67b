"""The Keras layer that captures states by hand: when it records, and what it leaves as it is."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import X_VAL, Y_VAL, X, Y, compiled, count_states

from tensorstate_callbacks import ProbeError, StateCounter, entropy
from tensorstate_callbacks.keras import EfficiencyCallback, StateCapture


def watched(capture, **options):
    model = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            layers.Conv2D(6, 3, activation="elu", name="conv_1"),
            capture,
            layers.Flatten(),
            layers.Dense(2, activation="softmax", name="out"),
        ]
    )
    return compiled(model, **options)


def expected(model, x, batch_size=32):
    """Counts of the states of `conv_1`, from a model that stops there."""
    inner = keras.Model(model.inputs[0], model.get_layer("conv_1").output)
    return count_states(inner.predict(x, batch_size=batch_size, verbose=0).astype(np.float32))


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
@pytest.mark.parametrize("run", ["evaluate", "predict"])
def test_evaluation_and_prediction_are_recorded_exactly(run, options):
    capture = StateCapture("states")
    model = watched(capture, **options)
    data = (X, Y) if run == "evaluate" else (X,)
    getattr(model, run)(*data, batch_size=32, verbose=0)
    counts = expected(model, X)
    assert capture.state_count == 300 * 64
    assert np.sort(capture.counts()).tolist() == counts.tolist()
    assert capture.entropy() == entropy(counts)
    assert capture.efficiency() == entropy(counts) / 6


def test_a_plain_call_is_recorded_and_gives_its_input_on():
    capture = StateCapture()
    x = keras.ops.convert_to_tensor(np.array([[1.0, -1, 0], [2, 0, 0], [-1, 0, 5]], np.float32))
    np.testing.assert_array_equal(np.asarray(capture(x)), np.asarray(x))
    assert capture.states.tolist() == [[True, False, False], [False, False, True]]
    assert capture.counts().tolist() == [2, 1]
    capture(x, training=True)
    assert capture.state_count == 3


@pytest.mark.parametrize(("record_training", "times"), [(False, 2), (True, 4)])
def test_training_is_recorded_only_if_asked_for(record_training, times):
    capture = StateCapture(record_training=record_training)
    model = watched(capture)
    model.fit(X_VAL, Y_VAL, validation_data=(X_VAL, Y_VAL), epochs=2, batch_size=50, verbose=0)
    assert capture.state_count == times * 101 * 64


def test_weights_and_results_are_those_without_it():
    def run(*captures):
        keras.utils.set_random_seed(5)
        model = watched(*captures)
        history = model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0).history
        return history, model.get_weights()

    plain, weights = run(layers.Identity())
    history, watched_weights = run(StateCapture(record_training=True))
    assert {key: values[0] for key, values in history.items()} == pytest.approx(
        {key: values[0] for key, values in plain.items()}, rel=1e-5
    )
    for a, b in zip(weights, watched_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Block(layers.Layer):
    """Works its shape out by being called, on whatever Keras takes for that."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(4, activation="tanh")
        self.capture = StateCapture("inside")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.capture(self.dense(x))
        # On PyTorch's "meta" device this fails, and Keras goes on with ones.
        return y + (0 if keras.backend.backend() != "torch" else float(keras.ops.sum(y)) * 0)


def test_shapes_being_worked_out_are_not_recorded():
    block = Block()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, block(inputs))
    assert model.output_shape == (None, 4)
    assert block.capture.state_count == 0
    x = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
    model.predict(x, verbose=0)
    counts = count_states(keras.ops.convert_to_numpy(block.dense(x)))
    assert np.sort(block.capture.counts()).tolist() == counts.tolist()


def test_capture_can_be_paused_and_reset():
    capture = StateCapture()
    model = watched(capture)
    model.predict(X_VAL, verbose=0)
    capture.capture_on = False
    model.predict(X, verbose=0)
    assert capture.state_count == 101 * 64
    capture.capture_on = True
    capture.reset_states()
    assert capture.state_count == 0
    model.predict(X, verbose=0)
    assert capture.state_count == 300 * 64


def test_settings_are_used_and_raw_states_stand_in_the_order_of_the_samples(tmp_path):
    capture = StateCapture("states", threshold=0.25, storage_path=tmp_path)
    x = np.random.default_rng(2).normal(size=(50, 11)).astype(np.float32)
    model = keras.Sequential([keras.Input((11,)), capture])
    model.predict(x, batch_size=7, verbose=0)
    rows = np.packbits(x > 0.25, axis=1, bitorder="little")
    np.testing.assert_array_equal(capture.raw_states, rows)
    assert capture.states_per_instance() == 1
    assert capture.max_entropy() == 11
    assert sorted(capture.state_ids()) == sorted({row.tobytes() for row in rows})
    assert capture.counts([3, 3]).max() == 2


def test_channels_may_lie_anywhere():
    x = np.random.default_rng(3).normal(size=(8, 5, 4, 4)).astype(np.float32)
    capture = StateCapture(channel_axis=1)
    keras.Sequential([keras.Input((5, 4, 4)), capture]).predict(x, verbose=0)
    counts = count_states(np.moveaxis(x, 1, -1))
    assert np.sort(capture.counts()).tolist() == counts.tolist()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_types_are_given_on_as_they_are_and_counted(dtype):
    if (keras.backend.backend(), dtype) == ("jax", "float64"):
        pytest.skip("JAX has no float64 unless jax_enable_x64 is set")
    x = keras.ops.cast(np.random.default_rng(4).normal(size=(60, 5)) * 2, dtype)
    capture = StateCapture()
    out = capture(x)
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    counts = count_states(np.asarray(keras.ops.cast(x, "float32")))
    assert np.sort(capture.counts()).tolist() == counts.tolist()
    inputs = keras.Input((5,), dtype=dtype)
    assert capture(inputs).dtype == dtype


def test_masks_pass_through():
    embedded = layers.Embedding(7, 4, mask_zero=True)
    plain, captured = (
        keras.Sequential([embedded, *between, layers.GlobalAveragePooling1D()])
        for between in ([], [StateCapture()])
    )
    x = np.array([[1, 2, 0, 0], [3, 0, 0, 0]])
    np.testing.assert_array_equal(plain.predict(x, verbose=0), captured.predict(x, verbose=0))
    assert not np.allclose(
        plain.predict(x, verbose=0), keras.ops.convert_to_numpy(embedded(x)).mean(1)
    ), "the mask has to matter"


def test_of_several_tensors_the_first_is_captured():
    first, second = keras.ops.ones((3, 2)), keras.ops.zeros((3, 5))
    capture = StateCapture()
    given = capture({"a": first, "b": [second]})
    assert given["a"].shape == (3, 2)
    assert given["b"][0].shape == (3, 5)
    assert capture.states.tolist() == [[True, True]]


def test_it_is_saved_with_the_model_without_its_states(tmp_path):
    capture = StateCapture("states", threshold=0.5, keep_raw=True, channel_axis=3)
    model = watched(capture)
    model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    for copied in (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
        copy.deepcopy(model),
    ):
        copied.set_weights(model.get_weights())
        other = copied.get_layer("states")
        assert type(other) is StateCapture
        assert other.get_config() == capture.get_config()
        assert other.state_count == 0
        copied.predict(X_VAL, verbose=0)
        assert (other.state_count, capture.state_count) == (101 * 64, 300 * 64)
        np.testing.assert_array_equal(other.counts(), other.counts(range(101)))


def test_a_copy_does_not_write_into_the_folder_of_the_first(tmp_path):
    capture = StateCapture("states", storage_path=tmp_path / "states")
    model = watched(capture)
    model.predict(X_VAL, verbose=0)
    keras.models.clone_model(model).predict(X, verbose=0)
    assert len(capture.raw_states) == capture.state_count == 101 * 64
    again = StateCapture("states", storage_path=tmp_path / "states", resume=True)
    assert again.counts().tolist() == capture.counts().tolist()


def test_an_error_ends_the_pass_and_stays_until_reset(monkeypatch):
    def fails(self, *args, **kwargs):
        raise MemoryError("no room")

    capture = StateCapture("states")
    model = watched(capture)
    with monkeypatch.context() as patch:
        patch.setattr(StateCounter, "update", fails)
        if keras.backend.backend() == "jax":
            # Keras would lose the weights, which a step on JAX takes away while it runs.
            model.predict(X_VAL, verbose=0)
        else:
            # From within a graph TensorFlow raises an error of its own.
            with pytest.raises(Exception, match="layer 'states' could not be counted: no room"):
                model.predict(X_VAL, verbose=0)
    with pytest.raises(ProbeError, match="layer 'states' could not be counted: no room"):
        capture.counts()
    capture.reset_states()
    model.predict(X_VAL, verbose=0)
    assert capture.state_count == 101 * 64


def test_an_error_surfaces_as_itself_where_python_runs_the_step():
    capture = StateCapture("states")
    with pytest.raises(ProbeError, match="layer 'states' could not be counted: .*axis"):
        capture(keras.ops.convert_to_tensor(3.0))


def test_the_callback_and_a_capture_by_hand_do_not_disturb_each_other():
    capture, callback = StateCapture("states"), EfficiencyCallback("conv_1")
    model = watched(capture)
    model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, epochs=2, callbacks=[callback])
    assert [r.layers["conv_1"].n_states for r in callback.history] == [101 * 64] * 2
    assert capture.state_count == 2 * 101 * 64
    capture.reset_states()
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    report = callback.last.layers["conv_1"]
    assert (report.n_states, report.n_distinct) == (capture.state_count, len(capture.counts()))
    assert report.entropy == capture.entropy()


def test_gradients_pass_through_batched_calls():
    capture = StateCapture(record_training=True)
    inputs = keras.Input((5, 3))
    steps = layers.TimeDistributed(capture)(layers.Dense(4)(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(layers.Flatten()(steps)))
    x = np.random.default_rng(1).normal(size=(20, 5, 3)).astype(np.float32)
    compiled(model)
    before = [np.array(w) for w in model.get_weights()]
    model.fit(x, np.arange(20) % 2, verbose=0, epochs=1)
    assert capture.state_count == 100
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes can't be pinned here")
def test_one_cpu_is_enough():
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import keras, numpy as np
from tensorstate_callbacks.keras import StateCapture
layers = [keras.layers.Conv2D(20, 3), StateCapture("a"), keras.layers.ReLU(), StateCapture("b")]
model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
model.predict(np.ones((128, 32, 32, 3), "float32"), batch_size=64, verbose=0)
print(model.get_layer("a").state_count, model.get_layer("b").state_count)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.split() == [str(128 * 30 * 30)] * 2, done.stderr


def test_the_step_is_compiled_with_it_where_the_backend_can():
    assert watched(StateCapture()).jit_compile == (keras.backend.backend() == "jax")

"""The step that makes states itself: what leaves it, how it is compiled, and what is left of it.

The path of an accelerator is forced on the CPU.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, only_on
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

from tensorstate_callbacks import ProbeError
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.backends import current_backend

GRAPHS = only_on("tensorflow", "jax", because="makes states in its recorder")


@only_on("tensorflow", because="XLA runs all that a step has")
@pytest.mark.parametrize("jit_compile", [True, False])
def test_groups_need_no_host_call_and_xla_stays_on(jit_compile, force_device, monkeypatch):
    import tensorflow as tf

    force_device(True)
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
def test_xla_goes_off_where_a_layer_needs_the_host(force_device, monkeypatch):
    from tensorstate_callbacks.keras import counting

    model = plain(jit_compile=True)
    host, ours = on_both(force_device, model, NAMES, group_size=8)
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
def test_only_states_leave_the_step(group_size, force_device, monkeypatch):
    backend, seen = current_backend(), []
    # On JAX counts leave the step beside it.
    name = "tap_outputs" if BACKEND == "jax" else "tap"
    original = getattr(backend, name)

    def tap(tapped, observe, mask=None):
        assert mask is None
        for tensor in tapped if isinstance(tapped, tuple) else (tapped,):
            dtype = keras.backend.standardize_dtype(tensor.dtype)
            seen.append((str(np.dtype(dtype)), tensor.shape))
        return original(tapped, observe)

    monkeypatch.setattr(backend, name, tap)
    force_device(True)
    model, callback = plain(), EfficiencyCallback(NAMES, group_size=group_size)
    evaluated(model, callback)
    if group_size is None:
        assert {(dtype, shape[-1]) for dtype, shape in seen} == {("uint8", 3), ("uint8", 2)}
    elif BACKEND == "jax":
        assert {shape for _, shape in seen} == {(2 * 256 + 16,), (256 + 32,)}
    else:
        assert seen == []


@only_on("torch", because="makes states in the step")
def test_a_recorder_of_tensors_takes_them_where_they_lie(force_device, monkeypatch):
    from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

    taken, original = [], TensorRecorder.observe_tensor

    def observe(recorder, name, tensor, *args):
        taken.append(name)
        if len(taken) == 6:
            raise ProbeError("layer 'fc' could not be counted: lost")
        original(recorder, name, tensor, *args)

    monkeypatch.setattr(TensorRecorder, "observe_tensor", observe)
    model, callback = plain(), EfficiencyCallback(NAMES)
    force_device(False)
    evaluated(model, callback)
    assert taken == []
    force_device(True)
    with pytest.raises(ProbeError, match="layer 'fc' could not be counted: lost"):
        evaluated(model, callback)
    assert taken == NAMES * 3


@only_on("tensorflow", because="XLA runs all that a step has")
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}])
def test_a_batch_that_cannot_be_had_again_is_not_run_twice(options, force_device, monkeypatch):
    from tensorstate_callbacks.keras import counting

    planned = counting.plan_states

    def no_plan_for_fc(shape, *args, **kwargs):
        return None if len(shape) == 2 else planned(shape, *args, **kwargs)

    monkeypatch.setattr(counting, "plan_states", no_plan_for_fc)
    model = plain(**options)
    for run in (evaluated, in_a_loop):
        host, ours = on_both(force_device, model, NAMES, group_size=8, run=run)
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
def test_nothing_of_a_pass_that_was_broken_off_is_counted(group_size, force_device):
    force_device(True)
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
def test_a_model_keeps_no_trace_and_its_step_is_traced_once(group_size, force_device, tmp_path):
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

    force_device(True)
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

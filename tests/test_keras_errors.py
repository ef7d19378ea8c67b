"""What an error leaves on a Keras model is inert, and gone with the next evaluation.

Inert: the model's methods do what they do without it, to the bit, and nothing is counted.
"""

import gc

import keras
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, X, Y, compiled, sequential
from keras_traces import fit, is_keras_own, traces

from tensorstate_callbacks import ProbeError, StateCounter
from tensorstate_callbacks.keras import EfficiencyCallback


class Breaks(keras.callbacks.Callback):
    """Raises an error at one hook of another callback, in the second epoch."""

    def __init__(self, hook, error):
        super().__init__()
        self.epoch = 0
        setattr(self, hook, self.raise_it)
        self.error = error

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def raise_it(self, *args, **kwargs):
        if self.epoch == 1:
            raise self.error("stop here")


HOOKS = [
    "on_train_batch_end",
    "on_test_begin",
    "on_test_batch_begin",
    "on_test_batch_end",
    "on_test_end",
    "on_epoch_end",
]


def keep_state(model):
    """Return what gives back the weights that Keras itself loses on JAX in an error."""
    owners = [model, model.optimizer, *model.metrics]
    kept = [(v, keras.ops.convert_to_numpy(v)) for owner in owners for v in owner.variables]

    def give_back():
        for variable, value in kept:
            if getattr(variable, "_value", value) is None:
                variable._value = keras.ops.convert_to_tensor(value, variable.dtype)

    return give_back


def check_inert(model, before, monkeypatch, allowed):
    """Check that what an error left on a model has no effect, and is gone after a watched fit."""
    check_left(model, before, allowed)
    fresh = compiled(sequential())
    fresh.set_weights(model.get_weights())
    counted = []
    with monkeypatch.context() as patch:
        patch.setattr(StateCounter, "update", lambda *args, **kwargs: counted.append(args))
        for twin in (model, fresh):
            twin.optimizer.learning_rate = 0.0
        assert model.evaluate(X, Y, verbose=0) == fresh.evaluate(X, Y, verbose=0)
        assert model.test_on_batch(X, Y) == fresh.test_on_batch(X, Y)
        shown = [fit(twin, epochs=1, shuffle=False).history for twin in (model, fresh)]
        assert shown[0] == shown[1]
        assert model.evaluate(X, Y, verbose=0, return_dict=True).keys() == {"loss", "accuracy"}
    assert counted == []
    check_next_fit(model, before)


def check_left(model, before, allowed):
    now = traces(model)
    assert set(now.pop(model.name)) - set(before[model.name]) <= allowed
    assert now == {name: entries for name, entries in before.items() if name != model.name}


def check_next_fit(model, before):
    callback = EfficiencyCallback()
    fit(model, callback, epochs=1)
    assert callback.last.layers["conv_1"].n_states == 101 * 64
    gc.collect()
    assert traces(model) == before
    assert is_keras_own(model.test_function)


@pytest.fixture(scope="module")
def fitted():
    """A model that was fitted without us, compiled once for all that break it off."""
    model = compiled(sequential())
    fit(model, epochs=1)
    return model, traces(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("ours_first", [True, False])
def test_an_exception_anywhere_in_a_fit_leaves_one_entry(fitted, hook, error, ours_first):
    model, before = fitted
    callbacks = [EfficiencyCallback(), Breaks(hook, error)]
    with pytest.raises(error) as raised:
        fit(model, *(callbacks if ours_first else reversed(callbacks)))
    # `raised` still holds every frame of fit: nothing was left to garbage collection.
    assert raised.value.args == ("stop here",)
    assert is_keras_own(model.test_function)
    check_left(model, before, {"evaluate"})
    check_next_fit(model, before)


def test_what_an_exception_in_a_fit_leaves_is_inert(monkeypatch):
    model = compiled(sequential())
    fit(model, epochs=1)
    before = traces(model)
    with pytest.raises(KeyboardInterrupt, match="stop here"):
        fit(model, EfficiencyCallback(), Breaks("on_test_batch_end", KeyboardInterrupt))
    check_inert(model, before, monkeypatch, {"evaluate"})


EVALUATES = {
    *("evaluate", "fit", "test_on_batch", "test_function"),
    *("_get_metrics_result_or_logs", "_flatten_metrics_in_order"),
}


@pytest.mark.parametrize("hook", ["on_test_begin", "on_test_batch_begin", "on_test_batch_end"])
@pytest.mark.parametrize("ours_first", [True, False])
def test_what_a_broken_off_evaluate_leaves_is_inert(hook, ours_first, monkeypatch):
    model, callback = compiled(sequential()), EfficiencyCallback()
    model.evaluate(X, Y, verbose=0)
    fit(model, epochs=1)
    before = traces(model)
    broken = Breaks(hook, RuntimeError)
    broken.epoch = 1
    callbacks = [callback, broken] if ours_first else [broken, callback]
    give_back = keep_state(model)
    with pytest.raises(RuntimeError, match="stop here"):
        model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    give_back()
    assert callback.history == []
    del callback, callbacks
    check_inert(model, before, monkeypatch, EVALUATES)


def test_a_callback_whose_evaluate_was_broken_off_is_used_again():
    model, callback = compiled(sequential()), EfficiencyCallback("conv_1")
    fit(model, epochs=1)
    before = traces(model)
    broken = Breaks("on_test_batch_end", RuntimeError)
    broken.epoch = 1
    for _ in range(3):
        with pytest.raises(RuntimeError, match="stop here"):
            model.evaluate(X, Y, verbose=0, callbacks=[callback, broken])
    model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert [report.layers["conv_1"].n_states for report in callback.history] == [300 * 64]
    assert traces(model) == before
    assert is_keras_own(model.test_function)


def test_results_as_a_dict_leave_an_inert_entry_until_the_next_evaluation():
    model, callback = compiled(sequential()), EfficiencyCallback("conv_1")
    fit(model, epochs=1)
    before = traces(model)
    plain = model.evaluate(X, Y, verbose=0)
    results = model.evaluate(X, Y, verbose=0, callbacks=[callback], return_dict=True)
    assert results["aiq"] == callback.last.aiq
    left = set(traces(model)[model.name]) - set(before[model.name])
    assert left <= {"_flatten_metrics_in_order"}
    assert model.evaluate(X, Y, verbose=0) == plain
    # TensorFlow's graph optimizer reorders pooling and ELU where nobody looks in between.
    watched = model.evaluate(X, Y, verbose=0, callbacks=[callback])
    assert watched == pytest.approx(plain, rel=1e-6)
    assert traces(model) == before


def test_an_error_in_a_training_step_leaves_what_is_inert(monkeypatch):
    model = compiled(sequential())
    fit(model, epochs=1)
    before, give_back = traces(model), keep_state(model)
    with pytest.raises(ValueError):
        model.fit(
            *(X, np.zeros((len(X), 7, 7))),
            validation_data=(X_VAL, Y_VAL),
            verbose=0,
            callbacks=[EfficiencyCallback()],
        )
    give_back()
    check_inert(model, before, monkeypatch, {"evaluate"})


def test_an_error_in_the_probe_names_the_layer_and_leaves_nothing(monkeypatch):
    def fails(self, *args, **kwargs):
        raise OSError("no room")

    model = compiled(sequential())
    fit(model, epochs=1)
    before = traces(model)
    with monkeypatch.context() as patch:
        for name in ("update", "update_packed"):
            patch.setattr(StateCounter, name, fails)
        with pytest.raises(ProbeError, match="layer 'conv_1' could not be counted: no room") as _:
            fit(model, EfficiencyCallback("conv_1"))
    check_left(model, before, {"evaluate"})
    check_next_fit(model, before)

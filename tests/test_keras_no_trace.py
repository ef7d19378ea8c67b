"""Watching changes nothing; what an error leaves of it is inert, and gone with the next evaluation.

Inert: the model's methods do what they do without it, to the bit, and nothing is counted.
"""

import gc

import keras
import numpy as np
import pytest
from keras_models import BUILDERS, X_VAL, Y_VAL, X, Y, compiled, only_on, sequential

from tensorstate_callbacks import ProbeError, StateCounter
from tensorstate_callbacks.keras import EfficiencyCallback, evaluation


def traces(model):
    """What could be left on a model: its own entries, and its layers'."""
    entries = {layer.name: sorted(vars(layer)) for layer in model._flatten_layers()}
    # What Keras itself leaves after fit and evaluate.
    keras_own = {"history", "stop_evaluating", "_eval_epoch_iterator", "stop_predicting"}
    entries[model.name] = sorted(set(vars(model)) - keras_own)
    return entries


def is_keras_own(function):
    return function is None or function.__module__.startswith("keras.")


def fit(model, *callbacks, epochs=3, **options):
    options = {"validation_data": (X_VAL, Y_VAL), **options}
    return model.fit(
        X, Y, epochs=epochs, batch_size=50, verbose=0, callbacks=list(callbacks), **options
    )


@pytest.mark.parametrize("build", BUILDERS)
def test_a_fitted_model_carries_nothing_of_ours(build):
    model = compiled(build())
    fit(model, epochs=1)
    before = traces(model)
    fit(model, EfficiencyCallback(), EfficiencyCallback(prefix="x_"))
    assert traces(model) == before
    assert is_keras_own(model.test_function)


def test_nothing_stays_while_the_list_of_callbacks_lives_on():
    model, callback = compiled(sequential()), EfficiencyCallback()
    fit(model, epochs=1)
    before = traces(model)
    held = keras.callbacks.CallbackList([callback], model=model, epochs=1, steps=6, verbose=0)
    data = {"validation_data": (X_VAL, Y_VAL), "verbose": 0}
    model.fit(X, Y, batch_size=50, callbacks=held, **data)
    assert callback.last.epoch == 0
    assert traces(model) == before
    # The graph with the probes is let go with the fit, not with the callback.
    assert callback.built is None


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
    assert model.evaluate(X, Y, verbose=0, callbacks=[callback]) == plain
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


def test_keras_still_has_the_private_parts_that_are_used():
    """Their names and what goes through them, for the day when Keras changes them."""
    seen = []

    class Model(keras.Sequential):
        def _get_metrics_result_or_logs(self, logs):
            results = super()._get_metrics_result_or_logs(logs)
            seen.append(("join", set(results)))
            return results

        def _flatten_metrics_in_order(self, logs):
            seen.append(("list", set(logs)))
            return super()._flatten_metrics_in_order(logs)

        def evaluate(self, *args, **kwargs):
            seen.append(("evaluate", type(kwargs["callbacks"]).__name__))
            return super().evaluate(*args, **kwargs)

    model = compiled(Model(sequential().layers))
    fit(model, epochs=1)
    keys = {"loss", "accuracy"}
    assert seen == [("join", keys), ("evaluate", "CallbackList"), ("join", keys)]
    seen.clear()
    model.evaluate(X, Y, verbose=0, callbacks=[])
    assert seen == [("evaluate", "list"), ("join", keys), ("list", keys)]
    assert {evaluation.JOINS_RESULTS, evaluation.LISTS_RESULTS} <= set(dir(keras.Model))


def test_weights_and_history_are_those_of_an_unwatched_fit():
    def run(*callbacks):
        keras.utils.set_random_seed(11)
        model = compiled(sequential())
        history = fit(model, *callbacks).history
        return history, model.get_weights()

    plain, weights = run()
    watched, watched_weights = run(EfficiencyCallback())
    for key in ("loss", "accuracy"):
        assert watched[key] == plain[key]
        # TensorFlow's graph optimizer reorders pooling and ELU where nobody looks in between.
        assert watched[f"val_{key}"] == pytest.approx(plain[f"val_{key}"], rel=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(weights, watched_weights, strict=True))


@keras.saving.register_keras_serializable("tests")
class Calls(keras.layers.Layer):
    """Passes its input through, and counts forward passes and traces."""

    def build(self, shape):
        self.n_calls = self.add_weight(shape=(), dtype="int32", trainable=False, name="n_calls")
        self.traced = {True: 0, False: 0}

    def call(self, x, training=False):
        self.traced[bool(training)] += 1
        self.n_calls.assign_add(1)
        return x


def test_the_model_is_called_and_traced_as_often_as_without_us():
    def run(*callbacks):
        calls = Calls()
        model = compiled(keras.Sequential([keras.Input((10, 10, 1)), calls, *sequential().layers]))
        fit(model, *callbacks)
        return int(keras.ops.convert_to_numpy(calls.n_calls)), calls.traced

    forward, traced = run()
    watched_forward, watched_traced = run(EfficiencyCallback("Conv2D"))
    assert forward == 3 * (6 + 3)
    assert watched_forward == forward
    assert watched_traced == traced


@only_on("tensorflow", "jax", because="compiles with torch.compile: see test_keras_torch.py")
def test_training_stays_compiled_with_xla():
    def run(*callbacks):
        calls = Calls()
        layers = [keras.Input((10, 10, 1)), calls, *sequential().layers]
        model = compiled(keras.Sequential(layers), jit_compile=True)
        fit(model, *callbacks, epochs=2)
        assert model.jit_compile is True
        return calls.traced[True]

    callback = EfficiencyCallback("Conv2D")
    # One trace at most for the whole batches and one to build the model, not one a batch.
    assert run(callback) == run() < 2 * 6
    assert callback.last.layers["conv_1"].n_states == 101 * 64


class EvaluatesToo(keras.callbacks.Callback):
    """Evaluates on other data in the middle of an evaluation."""

    results = None

    def __init__(self, *callbacks):
        super().__init__()
        self.callbacks = list(callbacks)

    def on_test_batch_end(self, batch, logs=None):
        if self.results is None:
            self.results = {}
            self.results = self.model.evaluate(
                X, Y, verbose=0, return_dict=True, callbacks=self.callbacks
            )


def evaluate(model, *callbacks):
    return model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("run", [fit, evaluate])
def test_another_evaluation_within_ours_does_not_count(run):
    plain, disturbed, inner = (EfficiencyCallback("Conv2D") for _ in range(3))
    model = compiled(sequential())
    model.optimizer.learning_rate = 0.0
    run(model, plain)
    before = traces(model)
    for others, keys in ([], {"loss", "accuracy"}), ([inner], {"aiq", "efficiency"}):
        other = EvaluatesToo(*others)
        run(model, disturbed, other)
        assert dict(disturbed.last.layers) == dict(plain.last.layers)
        assert keys <= set(other.results)
        assert ("aiq" in other.results) == bool(others)
        assert traces(model) == before
        assert is_keras_own(model.test_function)
    assert inner.last.layers["conv_1"].n_states == 300 * 64


def test_an_error_in_the_probe_names_the_layer_and_leaves_nothing(monkeypatch):
    def fails(self, *args, **kwargs):
        raise MemoryError("no room")

    model = compiled(sequential())
    fit(model, epochs=1)
    before = traces(model)
    with monkeypatch.context() as patch:
        patch.setattr(StateCounter, "update", fails)
        with pytest.raises(ProbeError, match="layer 'conv_1' could not be counted: no room") as _:
            fit(model, EfficiencyCallback("conv_1"))
    check_left(model, before, {"evaluate"})
    check_next_fit(model, before)

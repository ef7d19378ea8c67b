"""Watching changes nothing, and leaves no trace whatever happens."""

import gc

import keras
import numpy as np
import pytest
from keras_models import BUILDERS, X_VAL, Y_VAL, X, Y, compiled, only_on, sequential

from tensorstate_callbacks import ProbeError, StateCounter
from tensorstate_callbacks.keras import EfficiencyCallback


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


@pytest.fixture(scope="module")
def fitted():
    """A model that was fitted without us, compiled once for all that break it off."""
    model = compiled(sequential())
    fit(model, epochs=1)
    return model, traces(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("ours_first", [True, False])
def test_an_exception_anywhere_leaves_nothing(fitted, hook, error, ours_first):
    model, before = fitted
    callbacks = [EfficiencyCallback(), Breaks(hook, error)]
    with pytest.raises(error) as raised:
        fit(model, *(callbacks if ours_first else reversed(callbacks)))
    # `raised` still holds every frame of fit: nothing was left to garbage collection.
    assert raised.value.args == ("stop here",)
    assert traces(model) == before
    assert is_keras_own(model.test_function)
    callback = EfficiencyCallback()
    fit(model, callback, epochs=1)
    assert callback.last.layers["conv_1"].n_states == 101 * 64


def test_a_broken_off_evaluate_leaves_nothing():
    model = compiled(sequential())
    model.evaluate(X, Y, verbose=0)
    before = traces(model)
    broken = Breaks("on_test_batch_end", RuntimeError)
    broken.epoch = 1
    with pytest.raises(RuntimeError) as raised:
        model.evaluate(X, Y, verbose=0, callbacks=[EfficiencyCallback(), broken])
    assert raised.value.args == ("stop here",)
    assert traces(model) == before
    assert is_keras_own(model.test_function)


def test_an_error_in_a_training_step_leaves_nothing():
    model = compiled(sequential())
    fit(model, epochs=1)
    before = traces(model)
    with pytest.raises(ValueError):
        model.fit(
            *(X, np.zeros((len(X), 7, 7))),
            validation_data=(X_VAL, Y_VAL),
            verbose=0,
            callbacks=[EfficiencyCallback()],
        )
    gc.collect()
    assert traces(model) == before


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
    assert traces(model) == before

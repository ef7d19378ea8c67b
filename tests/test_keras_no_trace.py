"""Watching changes nothing, and leaves nothing on the model."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras_models import BUILDERS, X_VAL, Y_VAL, X, Y, compiled, functional, only_on, sequential
from keras_traces import fit, is_keras_own, traces

from tensorstate_callbacks import build_efficiency_model
from tensorstate_callbacks.keras import EfficiencyCallback, evaluation


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
    watched, watched_weights = run(EfficiencyCallback(classes=True))
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
    assert forward == 3 * (6 + 3)
    for classes in (None, True):
        watched_forward, watched_traced = run(EfficiencyCallback("Conv2D", classes=classes))
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


@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}])
def test_what_a_fit_has_counted_is_gone_with_its_callback(options):
    model, left = compiled(functional(), **options), []
    for _ in range(2):
        callback = EfficiencyCallback("fc", missing_accuracy="raise")
        model.fit(X, Y, validation_data=(X, Y), verbose=0, callbacks=[callback])
        assert callback.last.layers["fc"].n_states == len(X)
        left.append(weakref.ref(callback.watch))
    del callback
    gc.collect()
    assert [watch() for watch in left] == [None, None]


def test_a_capture_layer_is_gone_with_its_model():
    model = build_efficiency_model(functional(), attach_to=["Conv2D"])
    compiled(model).evaluate(X, Y, verbose=0)
    left = [weakref.ref(layer) for layer in model.efficiency_layers]
    assert [layer().state_count > 0 for layer in left] == [True] * len(left)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert [layer() for layer in left] == [None] * len(left)

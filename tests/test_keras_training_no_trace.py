"""Keras: the steps that aren't recorded run as without us, and nothing of ours stays on a model."""

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, only_on
from keras_traces import is_keras_own, traces
from keras_training import BATCH, N_BATCHES, NAMES, X, Y, fit, small, watch

from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.train_step import TrainStep
from tensorstate_callbacks.recording.overrides import StandIn

pytestmark = [
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
]


def entries(model):
    """What of ours is on a model, its layers and its metrics."""
    owners = {"model": model, **{each.name: each for each in model._flatten_layers(False)}}
    owners |= {f"metric {each.name}": each for each in model.metrics}
    return {
        (owner, name)
        for owner, each in owners.items()
        for name, value in vars(each).items()
        if isinstance(value, StandIn)
    }


class Looks(keras.callbacks.Callback):
    """Notes at each batch what is on the model, and which train function it has."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.functions = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.begun.append(entries(self.model))

    def on_train_batch_end(self, batch, logs=None):
        self.ended.append(entries(self.model))
        self.functions.append(self.model.train_function)


FIT = {("model", "evaluate"), ("model", "fit"), ("model", "_get_metrics_result_or_logs")}


def test_steps_that_are_not_due_run_as_without():
    looks, model = Looks(), small()
    fit(model)
    before = traces(model)
    fit(model, watch(every_n_train_steps=3), looks)
    due = [at % 3 == 0 for at in range(1, 2 * N_BATCHES + 1)]
    added = {("model", "train_function"), ("model", "train_on_batch")}
    assert looks.begun == [FIT | added if each else FIT for each in due]
    assert looks.ended == [FIT] * len(due)
    (function,) = set(looks.functions)
    assert is_keras_own(function)
    assert traces(model) == before
    assert model.train_function is function


def test_nothing_is_there_where_training_is_not_recorded():
    looks, callback = Looks(), EfficiencyCallback(NAMES)
    fit(small(), callback, looks, validation_data=(X, Y))
    assert set(map(frozenset, looks.begun + looks.ended)) == {frozenset({("model", "evaluate")})}
    assert callback.training is None
    # Keras may go on without waiting for what callbacks do.
    held = keras.callbacks.CallbackList([callback, watch()], model=small())
    assert held._async_train == keras.callbacks.CallbackList([], model=small())._async_train


@keras.saving.register_keras_serializable("tests")
class Traced(layers.Layer):
    """Passes its input through, and counts the times that a training step is traced or run."""

    n = 0

    def call(self, x, training=False):
        self.n += bool(training)
        return x


@pytest.mark.filterwarnings("ignore:fit has no validation data")
@only_on("tensorflow", "jax", because="runs eagerly: see test_keras_torch.py for torch.compile")
@pytest.mark.parametrize("options", [{}, {"jit_compile": True}])
def test_the_models_own_function_is_traced_as_often_as_without(options):
    def run(*callbacks, **more):
        traced = Traced()
        # All batches are of one size, so one trace each.
        model = small(traced, **options)
        model.fit(X[:40], Y[:40], batch_size=BATCH, epochs=3, verbose=0, callbacks=callbacks)
        return traced.n

    plain = run()
    assert run(EfficiencyCallback(NAMES, on="val")) == plain
    # One more for all recorded steps of the fit.
    assert run(watch(every_n_train_steps=2)) == plain + 1
    assert run(watch(every_n_train_steps=2), watch(every_n_train_steps=2, prefix="x_")) == plain + 1


class Breaks(keras.callbacks.Callback):
    def __init__(self, hook, at):
        super().__init__()
        self._hook, self._at = hook, at

    def _run(self, hook, batch):
        if (hook, batch) == (self._hook, self._at):
            raise RuntimeError("stop here")

    def on_train_batch_begin(self, batch, logs=None):
        self._run("begin", batch)

    def on_train_batch_end(self, batch, logs=None):
        self._run("end", batch)


@pytest.mark.parametrize(("hook", "at"), [("begin", 1), ("begin", 2), ("end", 1)])
@pytest.mark.filterwarnings("ignore:fit has no validation data")
def test_nothing_acts_after_a_fit_that_another_callback_ends(hook, at):
    model, callback = small(), watch()
    with pytest.raises(RuntimeError, match="stop here"):
        fit(model, callback, Breaks(hook, at))
    n_reports = len(callback.train_history)
    results = model.evaluate(X, Y, verbose=0, return_dict=True)
    history = fit(model, epochs=1)
    logs = model.train_on_batch(X, Y, return_dict=True)
    assert not any(key.startswith("train_") for key in [*results, *history, *logs])
    assert len(callback.train_history) == n_reports
    fit(model, callback, epochs=1)
    assert entries(model) == set()
    assert is_keras_own(model.train_function)
    assert len(callback.train_history) == n_reports + 3


def test_an_error_in_a_recorded_step_leaves_the_model_clean(monkeypatch):
    class FailsError(Exception):
        pass

    def fails(*_):
        raise FailsError

    model, callback = small(), watch()
    monkeypatch.setattr(type(callback), "_conclude_window", fails)
    with pytest.raises(FailsError):
        fit(model, callback)
    monkeypatch.undo()
    # Both steps were made, and JAX has the weights of the second.
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 2
    plain = small()
    fit(plain, steps_per_epoch=2, epochs=1)
    assert all(map(np.array_equal, plain.get_weights(), model.get_weights()))
    assert {name for _, name in entries(model)} <= {name for _, name in FIT}
    fit(model, callback)
    assert entries(model) == set()


class TrainsToo(keras.callbacks.Callback):
    """Evaluates or trains in the middle of the fit, before the step of a batch."""

    def __init__(self, run):
        super().__init__()
        self._run = run

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1 and self._run is not None:
            run, self._run = self._run, None
            if BACKEND == "jax":
                self.model.jax_state_sync()
            run(self.model)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", ["evaluate", "train_on_batch", "fit"])
@pytest.mark.filterwarnings("ignore:fit has no validation data")
def test_what_another_callback_runs_before_a_step_does_not_count(method, first):
    def run(model):
        options = {} if method == "train_on_batch" else {"verbose": 0}
        getattr(model, method)(X[:5], Y[:5], **options)

    if method == "fit" and BACKEND == "jax":
        pytest.skip("Keras has no state to go on with")
    model, callback = small(), watch(every_n_train_steps=2, window=1)
    model.optimizer.learning_rate = 0.0
    other = TrainsToo(run)
    fit(model, *([other, callback] if first else [callback, other]))
    assert [r.layers["first"].n_states for r in callback.train_history] == [8, 8, 4] * 2
    assert entries(model) == set()


@pytest.mark.filterwarnings("ignore:the window of training batches at step")
def test_layers_are_picked_anew_where_the_model_changes():
    class Grows(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model._tracker.unlock()
                self.model.late = layers.Activation("tanh", name="late")
                self.model._tracker.lock()
                self.model.make_train_function(force=True)

    class Growing(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.late = layers.Dense(4, name="first"), None
            self.head = layers.Dense(2, activation="softmax")

        def call(self, x):
            x = self.first(x)
            return self.head(x if self.late is None else self.late(x))

    model = Growing()
    model.compile("sgd", "sparse_categorical_crossentropy")
    callback = watch("first", every_n_train_steps=3, window=1)
    callback.attach_to = lambda name, layer: name in ("first", "late")
    fit(model, Grows(), callback)
    found = [list(report.layers) for report in callback.train_history]
    assert found == [["first"]] * 2 + [["first", "late"]] * 2


def test_a_step_that_waits_ends_with_its_callback():
    model = small()
    fit(model)

    class Watcher:
        pass

    TrainStep.join(model, Watcher())
    assert entries(model)
    model.train_on_batch(X, Y)
    fit(model)
    assert entries(model) == set()

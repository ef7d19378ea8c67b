"""Keras: windows of recorded training steps are exact, and logged where they belong."""

import copy
import csv
import pickle
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras_models import BACKEND, SEVERAL_STEPS, only_on
from keras_training import (
    BATCH,
    EPOCHS,
    N_BATCHES,
    NAMES,
    X,
    Y,
    assert_recount,
    fit,
    outputs_of_steps,
    small,
    watch,
)
from own_warnings import ours

from tensorstate_callbacks import NoLayerMatchedError, ProbeError, TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
]

XLA = only_on("tensorflow", "jax", because="compiles with torch.compile: see test_keras_torch.py")
OPTIONS = [
    pytest.param({}, id="auto"),
    pytest.param({"run_eagerly": True}, id="eager"),
    pytest.param({"jit_compile": True}, id="xla", marks=XLA),
]


@pytest.fixture(scope="module")
def steps():
    return outputs_of_steps(small(run_eagerly=BACKEND != "jax"))


@pytest.mark.parametrize(
    ("every", "window", "options"),
    [
        (1, 1, {}),
        (2, 3, {}),
        (5, 20, {}),
        (2, 3, {"run_eagerly": True}),
        pytest.param(2, 3, {"jit_compile": True}, marks=XLA),
    ],
)
def test_a_window_is_a_recount_of_its_steps(every, window, options, steps):
    callback = watch(every_n_train_steps=every, window=window)
    fit(small(**options), callback)
    due = range(every, EPOCHS * N_BATCHES + 1, every)
    # Steps made before, as in evaluations; and epochs, counted from 0.
    assert [report.step for report in callback.train_history] == [step - 1 for step in due]
    assert [r.epoch for r in callback.train_history] == [(s - 1) // N_BATCHES for s in due]
    for step, report in zip(due, callback.train_history, strict=True):
        assert_recount(report, steps[every - 1 : step : every][-window:])
    assert callback.history == []


@pytest.mark.parametrize("forced", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("group_size", [None, 3])
def test_states_that_the_step_makes_are_the_same(group_size, forced, force_device, steps):
    force_device(forced)
    callback = watch(group_size=group_size, window=2)
    fit(small(), callback)
    assert len(callback.train_history) == 6
    for at, report in enumerate(callback.train_history):
        assert_recount(report, steps[1 : 2 * at + 2 : 2][-2:], group_size)


@pytest.mark.parametrize("options", [SEVERAL_STEPS])
def test_all_batches_of_an_execution_are_recorded_together(options, steps):
    callback = watch(every_n_train_steps=2, window=1)
    history = fit(small(**{**options, "steps_per_execution": 4}), callback)
    # Six batches of an epoch run as four and two.
    executions = [steps[0:4], steps[4:6], steps[6:10], steps[10:12]]
    assert [report.step for report in callback.train_history] == [0, 4, 6, 10]
    for report, execution in zip(callback.train_history, executions, strict=True):
        assert_recount(report, execution)
    assert history == {**fit(small(**{**options, "steps_per_execution": 4})), **_train(history)}


def _train(history):
    return {key: value for key, value in history.items() if key.startswith("train_")}


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_and_logs_are_those_of_a_training_without(options):
    def run(*callbacks):
        model = small(layers.Dropout(0.4, seed=3), **options)
        history = fit(model, *callbacks, validation_data=(X, Y))
        variables = [*model.variables, *model.optimizer.variables]
        return history, [keras.ops.convert_to_numpy(each) for each in variables]

    history, variables = run()
    callback = watch(on=("val", "train"), every_n_train_steps=1)
    watched, watched_variables = run(callback)
    assert all(map(np.array_equal, variables, watched_variables))
    assert {key: watched[key] for key in history} == history
    assert len(callback.train_history) == EPOCHS * N_BATCHES
    assert len(callback.history) == EPOCHS


def test_evaluations_are_recorded_apart():
    both, val, train = watch(on=("val", "train")), EfficiencyCallback(NAMES), watch()
    for callback in (both, val, train):
        fit(small(), callback, validation_data=(X, Y))
    assert both.history == val.history
    assert both.train_history == train.train_history
    assert (train.history, val.train_history) == ([], [])
    assert "train_efficiency" not in fit(small(), val, validation_data=(X, Y))


class SeesBatches(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


def test_metrics_are_logged_at_their_step_and_with_the_epoch(tmp_path):
    before, after = SeesBatches(), SeesBatches()
    callback = watch(on=("val", "train"), every_n_train_steps=4, prefix="x_")
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    stop = keras.callbacks.EarlyStopping("train_x_efficiency", mode="max", patience=9)
    history = fit(
        small(), before, log, stop, callback, after, validation_data=(X, Y), epochs=EPOCHS
    )
    keys = {"train_x_efficiency", *(f"train_x_efficiency/{name}" for name in NAMES)}
    reports = callback.train_history
    assert len(reports) == 3
    for seen in (before, after):
        logged = [at for at, logs in enumerate(seen.batches, 1) if keys & logs.keys()]
        assert logged == [4, 8, 12]
        for at, report in zip(logged, reports, strict=True):
            found = {key: seen.batches[at - 1][key] for key in keys}
            assert found == pytest.approx(report.scalars("x_"))
            assert {"loss", "accuracy"} <= seen.batches[at - 1].keys()
        assert [each["train_x_efficiency"] for each in seen.epochs] == [
            reports[0].efficiency,
            reports[2].efficiency,
        ]
    assert set(history) >= keys | {"val_x_efficiency", "val_x_aiq", "loss"}
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["train_x_efficiency"]) == reports[2].efficiency


def test_several_callbacks_record_the_same_steps():
    alone = [watch(every_n_train_steps=n) for n in (2, 3)]
    for callback in alone:
        fit(small(), callback)
    together = [watch(every_n_train_steps=n, prefix=f"{n}_") for n in (2, 3)]
    history = fit(small(), *together)
    assert [each.train_history for each in together] == [each.train_history for each in alone]
    assert {"train_2_efficiency", "train_3_efficiency"} <= set(history)


def test_gradients_may_be_accumulated():
    def run(*callbacks):
        optimizer = keras.optimizers.SGD(0.3, gradient_accumulation_steps=3)
        model = small(optimizer=optimizer)
        fit(model, *callbacks)
        return model.get_weights()

    callback = watch(every_n_train_steps=4)
    assert all(map(np.array_equal, run(), run(callback)))
    assert [report.step for report in callback.train_history] == [1, 2, 3]


def test_all_calls_of_a_step_count():
    class Twice(keras.Model):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def call(self, x, training=None):
            return (self.inner(x, training=training) + self.inner(-x, training=training)) / 2

    model = Twice(small())
    model.compile("sgd", "sparse_categorical_crossentropy")
    callback = watch("second", every_n_train_steps=3, window=1)
    fit(model, callback)
    assert {layer.n_states for r in callback.train_history for layer in r.layers.values()} == {
        2 * BATCH,
        2 * (len(X) % BATCH),
    }


@pytest.mark.filterwarnings("ignore::UserWarning:keras")
def test_mixed_precision_is_recorded():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model, plain = small(), small()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    callback = watch()
    fit(plain)
    fit(model, callback)
    assert all(map(np.array_equal, plain.get_weights(), model.get_weights()))
    assert len(callback.train_history) == 6


def test_a_recomputed_layer_is_counted_once_or_left_out():
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        x = layers.Dense(5, name="plain")(inputs)
        with keras.RematScope("full"):
            x = layers.Dense(6, name="again")(x)
        model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
        # In graphs of TensorFlow, Keras can't train such layers.
        is_eager = BACKEND == "tensorflow"
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=is_eager)
        return model

    callback = watch("plain", "again", every_n_train_steps=1, window=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(build(), callback)
    texts = [text for text in ours(caught) if not text.startswith("In windows")]
    first = callback.train_history[0].layers
    assert first["plain"].n_states == BATCH
    if BACKEND == "torch":
        assert first["again"].n_states == BATCH
        assert texts == []
    else:
        assert list(first) == ["plain"]
        (text,) = texts
        assert text.startswith("training steps are recorded without again: they run where")


def test_mistakes_show_as_training_begins():
    with pytest.raises(NoLayerMatchedError, match="nothing"):
        fit(small(), watch("nothing"))
    with pytest.raises(ValueError, match="on takes"):
        EfficiencyCallback(on="test")


def test_a_fit_without_a_recorded_step_says_so():
    callback = watch(every_n_train_steps=13)
    with pytest.warns(TensorStateWarning, match="no training batch was recorded in this fit"):
        history = fit(small(), callback)
    assert "train_efficiency" not in history


def test_copies_go_without_the_training():
    class Copies(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            copies.append(pickle.loads(pickle.dumps(callback)))  # noqa: S301
            copies.append(copy.deepcopy(callback))

    copies, callback = [], watch()
    fit(small(), Copies(), callback)
    assert copies[-1].train_history == callback.train_history
    assert (copies[-1].training, copies[-1].on) == (None, "train")
    again = copies[0]
    fit(small(), again)
    assert again.train_history == callback.train_history


def test_a_loop_without_fit_is_left_alone():
    model, callback = small(), watch(every_n_train_steps=1)
    model.train_on_batch(X, Y)
    before = sorted(vars(model))
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_train_batch_begin(0)
    model.train_on_batch(X, Y)
    assert sorted(vars(model)) == before
    assert callback.train_history == []


def test_a_layer_that_cannot_be_counted_ends_the_fit_with_the_weights_of_the_step():
    class Complex(layers.Layer):
        def call(self, x):
            return keras.ops.view_as_complex(keras.ops.reshape(x, (-1, 2, 2)))

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.odd, self.head = Complex(name="odd"), layers.Dense(2)

        def call(self, x):
            return self.head(keras.ops.real(self.odd(x)))[:, 0]

    model = Model()
    model.compile("sgd", "mse")
    with pytest.raises(ProbeError, match="layer 'odd' could not be counted"):
        model.fit(X, Y, verbose=0, callbacks=[watch("odd", every_n_train_steps=1)])
    # The step that was made, and its weights, are there.
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 1
    assert np.isfinite(model.predict(X, verbose=0)).all()

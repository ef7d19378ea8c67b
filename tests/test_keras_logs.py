"""Who sees the Keras callback's figures: other callbacks, loggers, and the user."""

import csv
import math

import keras
import mlflow
import pytest
from keras_models import Subclassed, compiled, data, sequential
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.keras import EfficiencyCallback

X, Y = data()
X_VAL, Y_VAL = data(101, seed=4)
KEYS = ["val_aiq", "val_efficiency", "val_efficiency/conv_1", "val_efficiency/conv_2"]


def fit(callbacks, epochs=4, **options):
    keras.utils.set_random_seed(5)
    model = compiled(sequential())
    options = {"validation_data": (X_VAL, Y_VAL), "verbose": 0, **options}
    history = model.fit(X, Y, epochs=epochs, batch_size=50, callbacks=callbacks, **options)
    return model, history.history


class SeesLogs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen, self.ended = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(dict(logs))

    def on_test_end(self, logs=None):
        self.ended.append(dict(logs))


@pytest.mark.parametrize("ours_first", [True, False])
def test_every_callback_sees_the_keys_wherever_it_stands(ours_first):
    ours, other = EfficiencyCallback("Conv2D"), SeesLogs()
    _, history = fit([ours, other] if ours_first else [other, ours])
    for epoch, (logs, report) in enumerate(zip(other.seen, ours.history, strict=True)):
        assert logs["val_aiq"] == report.aiq == history["val_aiq"][epoch]
        assert logs["val_efficiency/conv_1"] == report.layers["conv_1"].efficiency
        assert other.ended[epoch]["efficiency"] == report.efficiency
    assert set(KEYS) <= set(history)


def test_reports_say_where_they_stand():
    ours = EfficiencyCallback("Conv2D")
    model, _ = fit([ours], epochs=2)
    assert [(r.epoch, r.step, r.stage) for r in ours.history] == [(0, 6, "val"), (1, 12, "val")]
    model.evaluate(X_VAL, Y_VAL, callbacks=[ours], verbose=0)
    assert (ours.last.epoch, ours.last.step, ours.last.stage) == (None, 12, "test")
    assert len(ours.history) == 3


class FallingAccuracy:
    """As an `accuracy=`: rises until the third evaluation, then falls."""

    def __init__(self):
        self.values = iter([0.3, 0.5, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2])

    def __call__(self, logs):
        return next(self.values)


@pytest.mark.parametrize("ours_first", [True, False])
def test_early_stopping_and_checkpoint_follow_the_logged_curve(ours_first, tmp_path):
    ours = EfficiencyCallback("Conv2D", accuracy=FallingAccuracy())
    others = [
        keras.callbacks.EarlyStopping("val_aiq", mode="max", patience=2),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "{epoch}-{val_aiq:.4f}.weights.h5",
            "val_aiq",
            mode="max",
            save_best_only=True,
            save_weights_only=True,
        ),
    ]
    _, history = fit([ours, *others] if ours_first else [*others, ours], epochs=8)
    curve = history["val_aiq"]
    best = curve.index(max(curve))
    assert (best, len(curve)) == (2, 5)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept[-1] == f"3-{curve[2]:.4f}.weights.h5"
    assert len(kept) == 3


def test_learning_rate_can_follow_aiq():
    ours = EfficiencyCallback("Conv2D", accuracy=FallingAccuracy())
    slower = keras.callbacks.ReduceLROnPlateau("val_aiq", mode="max", patience=1, factor=0.5)
    _, history = fit([slower, ours], epochs=6)
    assert history["learning_rate"] == pytest.approx([0.01] * 4 + [0.005, 0.0025])


def test_csv_logger_writes_the_figures(tmp_path):
    ours = EfficiencyCallback("Conv2D")
    fit([keras.callbacks.CSVLogger(tmp_path / "log.csv"), ours])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_aiq"]) for row in rows] == [report.aiq for report in ours.history]


def test_progress_bar_shows_the_figures(capsys):
    ours = EfficiencyCallback("Conv2D")
    fit([ours], epochs=1, verbose=2)
    assert f"val_aiq: {ours.last.aiq:.4f}" in capsys.readouterr().out


def test_tensorboard_has_the_curves(tmp_path):
    ours = EfficiencyCallback("Conv2D")
    fit([keras.callbacks.TensorBoard(tmp_path, write_graph=False), ours])
    # Keras puts an epoch's validation figures into a run of their own, without `val_`.
    events = EventAccumulator(str(tmp_path / "validation"))
    events.Reload()

    def curve(tag):
        return [
            (event.step, float(make_ndarray(event.tensor_proto)))
            for event in events.Tensors(f"epoch_{tag}")
        ]

    for tag, value in {
        "aiq": lambda r: r.aiq,
        "efficiency": lambda r: r.efficiency,
        "efficiency/conv_2": lambda r: r.layers["conv_2"].efficiency,
    }.items():
        expected = [(r.epoch, pytest.approx(value(r), rel=1e-6)) for r in ours.history]
        assert curve(tag) == expected


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_mlflow_has_the_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        ours = EfficiencyCallback("Conv2D")
        with mlflow.start_run() as run:
            fit([mlflow.keras.MlflowCallback(), ours])
        mlflow.flush_async_logging()
        client = mlflow.MlflowClient()
        for key in KEYS:
            logged = {m.step: m.value for m in client.get_metric_history(run.info.run_id, key)}
            assert logged == {r.epoch: r.scalars()[key] for r in ours.history}
    finally:
        mlflow.set_tracking_uri(before)


def test_evaluate_returns_what_it_returns_without_us_and_more_in_a_dict():
    ours, model = EfficiencyCallback("Conv2D"), fit([], epochs=1)[0]
    plain = model.evaluate(X_VAL, Y_VAL, verbose=0)
    assert model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours]) == plain
    more = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours], return_dict=True)
    assert [more.pop("loss"), more.pop("accuracy")] == plain
    assert more == ours.last.scalars(with_stage=False)


def test_prefix_tells_two_callbacks_apart():
    first = EfficiencyCallback("conv_1", prefix="x_", layer_metrics=False)
    second = EfficiencyCallback("Conv2D", beta=1)
    _, history = fit([first, second])
    assert history["val_x_aiq"] == [report.aiq for report in first.history]
    assert history["val_aiq"] == [report.aiq for report in second.history]
    assert first.last.layers["conv_1"] == second.last.layers["conv_1"]
    assert "val_x_efficiency/conv_1" not in history


def test_every_n_epochs_records_those_only():
    ours, other = EfficiencyCallback("Conv2D", every_n_epochs=2), SeesLogs()
    fit([ours, other], epochs=5)
    assert [report.epoch for report in ours.history] == [1, 3]
    assert ["val_aiq" in logs for logs in other.seen] == [False, True, False, True, False]
    assert all("val_accuracy" in logs for logs in other.seen)


def test_callbacks_that_record_in_different_epochs_each_see_their_layers():
    often = EfficiencyCallback("conv_1", prefix="often_")
    seldom = EfficiencyCallback("conv_2", prefix="seldom_", every_n_epochs=2)
    _, history = fit([often, seldom], epochs=4)
    assert [list(report.layers) for report in often.history] == [["conv_1"]] * 4
    assert [list(report.layers) for report in seldom.history] == [["conv_2"]] * 2
    assert len(history["val_seldom_efficiency/conv_2"]) == 2


def test_a_test_function_that_the_user_makes_anew_is_followed():
    class Model(Subclassed):
        fires = True

        def call(self, inputs):
            return super().call(inputs if self.fires else inputs * 0)

    class Switches(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.fires = False
                self.model.make_test_function(force=True)

    ours, model = EfficiencyCallback("conv_1"), compiled(Model())
    model.fit(
        X, Y, validation_data=(X_VAL, Y_VAL), epochs=4, verbose=0, callbacks=[ours, Switches()]
    )
    # Without an input all positions of a convolution are alike.
    assert [r.layers["conv_1"].n_distinct == 1 for r in ours.history] == [False, False, True, True]


def test_validation_freq_and_split_work():
    ours = EfficiencyCallback("Conv2D")
    fit([ours], validation_freq=2)
    assert [report.epoch for report in ours.history] == [1, 3]
    ours = EfficiencyCallback("conv_1")
    fit([ours], epochs=1, validation_data=None, validation_split=0.2)
    assert ours.last.layers["conv_1"].n_states == 60 * 64


def test_two_fits_with_one_callback_go_on_in_one_history():
    ours = EfficiencyCallback("Conv2D")
    fit([ours], epochs=2)
    model, _ = fit([ours], epochs=2)
    model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, callbacks=[ours])
    assert [report.epoch for report in ours.history] == [0, 1, 0, 1, 0]
    assert len({r.layers["conv_1"].n_states for r in ours.history}) == 1


def test_missing_accuracy_logs_efficiency_and_says_which_keys_there_are():
    model, ours = (
        compiled(sequential(), metrics=["sparse_categorical_crossentropy"]),
        EfficiencyCallback("Conv2D"),
    )
    with pytest.warns(TensorStateWarning) as given:
        history = model.fit(
            X, Y, validation_data=(X_VAL, Y_VAL), epochs=3, verbose=0, callbacks=[ours]
        ).history
    (given,) = [w for w in given if w.category is TensorStateWarning]
    assert "no accuracy under 'accuracy' or 'acc'" in str(given.message)
    assert "the logs have 'loss', 'sparse_categorical_crossentropy'" in str(given.message)
    assert "val_aiq" not in history
    assert history["val_efficiency"] == [report.efficiency for report in ours.history]


def test_results_are_those_that_the_model_gives_in_the_end_not_those_of_the_last_step():
    class Model(Subclassed):
        def test_step(self, data):
            return {name: value * 0 for name, value in super().test_step(data).items()}

    ours, model = EfficiencyCallback("Conv2D"), compiled(Model())
    results = model.evaluate(X, Y, verbose=0, callbacks=[ours], return_dict=True)
    hits = (model.predict(X, verbose=0).argmax(1) == Y).mean()
    assert results["accuracy"] == pytest.approx(hits)
    assert ours.last.accuracy == results["accuracy"] > 0


def test_each_fit_has_a_warning_of_its_own():
    ours, model = EfficiencyCallback("Conv2D"), compiled(sequential(), metrics=[])
    for _ in range(2):
        with pytest.warns(TensorStateWarning, match="no accuracy under") as given:
            model.fit(X, Y, validation_data=(X_VAL, Y_VAL), epochs=2, verbose=0, callbacks=[ours])
        assert [w.category for w in given].count(TensorStateWarning) == 1


def test_an_evaluation_of_its_own_within_a_fit_is_told_from_the_fits():
    ours = EfficiencyCallback("conv_1")

    class EvaluatesToo(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(X, Y, verbose=0, callbacks=[ours])

    _, history = fit([ours, EvaluatesToo()], epochs=2)
    assert [(r.stage, r.epoch) for r in ours.history] == [
        ("val", 0),
        ("test", None),
        ("val", 1),
        ("test", None),
    ]
    assert [r.layers["conv_1"].n_states // 64 for r in ours.history] == [101, 300, 101, 300]
    assert history["val_aiq"] == [r.aiq for r in ours.history if r.stage == "val"]


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_loop_of_the_users_own_is_recorded(return_dict):
    ours, other, model = EfficiencyCallback("Conv2D"), SeesLogs(), compiled(sequential())
    callbacks = keras.callbacks.CallbackList([ours, other], model=model)
    callbacks.on_test_begin()
    for start in range(0, 300, 100):
        part = slice(start, start + 100)
        results = model.test_on_batch(X[part], Y[part], return_dict=return_dict)
    logs = dict(results) if return_dict else dict(zip(("loss", "accuracy"), results, strict=True))
    callbacks.on_test_end(logs)
    assert ours.last.layers["conv_1"].n_states == 300 * 64
    assert ours.last.accuracy == logs["accuracy"]
    assert other.ended[0]["aiq"] == ours.last.aiq
    assert set(vars(model)) & {"_get_metrics_result_or_logs", "_flatten_metrics_in_order"} == set()


@pytest.mark.parametrize("name", ["val_hits", "hits"])
def test_accuracy_is_found_under_the_name_given(name):
    model = compiled(sequential(), metrics=[keras.metrics.SparseCategoricalAccuracy("hits")])
    ours = EfficiencyCallback("Conv2D", accuracy=name)
    history = model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, callbacks=[ours]).history
    assert ours.last.accuracy == history["val_hits"][0]


def test_missing_accuracy_may_be_ignored_or_an_error():
    model = compiled(sequential(), metrics=[])
    ours = EfficiencyCallback("Conv2D", missing_accuracy="ignore")
    model.evaluate(X, Y, verbose=0, callbacks=[ours])
    assert ours.last.aiq is None
    ours = EfficiencyCallback("Conv2D", missing_accuracy="raise")
    with pytest.raises(ValueError, match="aIQ can't be computed: no accuracy under"):
        model.evaluate(X, Y, verbose=0, callbacks=[ours])
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(math.log(2), abs=1)


def test_fit_without_validation_data_says_so_once_and_trains_on():
    ours = EfficiencyCallback("Conv2D")
    with pytest.warns(TensorStateWarning, match="fit has no validation data") as given:
        _, history = fit([ours], validation_data=None)
    assert [w.category for w in given].count(TensorStateWarning) == 1
    assert len(history["loss"]) == 4
    assert ours.last is None

"""Who sees the Keras callback's figures: other callbacks, loggers, and the user."""

import csv

import keras
import numpy as np
import pytest
from keras_models import X_VAL, Y_VAL, SeesLogs, X, Y, compiled, sequential, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tensorstate_callbacks.keras import EfficiencyCallback

KEYS = ["val_aiq", "val_efficiency", "val_efficiency/conv_1", "val_efficiency/conv_2"]


@pytest.mark.parametrize("ours_first", [True, False])
def test_every_callback_sees_the_keys_wherever_it_stands(ours_first):
    ours, other = EfficiencyCallback("Conv2D"), SeesLogs()
    _, history = train([ours, other] if ours_first else [other, ours])
    for epoch, (logs, report) in enumerate(zip(other.seen, ours.history, strict=True)):
        assert logs["val_aiq"] == report.aiq == history["val_aiq"][epoch]
        assert logs["val_efficiency/conv_1"] == report.layers["conv_1"].efficiency
        assert other.ended[epoch]["efficiency"] == report.efficiency
    assert set(KEYS) <= set(history)


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
    _, history = train([ours, *others] if ours_first else [*others, ours], epochs=8)
    curve = history["val_aiq"]
    best = curve.index(max(curve))
    assert (best, len(curve)) == (2, 5)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept[-1] == f"3-{curve[2]:.4f}.weights.h5"
    assert len(kept) == 3


def test_learning_rate_can_follow_aiq():
    ours = EfficiencyCallback("Conv2D", accuracy=FallingAccuracy())
    slower = keras.callbacks.ReduceLROnPlateau("val_aiq", mode="max", patience=1, factor=0.5)
    _, history = train([slower, ours], epochs=6)
    assert history["learning_rate"] == pytest.approx([0.01] * 4 + [0.005, 0.0025])


def test_csv_logger_writes_the_metrics(tmp_path):
    ours = EfficiencyCallback("Conv2D")
    train([keras.callbacks.CSVLogger(tmp_path / "log.csv"), ours])
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_aiq"]) for row in rows] == [report.aiq for report in ours.history]


def test_progress_bar_shows_the_metrics(capsys):
    ours = EfficiencyCallback("Conv2D")
    train([ours], epochs=1, verbose=2)
    assert f"val_aiq: {ours.last.aiq:.4f}" in capsys.readouterr().out


def test_tensorboard_has_the_curves(tmp_path):
    ours = EfficiencyCallback("Conv2D")
    train([keras.callbacks.TensorBoard(tmp_path, write_graph=False), ours])
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


def test_prefix_tells_two_callbacks_apart():
    first = EfficiencyCallback("conv_1", prefix="x_", layer_metrics=False)
    second = EfficiencyCallback("Conv2D", beta=1)
    _, history = train([first, second])
    assert history["val_x_aiq"] == [report.aiq for report in first.history]
    assert history["val_aiq"] == [report.aiq for report in second.history]
    assert first.last.layers["conv_1"] == second.last.layers["conv_1"]
    assert "val_x_efficiency/conv_1" not in history


@pytest.mark.parametrize("ours_first", [True, False])
def test_early_stopping_restores_the_weights_of_the_best_epoch(ours_first):
    ours = EfficiencyCallback("Conv2D", accuracy=FallingAccuracy())
    weights = []

    class Keeps(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())

    stop = keras.callbacks.EarlyStopping(
        "val_aiq", mode="max", patience=1, restore_best_weights=True
    )
    model, history = train([ours, stop, Keeps()] if ours_first else [Keeps(), stop, ours], epochs=8)
    best = history["val_aiq"].index(max(history["val_aiq"]))
    assert (best, len(weights)) == (2, 4)
    for restored, kept in zip(model.get_weights(), weights[best], strict=True):
        np.testing.assert_array_equal(restored, kept)
    assert any((a != b).any() for a, b in zip(weights[2], weights[3], strict=True))


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_fit_that_was_broken_off_goes_on_where_it_was(ours_first, tmp_path):
    def fit(callback, *others):
        keras.utils.set_random_seed(5)
        model = compiled(sequential())
        backup = keras.callbacks.BackupAndRestore(tmp_path)
        callbacks = [callback, backup] if ours_first else [backup, callback]
        options = {"batch_size": 50, "shuffle": False, "verbose": 0}
        data = {"validation_data": (X_VAL, Y_VAL), "callbacks": [*callbacks, *others]}
        return model.fit(X, Y, epochs=4, **data, **options).history

    class Breaks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise RuntimeError("power cut")

    whole, first, second = (EfficiencyCallback("Conv2D") for _ in range(3))
    fit(whole)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(first, Breaks())
    history = fit(second)
    assert [report.epoch for report in first.history] == [0, 1]
    # What is logged goes on at the epoch where training does, with the steps of all epochs.
    assert [(r.epoch, r.step) for r in second.history] == [(2, 18), (3, 24)]
    assert history["val_aiq"] == [report.aiq for report in second.history]
    together = [*first.history, *second.history]
    assert [r.aiq for r in together] == pytest.approx([r.aiq for r in whole.history], rel=2e-3)

"""Other callbacks and the loggers see what the Lightning callback logs, and can act on it."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, Curves, fit, loader, pl, trainer
from torch import nn

from tensorstate_callbacks.lightning import EfficiencyCallback

EarlyStopping, ModelCheckpoint = pl.callbacks.EarlyStopping, pl.callbacks.ModelCheckpoint
CSVLogger, TensorBoardLogger = pl.loggers.CSVLogger, pl.loggers.TensorBoardLogger

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]
# Weights stay as they are, so aIQ rises and falls with these: best in epoch 2.
ACCURACIES: list[float | None] = [0.5, 0.6, 0.9, 0.4, 0.7, 0.8, 0.8]
KEYS = ["val_aiq", "val_efficiency", "val_efficiency/net.0", "val_efficiency/net.2"]


@pytest.mark.parametrize("callback_first", [True, False])
def test_early_stopping_on_aiq_stops_where_the_curve_says(callback_first: bool) -> None:
    stop, curves = EarlyStopping("val_aiq", mode="max", patience=3), Curves()
    callbacks = [EfficiencyCallback(), curves, stop]
    order = callbacks if callback_first else callbacks[::-1]
    fit(Classifier(scripted=ACCURACIES), *order, max_epochs=len(ACCURACIES))
    curve = curves.of("val_aiq")
    assert curve.index(max(curve)) == 2
    assert stop.stopped_epoch == 2 + 3
    assert len(curve) == 6


def test_early_stopping_that_is_not_strict_counts_recorded_epochs() -> None:
    stop, curves = EarlyStopping("val_aiq", mode="max", patience=1, strict=False), Curves()
    callback = EfficiencyCallback(every_n_epochs=2)
    fit(Classifier(scripted=ACCURACIES), callback, curves, stop, max_epochs=len(ACCURACIES))
    # Recorded: 0.6, 0.4 (worse: stop).
    assert stop.stopped_epoch == 3


def test_early_stopping_that_is_strict_does_not_act_on_an_old_value() -> None:
    stop = EarlyStopping("val_aiq", mode="max")
    scripted: list[float | None] = [0.5, None, 0.9]
    callback = EfficiencyCallback(missing_accuracy="ignore")
    with pytest.raises(RuntimeError, match="metric `val_aiq` which is not available"):
        fit(Classifier(scripted=scripted), callback, stop)


def test_checkpoint_keeps_the_epoch_with_the_best_aiq(tmp_path: Path) -> None:
    keep = ModelCheckpoint(
        str(tmp_path), "{epoch}-{val_aiq:.4f}", monitor="val_aiq", mode="max", save_top_k=1
    )
    curves = Curves()
    fit(
        Classifier("epoch_end"),
        keep,
        EfficiencyCallback(),
        curves,
        max_epochs=6,
        enable_checkpointing=True,
    )
    curve = curves.of("val_aiq")
    best = curve.index(max(curve))
    assert [path.name for path in tmp_path.iterdir()] == [
        f"epoch={best}-val_aiq={curve[best]:.4f}.ckpt"
    ]
    assert keep.best_model_score is not None
    assert keep.best_model_score.item() == pytest.approx(curve[best])
    saved = torch.load(keep.best_model_path, weights_only=True)
    assert torch.equal(saved["state_dict"]["net.0.weight"], curves.weights[best]["net.0.weight"])
    (state,) = (v for k, v in saved["callbacks"].items() if k.startswith("EfficiencyCallback"))
    resumed = EfficiencyCallback()
    resumed.load_state_dict(state)
    assert resumed.last.aiq == pytest.approx(curve[best])


@pytest.mark.parametrize("run", ["validate", "test"])
def test_the_best_weights_are_evaluated_without_losing_later_epochs(
    tmp_path: Path, run: str
) -> None:
    callback = EfficiencyCallback()
    # Of the second of four epochs.
    keep = ModelCheckpoint(str(tmp_path), "{epoch}", save_top_k=-1)
    options = {"max_epochs": 4, "enable_checkpointing": True}
    fitted = fit(Classifier(), callback, keep, **options)
    seen, path = list(callback.history), tmp_path / "epoch=1.ckpt"
    assert len(seen) == 4
    getattr(fitted, run)(dataloaders=loader(VAL), ckpt_path=path)
    assert list(callback.history[:4]) == seen
    assert len(callback.history) == 5
    assert callback.last.layers == seen[1].layers != seen[3].layers
    # A callback that has seen nothing takes what the checkpoint has.
    other, same = EfficiencyCallback(), ModelCheckpoint(str(tmp_path), save_top_k=-1)
    trainer(other, same, enable_checkpointing=True).test(Classifier(), loader(VAL), ckpt_path=path)
    assert [report.aiq for report in other.history[:2]] == [report.aiq for report in seen[:2]]
    assert len(other.history) == 3


def test_learning_rate_follows_aiq() -> None:
    class Slowing(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), 1e-12)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", patience=0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "monitor": "val_aiq"},
            }

    fitted = fit(Slowing(scripted=ACCURACIES), EfficiencyCallback(), max_epochs=4)
    # Better twice, then worse once.
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-13)


def test_two_callbacks_with_prefixes_of_their_own() -> None:
    first, second = EfficiencyCallback("net.0"), EfficiencyCallback("net.2", prefix="deep_")
    model, curves = Classifier("epoch_end"), Curves()
    fit(model, first, second, curves)
    assert "on_validation_epoch_end" not in vars(model)
    for row, a, b in zip(curves.metrics, first.history, second.history, strict=True):
        assert row["val_efficiency"] == pytest.approx(a.layers["net.0"].efficiency)
        assert row["val_deep_efficiency"] == pytest.approx(b.layers["net.2"].efficiency)
        assert a.accuracy == b.accuracy == pytest.approx(row["val_acc"])
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        trainer(EfficiencyCallback("net.0"), EfficiencyCallback("net.2"))


def test_csv_logger_has_a_row_per_epoch(tmp_path: Path) -> None:
    curves = Curves()
    fit(Classifier(), EfficiencyCallback(), curves, logger=CSVLogger(tmp_path, "", ""))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_aiq"]]
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "7"), ("2", "11")]
    for key in KEYS:
        assert [float(row[key]) for row in rows] == pytest.approx(curves.of(key))


def test_tensorboard_events_hold_the_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = Curves()
    logger = TensorBoardLogger(tmp_path, "", "")
    fit(Classifier(), EfficiencyCallback(), curves, logger=logger)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(KEYS) < set(events.Tags()["scalars"])
    for key in KEYS:
        assert [event.value for event in events.Scalars(key)] == pytest.approx(curves.of(key))
        assert [event.step for event in events.Scalars(key)] == [3, 7, 11]


def test_progress_bar_shows_the_network_and_not_its_layers() -> None:
    shown: list[set[str]] = []

    class Bar(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            shown.append(set(trainer.progress_bar_metrics))

    fit(Classifier(), EfficiencyCallback(), Bar(), max_epochs=1)
    assert shown[-1] == {"val_aiq", "val_efficiency"}


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6")
def test_compiled_model_is_counted_in_full() -> None:
    torch.compiler.reset()
    plain, compiled = EfficiencyCallback(), EfficiencyCallback()
    fit(Classifier(), plain, max_epochs=1)
    model = Classifier()
    model.net = torch.compile(model.net, backend="eager")  # type: ignore[assignment]
    # Two steps of the sanity check compile the graph before any of our hooks is there.
    fit(model, compiled, max_epochs=1, num_sanity_val_steps=2)
    assert plain.history[0].layers == compiled.history[0].layers


def test_bf16_mixed_precision_is_counted() -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, precision="bf16-mixed", max_epochs=1)
    assert callback.history[0].layers["net.0"].n_states == len(VAL)


def test_manual_optimization_is_counted() -> None:
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    callback, curves = EfficiencyCallback(), Curves()
    trainer(callback, curves).fit(Manual(), loader(TRAIN), loader(VAL))
    assert [report.step for report in callback.history] == [4, 8, 12]
    assert [r.accuracy for r in callback.history] == pytest.approx(curves.of("val_acc"))

"""Lightning: what windows of recorded training batches hold, and where they are logged."""

import copy
import csv
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import QUIET, TRAIN, VAL, Classifier, fit, loader, pl, trainer
from lightning_windows import N_BATCHES, Outputs, assert_recount, watch
from own_warnings import ours
from sampling_oracle import sampled_efficiency
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.filterwarnings("ignore:In windows of training batches. Coverage"),
    pytest.mark.filterwarnings("ignore:Coverage"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
]


@pytest.mark.parametrize("group_size", [None, 3])
@pytest.mark.parametrize(("every", "window"), [(1, 1), (1, 20), (2, 3), (5, 2)])
def test_a_window_is_a_recount_of_its_steps(
    every: int, window: int, group_size: int | None
) -> None:
    outputs = Outputs()
    fit(Classifier(), outputs)
    callback = watch(every_n_train_steps=every, window=window, group_size=group_size)
    fit(Classifier(), callback)
    steps = range(every, 3 * N_BATCHES + 1, every)
    # Steps made before, as in evaluations; and epochs, counted from 0.
    assert [report.step for report in callback.train_history] == [step - 1 for step in steps]
    assert [r.epoch for r in callback.train_history] == [(s - 1) // N_BATCHES for s in steps]
    for step, report in zip(steps, callback.train_history, strict=True):
        assert list(report.layers) == ["net.0", "net.2"]
        recorded = outputs.batches[every - 1 : step : every]
        assert_recount(report, recorded[-window:], group_size)
        assert (report.stage, report.accuracy, report.aiq) == ("train", None, None)
    assert callback.history == []


def test_both_are_recorded_apart() -> None:
    both, val, train = watch(on=("val", "train")), EfficiencyCallback(), watch()
    fit(Classifier(), both)
    fit(Classifier(), val)
    fit(Classifier(), train)
    assert both.history == val.history
    assert both.last.stage == "val"
    assert both.train_history == train.train_history
    assert len(both.train_history) == 6


def test_loggers_get_the_window_at_its_step(tmp_path: Path) -> None:
    tables = [
        import_logger("CSVLogger")(tmp_path, name="a", version=0),
        import_logger("CSVLogger")(tmp_path, name="b", version=0, prefix="x"),
    ]
    callback = watch(prefix="w_", layer_metrics=["efficiency", "dead"])
    # Lightning's own metrics of steps: every fifth one.
    fit(Classifier(), callback, logger=tables, log_every_n_steps=5)
    for name, lead in (("a", ""), ("b", "x-")):
        text = (tmp_path / name / "version_0" / "metrics.csv").read_text()
        rows = [
            row for row in csv.DictReader(text.splitlines()) if row[f"{lead}train_w_efficiency"]
        ]
        assert [int(row["step"]) for row in rows] == [1, 3, 5, 7, 9, 11]
        for row, report in zip(rows, callback.train_history, strict=True):
            scalars = report.scalars("w_", layer_metrics=["efficiency", "dead"])
            assert {*scalars} == {
                "train_w_efficiency",
                *(f"train_w_{m}/{n}" for m in ("efficiency", "dead") for n in ("net.0", "net.2")),
            }
            assert {key: float(row[lead + key]) for key in scalars} == scalars


def test_tensorboard_shows_the_window_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = import_logger("TensorBoardLogger")(tmp_path)
    callback = watch(on=("val", "train"))
    fit(Classifier(), callback, logger=board, log_every_n_steps=5)
    events = EventAccumulator(board.log_dir)
    events.Reload()
    found = events.Scalars("train_efficiency")
    assert [event.step for event in found] == [1, 3, 5, 7, 9, 11]
    expected = [report.efficiency for report in callback.train_history]
    assert [event.value for event in found] == pytest.approx(expected, rel=1e-6)
    assert "train_efficiency/net.0" in events.Tags()["scalars"]
    assert "train_aiq" not in events.Tags()["scalars"]


def import_logger(name: str) -> Any:
    return getattr(pl.loggers, name)


class Sees(pl.Callback):
    def __init__(self) -> None:
        self.values: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        value = trainer.callback_metrics.get("train_efficiency")
        self.values.append(None if value is None else value.item())


def test_callbacks_see_the_latest_window() -> None:
    callback, sees = watch(every_n_train_steps=5), Sees()
    fitted = fit(Classifier(), callback, sees)
    first, second = (report.efficiency for report in callback.train_history)
    assert sees.values[:4] == [None] * 4
    assert sees.values[4:] == pytest.approx([first] * 5 + [second] * 3, rel=1e-6)
    assert fitted.progress_bar_metrics["train_efficiency"] == pytest.approx(second, rel=1e-6)
    # A further fit of the same Trainer begins without.
    fitted.fit_loop.max_epochs = 4
    fitted.fit(Classifier(), loader(TRAIN), loader(VAL))
    assert sees.values[12] is None


def test_checkpoints_and_stopping_follow_the_window(tmp_path: Path) -> None:
    checkpoints = pl.callbacks.ModelCheckpoint(
        tmp_path,
        "{step}",
        monitor="train_efficiency",
        mode="max",
        every_n_train_steps=4,
        save_top_k=-1,
    )
    stop = pl.callbacks.EarlyStopping(
        "train_efficiency", mode="max", patience=1, check_on_train_epoch_end=True, min_delta=1.0
    )
    callback = watch()
    fit(Classifier(), checkpoints, stop, callback, enable_checkpointing=True, max_epochs=9)
    assert len(checkpoints.best_k_models) == 2
    second, _, fourth = callback.train_history[1:]
    scores = [value.item() for value in checkpoints.best_k_models.values()]
    assert scores == pytest.approx([second.efficiency, fourth.efficiency], rel=1e-6)


def test_a_fit_that_goes_on_from_a_checkpoint_goes_on_counting_batches(tmp_path: Path) -> None:
    outputs, through = Outputs(), watch(every_n_train_steps=3)
    fit(Classifier(), through, outputs)
    path = tmp_path / "last.ckpt"
    first = fit(Classifier(), watch(every_n_train_steps=3), max_epochs=2)
    first.save_checkpoint(path)
    again = watch(every_n_train_steps=3)
    fitted = trainer(again)
    fitted.fit(Classifier(), loader(TRAIN), loader(VAL), ckpt_path=path)
    # Of eight batches the sixth was the last one recorded; the window begins anew.
    assert [report.step for report in again.train_history] == [8, 11]
    assert_recount(again.train_history[0], [outputs.batches[8]])
    assert_recount(again.train_history[1], [outputs.batches[8], outputs.batches[11]])
    assert [report.step for report in through.train_history] == [2, 5, 8, 11]


def test_accumulated_batches_are_counted_one_by_one() -> None:
    outputs, callback = Outputs(), watch()
    fit(Classifier(), outputs, accumulate_grad_batches=4)
    fit(Classifier(), callback, accumulate_grad_batches=4)
    # One step for four batches.
    assert [report.step for report in callback.train_history] == [0, 0, 1, 1, 2, 2]
    assert_recount(callback.train_history[-1], outputs.batches[1::2][-3:])


@pytest.mark.parametrize("options", [{"positions": 2}, {"max_memory": 10_000}], ids=str)
def test_positions_and_memory_of_windows(options: dict[str, Any]) -> None:
    class Convolving(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 40, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + self.conv(x[:, None]).mean(1))

    outputs = Outputs("conv")
    fit(Convolving(), outputs)
    callback = watch(attach_to="conv", **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TensorStateWarning)
        fit(Convolving(), callback)
    told = ours(w for w in caught if "In windows" not in str(w.message))
    short = "max_memory" in options
    if short:
        (text,) = told
        assert "conv (1 of 6)" in text
        assert text.endswith("or give more max_memory, or a smaller window")
    else:
        assert told == []
    last = [np.moveaxis(batch["conv"], 1, -1) for batch in outputs.batches[1::2][-3:]]
    efficiency, n = sampled_efficiency(np.concatenate(last), (6,), None, 1 if short else 2)
    layer = callback.train_history[-1].layers["conv"]
    assert layer.efficiency == pytest.approx(efficiency, rel=1e-12)
    assert layer.n_states == n


def test_a_failing_logger_costs_a_warning() -> None:
    class Failing(import_logger("CSVLogger")):  # type: ignore[misc]
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            if "train_efficiency" in metrics:
                raise OSError("the disk is full")

    callback = watch()
    with pytest.warns(TensorStateWarning, match="Failing got no train_efficiency.*disk is full"):
        fit(Classifier(), callback, logger=Failing("."))
    assert len(callback.train_history) == 6


def test_copies_keep_the_reports_and_nothing_of_the_window() -> None:
    copies: list[EfficiencyCallback] = []

    class Copying(pl.Callback):
        def on_before_backward(self, *_: Any) -> None:
            copies.append(copy.deepcopy(callback))
            copies.append(pickle.loads(pickle.dumps(callback)))  # noqa: S301

    callback = watch(every_n_train_steps=1)
    fit(Classifier(), callback, Copying(), max_epochs=1)
    assert [len(made.train_history) for made in copies] == [0, 0, 1, 1, 2, 2, 3, 3]
    for made in copies:
        without = [report.without_states() for report in made.train_history]
        assert without == [r.without_states() for r in callback.train_history][: len(without)]
        assert (len(made._window), made._batch) == (0, None)
    n_before = len(callback.train_history)
    fit(Classifier(), copies[-1], max_epochs=1)
    assert len(copies[-1].train_history) == 3 + N_BATCHES
    assert len(callback.train_history) == n_before


def test_batches_of_other_sizes_are_counted_as_they_are() -> None:
    dataset = TensorDataset(*TRAIN.tensors)
    callback = watch(every_n_train_steps=1, window=2)
    trainer(callback).fit(Classifier(), DataLoader(dataset, 24))
    n_states = [report.layers["net.0"].n_states for report in callback.train_history]
    assert n_states == [24, 48, 40, 40, 48, 40, 40, 48, 40]

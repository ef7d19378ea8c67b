"""What the Lightning callback adds to the runs of TensorBoardLogger."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_folder import (
    LAYERS,
    NETWORK,
    BoardFolder,
    drawn,
    event_files,
    layout_of,
    layouts,
    pictures,
    read_run,
)
from lightning_models import QUIET, VAL, Classifier, fit, loader, pl, trainer

from tensorstate_callbacks import MissingExtraError, TensorStateWarning
from tensorstate_callbacks.display.history_plots import plot_heat_map
from tensorstate_callbacks.display.plots import plot_states
from tensorstate_callbacks.lightning import EfficiencyCallback

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    # What it says of the few samples here is not what these tests are about.
    pytest.mark.filterwarnings("ignore:Coverage is below"),
]
OWN = {"Mine": {"Loss": ["Multiline", ["train_loss"]]}}


def logger(folder: Path, version: str = "run", **options: Any) -> Any:
    return pl.loggers.TensorBoardLogger(folder, name="", version=version, **options)


def values(report: Any, key: str) -> Any:
    return pytest.approx([getattr(r, key) for r in report], rel=1e-6)


def test_one_chart_lays_efficiency_over_accuracy_and_one_the_layers(tmp_path: Path) -> None:
    callback = EfficiencyCallback()
    fit(Classifier(), callback, logger=logger(tmp_path))
    shown = BoardFolder(tmp_path)
    accuracy = r"val_acc(_epoch)?(/dataloader_idx_\d+)?$"
    assert shown.layout() == {
        "Efficiency": {
            NETWORK: ["val_efficiency$", "val_aiq$", accuracy],
            LAYERS: ["val_efficiency/.+"],
        }
    }
    history = callback.history
    assert shown.curves("Efficiency", NETWORK) == {
        ("run", "val_acc"): values(history, "accuracy"),
        ("run", "val_efficiency"): values(history, "efficiency"),
        ("run", "val_aiq"): values(history, "aiq"),
    }
    assert shown.curves("Efficiency", LAYERS) == {
        ("run", f"val_efficiency/{name}"): values([r.layers[name] for r in history], "efficiency")
        for name in ("net.0", "net.2")
    }


def test_the_layout_is_written_once_and_into_the_loggers_own_file(tmp_path: Path) -> None:
    fit(Classifier(), EfficiencyCallback(), logger=logger(tmp_path))
    assert len(layouts(tmp_path / "run")) == 1
    assert event_files(tmp_path) == {"run": 1}


def test_what_lightning_writes_stays_the_same(tmp_path: Path) -> None:
    for name in ("with", "without"):
        callback = EfficiencyCallback(log_extras="charts" if name == "with" else None)
        fit(Classifier(), callback, logger=logger(tmp_path, name))
    written = {name: read_run(tmp_path / name) for name in ("with", "without")}
    assert len(written["with"].pop("custom_scalars__config__")) == 1
    assert written["with"] == written["without"]
    assert len(written["with"]["val_efficiency/net.0"]) == 3


def test_several_callbacks_share_the_layout(tmp_path: Path) -> None:
    second = EfficiencyCallback("net.0", prefix="x_", beta=1)
    fit(Classifier(), EfficiencyCallback(), second, logger=logger(tmp_path))
    shown = BoardFolder(tmp_path)
    assert list(shown.layout()) == ["Efficiency", "Efficiency (x_)"]
    assert shown.curves("Efficiency (x_)", NETWORK)["run", "val_x_aiq"] == values(
        second.history, "aiq"
    )
    assert list(shown.curves("Efficiency (x_)", LAYERS)) == [("run", "val_x_efficiency/net.0")]
    assert len(shown.curves("Efficiency", LAYERS)) == 2


def test_a_loggers_own_prefix_is_in_the_tags(tmp_path: Path) -> None:
    fit(Classifier(), EfficiencyCallback(), logger=logger(tmp_path, prefix="a.b"))
    shown = BoardFolder(tmp_path)
    assert shown.layout()["Efficiency"][NETWORK][0] == r"a\.b\-val_efficiency$"
    assert [tag for _, tag in shown.curves("Efficiency", NETWORK)] == [
        "a.b-val_acc",
        "a.b-val_aiq",
        "a.b-val_efficiency",
    ]
    assert len(shown.curves("Efficiency", LAYERS)) == 2


class LogsBoth(Classifier):
    """Logs its accuracy by step and by epoch."""

    def evaluation_step(self, stage: str, batch: Any) -> None:
        right = self(batch[0]).argmax(1) == batch[1]
        accuracy = right.float().mean()
        self.log(f"{stage}_acc", accuracy, on_step=True, on_epoch=True, batch_size=len(batch[1]))


def test_an_accuracy_that_is_logged_by_step_too_is_drawn_by_epoch(tmp_path: Path) -> None:
    callback = EfficiencyCallback()
    fit(LogsBoth(), callback, logger=logger(tmp_path))
    curves = BoardFolder(tmp_path).curves("Efficiency", NETWORK)
    assert curves["run", "val_acc_epoch"] == values(callback.history, "accuracy")
    assert len(curves) == 3


def test_an_accuracy_of_several_dataloaders_is_drawn(tmp_path: Path) -> None:
    callback, model = EfficiencyCallback(dataloader_idx=1), Classifier()
    loaders = [loader(VAL), loader(VAL, 7)]
    trainer(callback, logger=logger(tmp_path), max_epochs=2).fit(model, loader(VAL), loaders)
    curves = BoardFolder(tmp_path).curves("Efficiency", NETWORK)
    accuracies = curves["run", "val_acc/dataloader_idx_1"]
    assert accuracies == values(callback.history, "accuracy")


@pytest.mark.parametrize("accuracy", ["val_acc", lambda logs: logs["val_acc"]])
def test_an_accuracy_that_is_computed_is_drawn_nowhere(tmp_path: Path, accuracy: Any) -> None:
    fit(Classifier(), EfficiencyCallback(accuracy=accuracy), logger=logger(tmp_path))
    curves = BoardFolder(tmp_path).curves("Efficiency", NETWORK)
    assert (("run", "val_acc") in curves) is not callable(accuracy)
    assert ("run", "val_aiq") in curves


def own_layout(at: str) -> pl.Callback:
    """A callback that writes a layout as Lightning's users do."""

    class Writes(pl.Callback):
        pass

    def write(self: Any, trainer: Any, *args: Any) -> None:
        trainer.logger.experiment.add_custom_scalars(OWN)

    setattr(Writes, at, write)
    return Writes()


@pytest.mark.parametrize("at", ["on_fit_start", "on_train_end"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_layout_of_the_users_own_is_kept(tmp_path: Path, at: str, order: int) -> None:
    callbacks = [EfficiencyCallback(), own_layout(at)]
    fit(Classifier(), *callbacks[::order], logger=logger(tmp_path))
    layout = BoardFolder(tmp_path).layout()
    assert list(layout) == ["Mine", "Efficiency"]
    assert layout["Mine"] == {"Loss": ["train_loss"]}
    assert list(layout["Efficiency"]) == [NETWORK, LAYERS]


def test_a_layout_without_ours_is_left_alone(tmp_path: Path) -> None:
    board = logger(tmp_path)
    fit(Classifier(), EfficiencyCallback(log_extras=None), own_layout("on_fit_start"), logger=board)
    assert layouts(tmp_path / "run") == [layout_of({"Mine": {"Loss": ["train_loss"]}})]


def test_a_second_fit_in_the_run_finds_its_charts_there(tmp_path: Path) -> None:
    for prefix in ("", "", "x_"):
        fit(Classifier(), EfficiencyCallback(prefix=prefix), logger=logger(tmp_path))
    assert [[c.title for c in layout.category] for layout in layouts(tmp_path / "run")] == [
        ["Efficiency"],
        ["Efficiency", "Efficiency (x_)"],
    ]


def test_each_board_of_a_fit_is_laid_out_and_no_other_logger(tmp_path: Path) -> None:
    boards = [logger(tmp_path, "a"), pl.loggers.CSVLogger(tmp_path, "csv"), logger(tmp_path, "b")]
    fit(Classifier(), EfficiencyCallback(), logger=boards)
    assert [len(layouts(tmp_path / run)) for run in "ab"] == [1, 1]
    assert event_files(tmp_path) == {"a": 1, "b": 1}


def test_runs_side_by_side_share_the_charts(tmp_path: Path) -> None:
    for version in ("a", "b"):
        fit(Classifier(), EfficiencyCallback(), logger=logger(tmp_path, version))
    shown = BoardFolder(tmp_path)
    assert list(shown.layout()["Efficiency"]) == [NETWORK, LAYERS]
    assert {run for run, _ in shown.curves("Efficiency", LAYERS)} == {"a", "b"}


def test_without_a_board_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Classifier(), EfficiencyCallback())
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_drawn_with_each_recorded_epoch(tmp_path: Path) -> None:
    callback = EfficiencyCallback(log_extras="figures")
    options = {"max_epochs": 2, "val_check_interval": 2}
    fit(Classifier(), callback, logger=logger(tmp_path), **options)
    # Two passes in each epoch of four batches: the later one is the epoch's.
    history = callback.history
    assert [report.step for report in history] == [2, 4, 6, 8]
    for name, figures in [
        ("efficiency_heat_map", [plot_heat_map(history[:n]) for n in (2, 4)]),
        ("rank_abundance", [plot_states(report) for report in history[1::2]]),
    ]:
        shown = pictures(tmp_path / "run", f"val_{name}")
        assert [step for step, _ in shown] == [4, 8]
        for (_, pixels), figure in zip(shown, figures, strict=True):
            assert min(pixels.shape[:2]) > 200
            # SummaryWriter leaves out the alpha channel.
            np.testing.assert_array_equal(pixels, drawn(figure)[..., :3])


def test_pictures_without_a_board_are_said_once_to_be_missing(tmp_path: Path) -> None:
    callback, csv = EfficiencyCallback(log_extras="figures"), pl.loggers.CSVLogger(tmp_path)
    with pytest.warns(TensorStateWarning, match="none: give a TensorBoardLogger") as caught:
        fit(Classifier(), callback, logger=csv)
    assert len([w for w in caught if "draws into TensorBoard" in str(w.message)]) == 1
    assert len(callback.history) == 3


def test_a_missing_matplotlib_is_said_as_fit_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = Classifier()
    with pytest.raises(MissingExtraError, match=r'log_extras="figures"\) needs.*callbacks\[plot\]'):
        fit(model, EfficiencyCallback(log_extras="figures"), logger=logger(tmp_path))
    assert model.n_forward == 0

"""Whatever fails in MLflow's tracker costs a fit one warning, which says where all reports are."""

import os
import tempfile
import warnings
from pathlib import Path

import pytest
from reports import history
from test_mlflow_answers import server
from test_whole_files import no_file_longer_than

from tensorstate_callbacks import History, TensorStateWarning
from tensorstate_callbacks.loggers import mlflow as mlflow_tracker
from tensorstate_callbacks.loggers import mlflow_run
from tensorstate_callbacks.loggers.mlflow import MlflowTracker
from tensorstate_callbacks.loggers.mlflow_run import MlflowRun, RunPlace
from tensorstate_callbacks.loggers.tracker import Trackers
from tensorstate_callbacks.recording.settings import Settings

__all__ = ["server"]
pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_run, "END_WAIT_SECONDS", 60)
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def fit(find_run, logs=None):
    """Track a fit of two epochs; return its warnings."""
    mlflow_run.END_WAIT_SECONDS = 60  # the server answers; fixtures put back what it was
    trackers = Trackers([MlflowTracker(find_run, log_metrics=True, versions={})])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TensorStateWarning)
        trackers.begin(Settings(), ["conv", "fc"])
        for epoch, report in enumerate(history(2)):
            trackers.add(report)
            trackers.epoch(epoch, logs or {"val_aiq": report.aiq})
        trackers.end()
    return [str(w.message) for w in said if w.category is TensorStateWarning]


def saved(folder):
    """Return the history that the only file of a folder holds, for its owner only."""
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    return path, History.load(path)


def raising(error):
    def fails(*args, **kwargs):
        raise error

    return fails


class BrokenFigure:
    """A figure whose drawing fails, in the thread that sends it."""

    savefig = raising(ValueError("mathematics"))


@pytest.mark.parametrize("draw", [raising(ValueError("no $ here")), lambda history: BrokenFigure()])
def test_a_picture_that_fails_costs_a_warning_and_nothing_else(server, monkeypatch, tmp_path, draw):
    monkeypatch.setattr(mlflow_tracker, "plot_history", draw)
    (message,) = fit(lambda: RunPlace(server.uri, server.run_id))
    assert "doesn't have everything of this fit" in message
    path, kept = saved(tmp_path / "here")
    assert str(path) in message
    assert kept == history(2)
    assert server.got.count("val_aiq") == 2
    assert "layers.json" in server.got


@pytest.mark.parametrize(
    ("owner", "name"),
    [(MlflowRun, name) for name in ("share", "log_params", "log_metrics", "log_table")],
)
def test_whatever_raises_costs_one_warning_and_no_report(
    server, monkeypatch, tmp_path, owner, name
):
    monkeypatch.setattr(owner, name, raising(OSError(28, "No space left on device")))
    (message,) = fit(lambda: RunPlace(server.uri, server.run_id))
    assert "No space left on device" in message
    path, kept = saved(tmp_path / "here")
    assert str(path) in message
    assert kept == history(2)


def test_a_run_that_cannot_be_asked_for_costs_one_warning(tmp_path):
    (message,) = fit(raising(FileNotFoundError(2, "the folder is gone")))
    assert "the folder is gone" in message
    assert saved(tmp_path / "here")[1] == history(2)


def test_a_working_folder_that_is_gone_costs_one_warning(tmp_path):
    os.rmdir(tmp_path / "here")
    (message,) = fit(raising(OSError("no")))
    path, kept = saved(tmp_path / "temporary")
    assert str(path) in message
    assert kept == history(2)


@pytest.mark.parametrize("has_temporary", [True, False])
def test_a_full_disk_costs_one_warning_and_leaves_no_empty_files(
    monkeypatch, tmp_path, has_temporary
):
    if not has_temporary:
        monkeypatch.setattr(tempfile, "gettempdir", raising(FileNotFoundError("none")))
    with no_file_longer_than(100):
        (message,) = fit(raising(OSError("no")))
    assert "could not be written to a file" in message
    assert "callback.history has them" in message
    for folder in ("here", "temporary"):
        assert list(Path(tmp_path, folder).iterdir()) == []


def test_logs_that_are_no_numbers_are_left_out(server):
    class Odd:
        def __float__(self):
            raise ZeroDivisionError

    said = fit(
        lambda: RunPlace(server.uri, server.run_id),
        {"odd": Odd(), "huge": 10**400, "text": "1", "none": None, "val_aiq": 0.5},
    )
    assert said == []
    assert {name for name in server.got if not name.startswith("efficiency.")} == {
        "val_aiq",
        "layers.json",
        "history.png",
    }

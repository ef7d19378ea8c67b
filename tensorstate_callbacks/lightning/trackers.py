"""Find what the fit of a Trainer is logged to: TensorBoard, MLflow."""

import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from tensorstate_callbacks.lightning.evaluation import is_fast_dev_run
from tensorstate_callbacks.loggers.mlflow import MlflowTracker, active_run
from tensorstate_callbacks.loggers.mlflow_run import RunPlace
from tensorstate_callbacks.loggers.tensorboard import (
    TensorBoardTracker,
    check_drawing,
    layout_as_dict,
    warn_of_no_board,
)
from tensorstate_callbacks.loggers.tracker import Tracker, Trackers
from tensorstate_callbacks.recording.accuracy import accuracy_keys
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.reports.report import EfficiencyReport

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from matplotlib.figure import Figure
    from pytorch_lightning.loggers import Logger, TensorBoardLogger

_FABRICS = ("lightning_fabric.loggers.tensorboard", "lightning.fabric.loggers.tensorboard")
# Lightning's own ends of tags: of what is logged by step too, and of several dataloaders.
_ENDS = r"(_epoch)?(/dataloader_idx_\d+)?$"


def find_trackers(trainer: "pl.Trainer", settings: Settings) -> Trackers:
    """Return the trackers of one fit; none on other processes than the first.

    Args:
        trainer: The Trainer.
        settings: What the callback was given.

    Raises:
        MissingExtraError: Figures are asked for, and Matplotlib is not installed.
    """
    if settings.log_extras is None or not trainer.is_global_zero or is_fast_dev_run(trainer):
        return Trackers()
    return Trackers.found(_find(trainer, settings))


def _find(trainer: "pl.Trainer", settings: Settings) -> Iterable[Tracker]:
    boards = [logger for logger in trainer.loggers if _is_board(logger)]
    if settings.log_extras == "figures" and not boards:
        warn_of_no_board("a TensorBoardLogger to the Trainer")
    if boards:
        check_drawing(settings)
    yield from (TensorBoardTracker(LightningBoardRun(board)) for board in boards)
    yield from _mlflow_trackers(trainer)


def _mlflow_trackers(trainer: "pl.Trainer") -> Iterable[MlflowTracker]:
    """Yield a tracker for the run of each MLFlowLogger.

    Where there is none, one for the run that autologging logs to, or that the user started. The
    metrics of that last one are logged by nobody else.
    """
    name = next(kind for kind in type(trainer).__mro__ if kind.__name__ == "Trainer").__module__
    package = name.partition(".trainer")[0]
    versions = {package: sys.modules[package].__version__, "torch": torch.__version__}
    found = [
        partial(_logger_run, logger)
        for logger in trainer.loggers
        if _is_a(logger, "MLFlowLogger", "loggers.mlflow")
    ] or [
        partial(_autologged_run, callback)
        # Set by a function of the Trainer's __init__: its class declares none.
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if _is_a(callback, "__MlflowPLCallback", "mlflow.pytorch._lightning_autolog")
    ]
    for find_run in found:
        yield MlflowTracker(find_run, log_metrics=False, versions=versions)
    if not found:
        yield MlflowTracker(active_run, log_metrics=True, versions=versions)


class LightningBoardRun:
    """The run of a TensorBoardLogger; see `loggers.tensorboard.BoardRun`.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: "TensorBoardLogger") -> None:
        self._logger = logger
        # A logger's own prefix, which it puts before all keys.
        prefix = logger._prefix
        self._lead = f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""

    @property
    def folder(self) -> str:
        """Folder of the run's event files, or its URL."""
        return str(self._logger.log_dir)

    def tag(self, key: str) -> str:
        """Return the tag that Lightning writes a metric under, whose key has no stage before it."""
        return self._lead + safe_key(f"val_{key}")

    def accuracy(self, settings: Settings, logs: Mapping[str, Any]) -> str | None:
        """Return the accuracy's tag as a regular expression; None where none is logged."""
        if callable(settings.accuracy):
            return None
        plain = {re.sub(_ENDS, "", key) for key in logs}
        keys = accuracy_keys(settings.accuracy, "val")
        key = next((key for key in keys if key in logs or key in plain), None)
        return None if key is None else re.escape(self._lead + re.sub(_ENDS, "", key)) + _ENDS

    def step(self, epoch: int, report: EfficiencyReport) -> int:
        """Return the step at which Lightning writes the scalars of a report."""
        return epoch if report.step is None else report.step

    def write_layout(self, layout: Any) -> None:
        """Write a layout of charts into the file that Lightning writes into."""
        self._logger.experiment.add_custom_scalars(layout_as_dict(layout))

    # A writer that is closed opens a new file, later than the other's.
    write_layout_last = write_layout

    def write_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Write a figure into the file that Lightning writes into."""
        self._logger.experiment.add_figure(tag, figure, step)

    def flush(self) -> None:
        """See to it that everything written is in the file."""
        self._logger.experiment.flush()


def _is_board(logger: "Logger") -> TypeGuard["TensorBoardLogger"]:
    """Tell whether it is a TensorBoardLogger, under either of Lightning's names."""
    return any(
        base.__name__ == "TensorBoardLogger" and base.__module__ in _FABRICS
        for base in type(logger).__mro__
    )


def _is_a(instance: Any, name: str, module: str) -> bool:
    kinds = type(instance).__mro__
    return any(kind.__name__ == name and kind.__module__.endswith(module) for kind in kinds)


def _logger_run(logger: Any) -> RunPlace:
    return RunPlace(logger.experiment.tracking_uri, logger.run_id)


def _autologged_run(callback: Any) -> RunPlace:
    return RunPlace(sys.modules["mlflow"].get_tracking_uri(), callback.run_id)

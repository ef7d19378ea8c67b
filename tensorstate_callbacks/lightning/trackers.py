"""Find what the fit of a Trainer is logged to: TensorBoard, MLflow."""

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch

from tensorstate_callbacks.lightning.tensorboard_run import LightningBoardRun, is_board
from tensorstate_callbacks.loggers.mlflow import MlflowTracker, active_run
from tensorstate_callbacks.loggers.mlflow_run import RunPlace
from tensorstate_callbacks.loggers.tensorboard import (
    TensorBoardTracker,
    check_drawing,
    warn_of_no_board,
)
from tensorstate_callbacks.loggers.tracker import Tracker, Trackers
from tensorstate_callbacks.recording.settings import Settings


def find_trackers(trainer: Any, settings: Settings) -> Trackers:
    """Return the trackers of one fit; none on other processes than the first.

    Args:
        trainer: The Trainer.
        settings: What the callback was given.

    Raises:
        MissingExtraError: Figures are asked for, and Matplotlib is not installed.
    """
    if settings.log_extras is None or not trainer.is_global_zero or trainer.fast_dev_run:
        return Trackers()
    return Trackers(list(_find(trainer, settings)))


def _find(trainer: Any, settings: Settings) -> Iterable[Tracker]:
    boards = [logger for logger in trainer.loggers if is_board(logger)]
    if settings.log_extras == "figures" and not boards:
        warn_of_no_board("a TensorBoardLogger to the Trainer")
    if boards:
        check_drawing(settings)
    yield from (TensorBoardTracker(LightningBoardRun(board)) for board in boards)
    yield from _mlflow_trackers(trainer)


def _mlflow_trackers(trainer: Any) -> Iterable[MlflowTracker]:
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
        for callback in trainer.callbacks
        if _is_a(callback, "__MlflowPLCallback", "mlflow.pytorch._lightning_autolog")
    ]
    for find_run in found:
        yield MlflowTracker(find_run, log_metrics=False, versions=versions)
    if not found:
        yield MlflowTracker(active_run, log_metrics=True, versions=versions)


def _is_a(instance: Any, name: str, module: str) -> bool:
    kinds = type(instance).__mro__
    return any(kind.__name__ == name and kind.__module__.endswith(module) for kind in kinds)


def _logger_run(logger: Any) -> RunPlace:
    return RunPlace(logger.experiment.tracking_uri, logger.run_id)


def _autologged_run(callback: Any) -> RunPlace:
    return RunPlace(sys.modules["mlflow"].get_tracking_uri(), callback.run_id)

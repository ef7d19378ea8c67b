"""A Trainer in; the trackers of what its fit is followed with, out."""

from collections.abc import Iterable
from typing import Any

from tensorstate_callbacks.lightning.mlflow_runs import mlflow_trackers
from tensorstate_callbacks.lightning.tensorboard_run import LightningBoardRun, is_board
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
    yield from mlflow_trackers(trainer)

"""The callback list of a fit in; the trackers of what that fit is followed with, out."""

import weakref
from collections.abc import Iterable
from typing import Any

import keras

from tensorstate_callbacks.keras.mlflow_runs import mlflow_tracker
from tensorstate_callbacks.keras.tensorboard_run import KerasBoardRun
from tensorstate_callbacks.loggers.tensorboard import TensorBoardTracker, warn_of_no_board
from tensorstate_callbacks.loggers.tracker import Tracker, Trackers
from tensorstate_callbacks.recording.settings import Settings


def find_trackers(callback_list: Any, settings: Settings) -> Trackers:
    """Return the trackers of one fit.

    Args:
        callback_list: Keras's list of the fit's callbacks; None where it isn't known.
        settings: What the callback was given.
    """
    if settings.log_extras is None:
        return Trackers()
    callbacks = [] if callback_list is None else callback_list.callbacks
    trackers = Trackers(list(_find(callbacks, settings)))
    if callback_list is not None:
        # Keras tells no callback that fit ended in an exception.
        weakref.finalize(callback_list, trackers.end)
    return trackers


def _find(callbacks: list[keras.callbacks.Callback], settings: Settings) -> Iterable[Tracker]:
    boards = [item for item in callbacks if isinstance(item, keras.callbacks.TensorBoard)]
    if settings.log_extras == "figures" and not boards:
        warn_of_no_board("a keras.callbacks.TensorBoard beside this callback")
    yield from (TensorBoardTracker(KerasBoardRun(board)) for board in boards)
    yield mlflow_tracker(callbacks)

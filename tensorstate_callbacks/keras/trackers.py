"""Find what the fit of a model is logged to: TensorBoard, MLflow."""

import weakref
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import keras

from tensorstate_callbacks.keras.tensorboard_run import KerasBoardRun
from tensorstate_callbacks.loggers.mlflow import MlflowTracker, active_run
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


def _find(callbacks: Sequence[keras.callbacks.Callback], settings: Settings) -> Iterable[Tracker]:
    boards = [item for item in callbacks if isinstance(item, keras.callbacks.TensorBoard)]
    if settings.log_extras == "figures" and not boards:
        warn_of_no_board("a keras.callbacks.TensorBoard beside this callback")
    yield from (TensorBoardTracker(KerasBoardRun(board)) for board in boards)
    yield _mlflow_tracker(callbacks)


def _mlflow_tracker(callbacks: Sequence[keras.callbacks.Callback]) -> MlflowTracker:
    """Return the tracker of the run that the user started, or starts while the fit goes on."""
    # MLflow's own callback, which autologging adds, logs all that is in the logs of an epoch.
    logged = any(
        getattr(callback, "log_every_epoch", False)
        for callback in callbacks
        for kind in type(callback).__mro__
        if kind.__name__ == "MlflowCallback" and kind.__module__.startswith("mlflow.")
    )
    backend = keras.backend.backend()
    versions = {"keras": keras.__version__, backend: import_module(backend).__version__}
    return MlflowTracker(active_run, log_metrics=not logged, versions=versions)

"""Find what the fit of a model is logged to, and write into the run of Keras's TensorBoard."""

import contextlib
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.mlflow import MlflowTracker, active_run
from tensorstate_callbacks.loggers.tensorboard import TensorBoardTracker, exactly, warn_of_no_board
from tensorstate_callbacks.loggers.tracker import Tracker, Trackers
from tensorstate_callbacks.recording.accuracy import accuracy_keys
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.reports.report import EfficiencyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def find_trackers(callback_list: Any, settings: Settings) -> Trackers:
    """Return the trackers of one fit.

    Args:
        callback_list: Keras's list of the fit's callbacks; None where it isn't known.
        settings: What the callback was given.
    """
    if settings.log_extras is None:
        return Trackers()
    callbacks = [] if callback_list is None else callback_list.callbacks
    trackers = Trackers.found(_find(callbacks, settings))
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


class KerasBoardRun:
    """The run `validation` of a TensorBoard callback; see `loggers.tensorboard.BoardRun`.

    What is written goes through the callback's own writer, private though it is.
    A file beside its own would be later in order, and TensorBoard, where it reads one file of a run
    after the other, would no longer see what Keras adds to the first.

    Args:
        board: The callback.
    """

    def __init__(self, board: keras.callbacks.TensorBoard) -> None:
        self._board = board

    @property
    def folder(self) -> str:
        """Folder of the run's event files, or its URL."""
        return os.path.join(str(self._board.log_dir), "validation")

    def tag(self, key: str) -> str:
        """Return the tag that Keras writes a metric under, whose key has no `val_` before it."""
        return f"epoch_{safe_key(key)}"

    def accuracy(self, settings: Settings, logs: Mapping[str, Any]) -> str | None:
        """Return the accuracy's tag as a regular expression; None where none is logged."""
        if callable(settings.accuracy):
            return None
        validation = {key.removeprefix("val_") for key in logs if key.startswith("val_")}
        keys = accuracy_keys(settings.accuracy)
        return next((exactly(f"epoch_{key}") for key in keys if key in validation), None)

    def step(self, epoch: int, report: EfficiencyReport) -> int:
        """Return the step at which Keras writes the scalars of a report."""
        return epoch

    def write_layout(self, layout: Any) -> None:
        """Write a layout of charts into the file that Keras writes into."""
        # Keras's update_freq must not drop it: it is no batch's summary.
        with self._board._val_writer.as_default(), self._board.summary.record_if(True):
            self._write_layout(layout)

    def write_layout_last(self, layout: Any) -> None:
        """Write a layout into a new file: Keras's may be closed, or older than the other's."""
        writer = self._board.summary.create_file_writer(self.folder)
        with writer.as_default():
            self._write_layout(layout)
        writer.close()

    def write_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Write a figure into the file that Keras writes into."""
        agg = require("matplotlib.backends.backend_agg", extra="plot", purpose="Drawing figures")
        canvas = agg.FigureCanvasAgg(figure)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())
        with self._board._val_writer.as_default(), self._board.summary.record_if(True):
            self._board.summary.image(tag, pixels[None], step=step)

    def flush(self) -> None:
        """See to it that everything written is in the file."""
        # TensorFlow's error for a writer that is closed: the callback has ended before this one.
        with contextlib.suppress(RuntimeError):
            self._board._val_writer.flush()

    def _write_layout(self, layout: Any) -> None:
        custom_scalar = require(
            "tensorboard.plugins.custom_scalar.summary",
            extra="tensorboard",
            purpose="A chart layout",
        )
        content = custom_scalar.pb(layout).SerializeToString()
        self._board.summary.experimental.write_raw_pb(content, step=0)

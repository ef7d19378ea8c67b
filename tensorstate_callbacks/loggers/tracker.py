"""What a callback tells, as a fit goes on, everything that keeps its figures."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.report import EfficiencyReport


class Tracker(Protocol):
    """Keeps what scalars can't say of one fit: in TensorBoard, in MLflow.

    The scalars themselves go the framework's way, into the logs and loggers, wherever it has one.
    A tracker never ends a training: what it can't write it says, once.
    """

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """A fit begins.

        Args:
            settings: What the callback was given.
            layers: Names of the probes.
        """

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """An epoch whose evaluation was recorded is over.

        Args:
            epoch: The epoch, counted from 0.
            report: Its evaluation.
            history: The reports of this fit so far, `report` the last.
            logs: What the framework logged in the epoch, the callback's own metrics included.
        """

    def end(self, history: History) -> None:
        """The fit is over, also where it was broken off and the framework says so.

        Args:
            history: The reports of this fit.
        """


class Trackers:
    """All trackers of one fit, and the reports that are of it.

    Args:
        trackers: Who is told.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = tuple(trackers)
        self._history = History()
        self._new: EfficiencyReport | None = None

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """See `Tracker.begin`."""
        for tracker in self._trackers:
            tracker.begin(settings, layers)

    def add(self, report: EfficiencyReport) -> None:
        """Take the report of an evaluation of this fit."""
        self._history.append(report)
        self._new = report

    def epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Tell of the epoch's report, if it has one; see `Tracker.epoch`."""
        report, self._new = self._new, None
        if report is not None:
            for tracker in self._trackers:
                tracker.epoch(epoch, report, self._history, logs)

    def end(self) -> None:
        """See `Tracker.end`; nobody is told twice."""
        trackers, self._trackers = self._trackers, ()
        for tracker in trackers:
            tracker.end(self._history)

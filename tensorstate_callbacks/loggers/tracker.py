"""Follow a fit for the trackers that keep its reports, and never end it for one that fails."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from tensorstate_callbacks.errors import MissingExtraError, TensorStateWarning
from tensorstate_callbacks.loggers.passwords import hide_passwords
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.report import EfficiencyReport, History


class Tracker(Protocol):
    """Keeps what scalars can't show of one fit: in TensorBoard, in MLflow.

    The scalars themselves go the framework's way, into the logs and loggers, wherever it has one.
    Where a tracker raises an error, there is one warning, and this tracker writes no more.
    """

    @property
    def name(self) -> str:
        """What it writes to, for a message."""

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """Begin a fit.

        Args:
            settings: What the callback was given.
            layers: Names of the probes.
        """

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """Write an epoch whose evaluation was recorded.

        Args:
            epoch: The epoch, counted from 0.
            report: Its evaluation.
            history: The reports of this fit so far, `report` the last.
            logs: What the framework logged in the epoch, the callback's own metrics included.
        """

    def end(self, history: History) -> None:
        """End a fit, also one that was broken off where the framework says so.

        Args:
            history: The reports of this fit.
        """


class Trackers:
    """All trackers of one fit, and the reports of it.

    Args:
        trackers: The trackers.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)
        self._history = History()
        self._new: EfficiencyReport | None = None

    @classmethod
    def found(cls, trackers: Iterable[Tracker]) -> "Trackers":
        """Return the trackers that come before looking for more fails, with a warning if it does.

        Args:
            trackers: Looks for them.

        Raises:
            MissingExtraError: Something is asked for that needs an extra.
        """
        found: list[Tracker] = []
        try:
            for tracker in trackers:
                found.append(tracker)
        except (TensorStateWarning, MissingExtraError):
            raise
        except Exception as error:  # noqa: BLE001 - a logger of any make
            warnings.warn(
                f"what this fit is logged to could not be found out ({describe_error(error)}): "
                "charts, table and figure are missing there. Training and the scalars that the "
                "framework logs are not touched; log_extras=None leaves it at them",
                TensorStateWarning,
                stacklevel=2,
            )
        return cls(found)

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """See `Tracker.begin`."""
        self._each(lambda tracker: tracker.begin(settings, layers))

    def add(self, report: EfficiencyReport) -> None:
        """Take the report of an evaluation of this fit."""
        self._history[-1:] = [before.without_pairs() for before in self._history[-1:]]
        self._history.append(report)
        self._new = report

    def epoch(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Write the epoch's report, if it has one; see `Tracker.epoch`."""
        report, self._new = self._new, None
        if report is not None:
            self._each(lambda tracker: tracker.epoch(epoch, report, self._history, logs))

    def end(self) -> None:
        """See `Tracker.end`; a second call does nothing."""
        self._each(lambda tracker: tracker.end(self._history))
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                call(tracker)
            except TensorStateWarning:
                raise  # Whoever makes errors of warnings wants this one as it is.
            except Exception as error:  # noqa: BLE001 - no tracker may end a training
                self._trackers.remove(tracker)
                warnings.warn(
                    f"{_name_of(tracker)} gets no more of this fit: {describe_error(error)}. "
                    "Training and the scalars that the framework logs are not touched; "
                    "log_extras=None leaves it at them",
                    TensorStateWarning,
                    stacklevel=2,
                )


def _name_of(tracker: Tracker) -> str:
    try:
        return hide_passwords(tracker.name)
    except Exception:  # noqa: BLE001 - a folder that can't be made, for example
        return f"A {type(tracker).__name__}"


def describe_error(error: BaseException, address: str = "") -> str:
    """Return an error's class and the beginning of its text, without passwords.

    Args:
        error: The error.
        address: What was written to; see `hide_passwords`.
    """
    try:
        text = hide_passwords(str(error)[:20_000], address).strip().rstrip(".")
    except Exception:  # noqa: BLE001 - an error whose own text fails
        text = "it has no text"
    return f"{type(error).__name__}: {text if len(text) <= 400 else text[:400] + '...'}"

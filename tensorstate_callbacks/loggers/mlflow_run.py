"""What trackers have to say of one MLflow run in; all of it in the run, or in a file, out."""

import time
from collections.abc import Mapping
from typing import Any

from tensorstate_callbacks.errors import WarnOnce
from tensorstate_callbacks.loggers.mlflow_delivery import MlflowDelivery, is_away
from tensorstate_callbacks.loggers.mlflow_guard import ServerGuard
from tensorstate_callbacks.loggers.mlflow_logger import LoggerGuard
from tensorstate_callbacks.loggers.mlflow_saved import save, saved_path, without_password
from tensorstate_callbacks.loggers.outbox import Message, Outbox

# The longest that training waits for a server that takes a request and doesn't answer.
PATIENCE = 10.0
_OPEN: dict[tuple[str, str], "MlflowRun"] = {}


class MlflowRun:
    """One run, shared by all callbacks of a fit that is tracked in it.

    While it is open, what MLflow's own loggers send to the run's server is kept too when the
    server is away: it would end the training, or be lost.

    Args:
        tracking_uri: Address of the server or database.
        run_id: The run.

    Attributes:
        warn: Gives each kind of warning once per fit, for all callbacks together.
    """

    def __init__(self, tracking_uri: str, run_id: str) -> None:
        self._uri, self._run_id = tracking_uri, run_id
        self._loggers: list[LoggerGuard] = []
        self._users = 0
        self._logged: dict[int, set[str]] = {}
        self._path = saved_path(run_id)
        self.warn = WarnOnce()
        delivery = MlflowDelivery(tracking_uri)
        self._outbox = Outbox(delivery, is_away, PATIENCE)
        self._server = delivery.server
        if self._server is not None:
            ServerGuard.add(self._server, run_id, self._outbox)

    @classmethod
    def share(cls, tracking_uri: str, run_id: str, logger: Any = None) -> "MlflowRun":
        """Return the run; each user releases it once.

        Args:
            tracking_uri: Address of the server or database.
            run_id: The run.
            logger: Lightning's logger of that run, which ends it after the fit.
        """
        run = _OPEN.get((tracking_uri, run_id))
        if run is None:
            run = _OPEN[tracking_uri, run_id] = cls(tracking_uri, run_id)
        run._users += 1
        if logger is not None and not any(guard.is_of(logger) for guard in run._loggers):
            run._loggers.append(LoggerGuard(logger, run._outbox))
        return run

    def post(self, **message: Any) -> None:
        """Send a message, now or when that is possible again; see `MlflowDelivery`."""
        letter = self._outbox.post({"run_id": self._run_id, **message})
        if letter.error is not None:
            self._tell_refusal(letter.error)

    def post_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Send an epoch's metrics in one batch, without those that another callback has sent."""
        logged = self._logged.setdefault(step, set())
        new = {key: value for key, value in values.items() if key not in logged}
        logged.update(new)
        now = int(time.time() * 1000)
        metrics = [
            {"key": key, "value": value, "timestamp": now, "step": step}
            for key, value in new.items()
        ]
        if metrics:
            self.post(metrics=metrics)

    def tell(self) -> None:
        """Say, once, what went wrong with what was sent, by whomever."""
        if self._outbox.away:
            self.warn(
                "away",
                f"MLflow at {without_password(self._uri)} is away ({self._outbox.reason}). "
                f"Training goes on: what is logged to run {self._run_id} is kept, and sent when "
                "it is back. What is left at the end of the fit is written to "
                f"{self._path}, to be sent with: "
                f"python -m tensorstate_callbacks.loggers.send {self._path.name}",
            )
        refused, self._outbox.refused = self._outbox.refused, []
        for letter in refused:
            if letter.error is not None:
                self._tell_refusal(letter.error)

    def retry(self) -> None:
        """Send what is kept, if the server is back."""
        self._outbox.retry()
        self.tell()

    def release(self) -> None:
        """Leave the run; the last to leave writes down what couldn't be sent."""
        self.retry()
        self._users -= 1
        if self._users:
            return
        del _OPEN[self._uri, self._run_id]
        if self._server is not None:
            ServerGuard.remove(self._server, self._run_id)
        for guard in self._loggers:
            guard.remove()
        left = self._outbox.unsent()
        if left:
            self._save(left)
            for guard in self._loggers:
                guard.finalize_later(self._path, self._uri, self._run_id)

    def _save(self, messages: list[Message]) -> None:
        path = self._path = save(self._path, self._uri, messages)
        print(
            f"What MLflow at {without_password(self._uri)} missed is in {path}; send it with: "
            f"python -m tensorstate_callbacks.loggers.send {path}"
        )

    def _tell_refusal(self, error: Exception) -> None:
        self.warn(
            "refused",
            f"MLflow refused what was logged to run {self._run_id}, and goes without it: {error}",
        )

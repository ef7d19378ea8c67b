"""MLflow's connection to a server in; the same, which keeps what it can't send, out."""

from collections.abc import Callable, Iterable
from typing import Any

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.mlflow_delivery import batch
from tensorstate_callbacks.loggers.mlflow_uploads import UploadGuard
from tensorstate_callbacks.loggers.outbox import Message, Outbox, delivering
from tensorstate_callbacks.recording.instance_override import InstanceOverride

_GUARDS: dict[int, "ServerGuard"] = {}


class ServerGuard:
    """Puts what anybody logs to certain runs through their outboxes, as long as there are any.

    MLflow's clients, loggers and autologging share one object per server. What they log goes
    through it, and would otherwise be lost, or end the training, while the server is away.

    Args:
        server: That object.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._outboxes: dict[str, Outbox] = {}
        self._uploads: dict[str, UploadGuard] = {}
        self._overrides = [
            InstanceOverride(server, name, override)
            for name, override in {
                "log_batch": self._through(server.log_batch, batch),
                "log_batch_async": self._later(server.log_batch_async),
                "log_metric": self._through(server.log_metric, _metric),
                "log_param": self._through(server.log_param, _param),
                "set_tag": self._through(server.set_tag, _tag),
                "get_run": self._known(server.get_run),
            }.items()
        ]

    @classmethod
    def add(cls, server: Any, run_id: str, outbox: Outbox) -> None:
        """Guard one more run."""
        guard = _GUARDS.get(id(server))
        if guard is None:
            guard = _GUARDS[id(server)] = cls(server)
        guard._outboxes[run_id] = outbox
        guard._uploads[run_id] = UploadGuard(run_id, outbox)
        guard._uploads[run_id].attach()

    @classmethod
    def remove(cls, server: Any, run_id: str) -> None:
        """Guard a run no longer; the last one leaves no trace."""
        guard = _GUARDS[id(server)]
        del guard._outboxes[run_id]
        guard._uploads.pop(run_id).remove()
        if not guard._outboxes:
            del _GUARDS[id(server)]
            for override in guard._overrides:
                override.restore()

    def _through(
        self, original: Callable[..., Any], message: Callable[..., Message]
    ) -> Callable[..., Any]:
        def guarded(run_id: str, *entities: Any, **named: Any) -> Any:
            outbox = self._outboxes.get(run_id)
            if outbox is None or delivering.get():
                return original(run_id, *entities, **named)
            self._uploads[run_id].attach()
            letter = outbox.post(message(run_id, *entities, **named))
            if letter.error is not None:
                raise letter.error
            return None

        return guarded

    def _known(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(run_id: str, *args: Any, **named: Any) -> Any:
            outbox = self._outboxes.get(run_id)
            if outbox is not None and outbox.away and not delivering.get():
                # An answer can't be kept for later, and MLflow would wait for it for minutes.
                raise ConnectionError(f"MLflow is away: {outbox.reason}")
            return original(run_id, *args, **named)

        return guarded

    def _later(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(
            run_id: str, metrics: Iterable[Any], params: Iterable[Any], tags: Iterable[Any]
        ) -> Any:
            outbox = self._outboxes.get(run_id)
            if outbox is None:
                return original(run_id, metrics=metrics, params=params, tags=tags)
            outbox.post(batch(run_id, metrics, params, tags), wait=False)
            operations = require(
                "mlflow.utils.async_logging.run_operations",
                extra="mlflow",
                purpose="Logging to MLflow",
            )
            return operations.RunOperations([])

        return guarded


def _metric(run_id: str, metric: Any) -> Message:
    return batch(run_id, metrics=[metric])


def _param(run_id: str, param: Any) -> Message:
    return batch(run_id, params=[param])


def _tag(run_id: str, tag: Any) -> Message:
    return batch(run_id, tags=[tag])

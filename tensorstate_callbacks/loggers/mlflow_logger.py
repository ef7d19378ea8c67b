"""Lightning's MLFlowLogger in; the same, to which a server may be away without harm, out."""

import time
from pathlib import Path
from typing import Any

from tensorstate_callbacks.loggers.mlflow_saved import save
from tensorstate_callbacks.loggers.outbox import Outbox
from tensorstate_callbacks.recording.instance_override import InstanceOverride

_STATUS = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED"}
# It uploads all checkpoints that it hasn't uploaded yet.
_UPLOAD = "_scan_and_log_checkpoints"


class LoggerGuard:
    """Puts off what a logger does besides logging: uploading checkpoints, and ending the run.

    Args:
        logger: The logger.
        outbox: Knows whether the server is away.
    """

    def __init__(self, logger: Any, outbox: Outbox) -> None:
        self._logger, self._outbox = logger, outbox
        self._put_off: Any = None
        self._override: InstanceOverride | None = None
        original = getattr(logger, _UPLOAD, None)
        if original is None:
            return

        def upload(checkpoint_callback: Any) -> None:
            self._put_off = checkpoint_callback if outbox.away else None
            if not outbox.away:
                original(checkpoint_callback)

        self._override = InstanceOverride(logger, _UPLOAD, upload)

    def is_of(self, logger: Any) -> bool:
        """Tell whether this guards `logger`."""
        return self._logger is logger

    def remove(self) -> None:
        """Leave no trace; upload what was put off, unless the server is still away."""
        if self._override is not None:
            self._override.restore()
            if self._put_off is not None and not self._outbox.away:
                getattr(self._logger, _UPLOAD)(self._put_off)

    def finalize_later(self, path: Path, tracking_uri: str, run_id: str) -> None:
        """Have the run's end written to a file, as the server is still away.

        Lightning ends the run after all callbacks, and would wait for the server for minutes, and
        then fail.
        """

        def finalize(status: str = "success") -> None:
            override.restore()
            ended = {
                "run_id": run_id,
                "status": _STATUS.get(status, "FINISHED"),
                "end_time": int(time.time() * 1000),
            }
            save(path, tracking_uri, [ended])

        override = InstanceOverride(self._logger, "finalize", finalize)

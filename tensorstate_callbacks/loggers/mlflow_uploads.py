"""What uploads the files of an MLflow run in; the same, which keeps them in an outage, out."""

import base64
import os
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.outbox import Outbox, delivering
from tensorstate_callbacks.recording.instance_override import InstanceOverride

# Larger ones aren't kept in memory: an outage may last for many epochs.
MOST_BYTES = 16 << 20


class UploadGuard:
    """Keeps files that anybody logs to a run while its server is away, instead of waiting for it.

    MLflow's clients share one object per run that uploads, once somebody has logged a file to it.

    Args:
        run_id: The run.
        outbox: Takes the files, and knows whether the server is away.
    """

    def __init__(self, run_id: str, outbox: Outbox) -> None:
        self._run_id, self._outbox = run_id, outbox
        self._override: InstanceOverride | None = None

    def attach(self) -> None:
        """Guard the run's uploads from now on, if MLflow has what makes them."""
        if self._override is not None:
            return
        clients = require(
            "mlflow.tracking._tracking_service.utils", extra="mlflow", purpose="Logging to MLflow"
        )
        uploader = getattr(clients, "_artifact_repos_cache", {}).get(self._run_id)
        if uploader is not None:
            guarded = self._through(uploader.log_artifact)
            self._override = InstanceOverride(uploader, "log_artifact", guarded)

    def remove(self) -> None:
        """Leave no trace."""
        if self._override is not None:
            self._override.restore()

    def _through(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(local_file: str, artifact_path: str | None = None) -> Any:
            if delivering.get() or not self._outbox.away:
                return original(local_file, artifact_path)
            size = os.path.getsize(local_file)
            name = PurePosixPath(artifact_path or "", os.path.basename(local_file))
            if size > MOST_BYTES:
                raise ConnectionError(
                    f"MLflow is away, and {name} is too large to be kept for it: {size:,} bytes"
                )
            with open(local_file, "rb") as file:
                content = base64.b64encode(file.read()).decode("ascii")
            self._outbox.post(
                {"run_id": self._run_id, "name": str(name), "file": content, "replaces": True},
                wait=False,
            )
            return None

        return guarded

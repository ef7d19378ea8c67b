"""Messages in; what they say, in an MLflow run, out: metrics, parameters, tables, files, status."""

import base64
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.outbox import Message

# What a proxy answers for a server that is not there, and what may be otherwise next time.
_GATEWAY = (502, 503, 504)
_CURABLE = (401, 403, 408, 429)
_PROBE_SECONDS = 2
_METRIC_FIELDS = (
    "key",
    "value",
    "timestamp",
    "step",
    "model_id",
    "dataset_name",
    "dataset_digest",
)


class MlflowDelivery:
    """Sends messages to one tracking store.

    Args:
        tracking_uri: The store's address, as MLflow has it.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._mlflow: Any = require("mlflow", extra="mlflow", purpose="Logging to MLflow")
        self._client = self._mlflow.MlflowClient(tracking_uri)

    @property
    def server(self) -> Any:
        """MLflow's own object for a tracking server, shared by all clients; None for a database."""
        # MLflow hands it out nowhere else.
        store = getattr(getattr(self._client, "_tracking_client", None), "store", None)
        return store if hasattr(store, "get_host_creds") else None

    def __call__(self, message: Message) -> None:
        """Send one message.

        Raises:
            ConnectionError: The server doesn't answer a short question.
            Exception: What MLflow raises.
        """
        self._check_server()
        run_id = message["run_id"]
        if "params" in message:
            self._log_params(run_id, message["params"])
        elif "table" in message:
            pandas = require("pandas", extra="pandas", purpose="A table in MLflow")
            # As objects: for the type that pandas has for text, MLflow's way is deprecated.
            table = pandas.DataFrame(message["table"], dtype=object)
            self._client.log_table(run_id, table, self._free_name(run_id, message["name"]))
        elif "file" in message:
            name = message["name"]
            # What somebody else named may be meant to take the place of an earlier file.
            free = name if message.get("replaces") else self._free_name(run_id, name)
            self._log_file(run_id, PurePosixPath(free), base64.b64decode(message["file"]))
        elif "status" in message:
            self._client.set_terminated(run_id, message["status"], message["end_time"])
        else:
            self._log_batch(run_id, message)

    def _check_server(self) -> None:
        # MLflow tries for minutes before it gives up.
        server = self.server
        if server is None:
            return
        request = require("mlflow.utils.rest_utils", extra="mlflow", purpose="Logging to MLflow")
        try:
            answer = request.http_request(
                server.get_host_creds(),
                "/health",
                "GET",
                max_retries=0,
                timeout=_PROBE_SECONDS,
                retry_timeout_seconds=_PROBE_SECONDS,
                raise_on_status=False,
            )
        except self._mlflow.MlflowException as error:
            raise ConnectionError("the server doesn't answer") from error
        if answer.status_code in _GATEWAY:
            raise ConnectionError(f"the server is not there (HTTP status {answer.status_code})")

    def _log_batch(self, run_id: str, message: Message) -> None:
        entities = self._mlflow.entities
        self._client.log_batch(
            run_id,
            metrics=[entities.Metric(**metric) for metric in message.get("metrics", ())],
            params=[entities.Param(*pair) for pair in message.get("own_params", ())],
            tags=[entities.RunTag(*pair) for pair in message.get("tags", ())],
        )

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        # MLflow's parameters can't be changed: what another fit in the run had otherwise gets a
        # number.
        there = self._client.get_run(run_id).data.params
        new = {}
        for key, value in params.items():
            name, number = key, 2
            while there.get(name, value) != value:
                name, number = f"{key}.fit_{number}", number + 1
            new[name] = value
        entities = self._mlflow.entities
        pairs = [entities.Param(name, value) for name, value in new.items() if name not in there]
        if pairs:
            self._client.log_batch(run_id, params=pairs)

    def _log_file(self, run_id: str, name: PurePosixPath, content: bytes) -> None:
        parent = None if name.parent == PurePosixPath() else str(name.parent)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, name.name)
            path.write_bytes(content)
            self._client.log_artifact(run_id, str(path), parent)

    def _free_name(self, run_id: str, name: str) -> str:
        # A second fit in a run has files of its own.
        wanted = PurePosixPath(name)
        taken = {info.path for info in self._client.list_artifacts(run_id, str(wanted.parent))}
        free, number = name, 2
        while free in taken:
            free = str(wanted.with_stem(f"{wanted.stem}_{number}"))
            number += 1
        return free


def batch(
    run_id: str, metrics: Iterable[Any] = (), params: Iterable[Any] = (), tags: Iterable[Any] = ()
) -> Message:
    """Return the message of MLflow's own metrics, parameters and tags."""
    return {
        "run_id": run_id,
        "metrics": [
            {
                field: value
                for field in _METRIC_FIELDS
                if (value := getattr(metric, field, None)) is not None
            }
            for metric in metrics
        ],
        "own_params": [(param.key, param.value) for param in params],
        "tags": [(tag.key, tag.value) for tag in tags],
    }


def is_away(error: Exception) -> bool:
    """Tell whether another try may deliver what raised `error`: it wasn't refused for what it is.

    Example:
        >>> is_away(ConnectionResetError()), is_away(ValueError("no such metric"))
        (True, False)
    """
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is None and hasattr(error, "get_http_status_code"):
        status = error.get_http_status_code()
    if status is None:
        return isinstance(error, OSError)
    return status in _CURABLE or not 400 <= status < 500

"""Messages that couldn't be sent in; a file of them, sent when the server is back, out."""

import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.loggers.mlflow_delivery import MlflowDelivery, is_away
from tensorstate_callbacks.loggers.outbox import Message


def saved_path(run_id: str) -> Path:
    """Return the file that a run's unsent messages are written to: in the working directory."""
    return Path.cwd() / f"mlflow-unsent-{run_id}.jsonl"


def save(path: Path, tracking_uri: str, messages: Iterable[Message]) -> Path:
    """Append messages to a file, one JSON object a line, and return the file.

    Args:
        path: Where to; where that can't be written, a file of the same name among the temporary
            ones is.
        tracking_uri: Whom they are for; a password in it isn't written.
        messages: What wasn't sent, in order.
    """
    lines = [
        json.dumps({"tracking_uri": without_password(tracking_uri), **message})
        for message in messages
    ]
    for place in (path, Path(tempfile.gettempdir(), path.name)):
        try:
            with place.open("a") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError:
            if place is not path:
                raise
        else:
            return place
    return path


def without_password(tracking_uri: str) -> str:
    """Return an address without the name and password that may stand in it.

    Example:
        >>> without_password("https://me:secret@mlflow.example.org:5000/x")
        'https://mlflow.example.org:5000/x'
    """
    parts = urlsplit(tracking_uri)
    if "@" not in parts.netloc:
        return tracking_uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def send_saved(file: str | Path, *, tracking_uri: str | None = None) -> int:
    """Send what was written to a file while the server was away, and remove the file.

    Sending twice what arrived once doesn't double it: a metric is the same with the same time,
    step and value.

    Args:
        file: The file that the warning named.
        tracking_uri: Where to; None for where it was meant to go. Give it where that needs a
            password, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.

    Returns:
        The number of messages sent. What MLflow refuses stays in the file, with a warning.

    Raises:
        ConnectionError: The server is still away; what is unsent stays in the file.
        MissingExtraError: MLflow is not installed.
    """
    path = Path(file)
    lines = path.read_text().splitlines()
    deliveries: dict[str, MlflowDelivery] = {}
    kept: list[str] = []
    refusals: list[str] = []
    for number, line in enumerate(lines):
        message: dict[str, Any] = json.loads(line)
        uri = message.pop("tracking_uri") if tracking_uri is None else tracking_uri
        deliver = deliveries.setdefault(uri, MlflowDelivery(uri))
        try:
            deliver(message)
        except Exception as error:
            if is_away(error):
                path.write_text("".join(f"{rest}\n" for rest in [*kept, *lines[number:]]))
                raise ConnectionError(
                    f"MLflow at {without_password(uri)} doesn't answer ({error}): what is unsent "
                    f"stays in {path}"
                ) from error
            kept.append(line)
            refusals.append(str(error))
    if kept:
        path.write_text("".join(f"{line}\n" for line in kept))
        warnings.warn(
            f"MLflow refused {len(kept)} of {len(lines)} messages, which stay in {path}: "
            f"{refusals[0]}",
            TensorStateWarning,
            stacklevel=2,
        )
    else:
        path.unlink()
    return len(lines) - len(kept)

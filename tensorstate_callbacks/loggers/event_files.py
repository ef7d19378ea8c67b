"""The folder of a TensorBoard run in; the layout of charts that the run has out."""

import os
import time
from typing import Any

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.loggers.chart_layout import LAYOUT_TAG, layout_summary, parse_layout

_PIECE = 1 << 20


def read_layout(folder: str) -> Any | None:
    """Return the layout that TensorBoard would show for a run; None where it has none.

    Args:
        folder: The run's folder, or a URL that TensorBoard can read.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    accumulator = require(
        "tensorboard.backend.event_processing.event_accumulator",
        extra="tensorboard",
        purpose="A chart layout",
    )
    files = _files()
    content = None
    for path in _event_files(files, folder):
        # Nearly all event files hold none, and to look for its name is fast.
        if _mentions(files, path, LAYOUT_TAG.encode()):
            events = accumulator.EventAccumulator(path, {accumulator.TENSORS: 1}).Reload()
            if LAYOUT_TAG in events.Tags()[accumulator.TENSORS]:
                content = events.Tensors(LAYOUT_TAG)[-1].tensor_proto.string_val[0]
    return None if content is None else parse_layout(content)


def write_layout(folder: str, layout: Any) -> None:
    """Write a layout into an event file of its own, which TensorBoard reads after all others.

    While somebody still writes another file of the folder, TensorBoard may then miss what is added
    there.

    Args:
        folder: The run's folder, or its URL; it holds an event file.
        layout: The layout.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    files = _files()
    records = require(
        "tensorboard.summary.writer.record_writer", extra="tensorboard", purpose="A chart layout"
    )
    events = require(
        "tensorboard.compat.proto.event_pb2", extra="tensorboard", purpose="A chart layout"
    )
    # TensorBoard goes by the names, which count seconds only.
    path = f"{_event_files(files, folder)[-1]}.efficiency"
    writer = records.RecordWriter(files.GFile(path, "wb"))
    now = time.time()
    for event in (
        events.Event(wall_time=now, file_version="brain.Event:2"),
        events.Event(wall_time=now, summary=layout_summary(layout)),
    ):
        writer.write(event.SerializeToString())
    writer.close()


def _files() -> Any:
    # TensorFlow's access to files where it is installed, TensorBoard's own otherwise.
    return require("tensorboard.compat", extra="tensorboard", purpose="A chart layout").tf.io.gfile


def _event_files(files: Any, folder: str) -> list[str]:
    names = files.listdir(folder) if files.isdir(folder) else []
    return sorted(os.path.join(folder, name) for name in names if "tfevents" in name)


def _mentions(files: Any, path: str, word: bytes) -> bool:
    with files.GFile(path, "rb") as file:
        end = b""
        while piece := file.read(_PIECE):
            if word in end + piece:
                return True
            end = piece[-len(word) :]
    return False

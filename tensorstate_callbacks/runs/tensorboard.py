"""Read a finished run of a TensorBoard log folder."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tensorstate_callbacks.errors import RunError, list_some, require
from tensorstate_callbacks.runs.finished_run import (
    FinishedRun,
    Point,
    Scalars,
    choose_lead,
    find_evaluations,
    find_leads,
)

# Float and double; a scalar is a tensor of no dimension.
_REAL = (1, 2)
# An event's length and its checksum; another one comes after the event.
_LENGTH, _HEAD, _TAIL = 8, 12, 4
# Checksums are computed in Python: pictures, of which no number is read, would take long.
_MOST_CHECKED = 1 << 14


class _Run(NamedTuple):
    """What the event files of one folder hold, and what of them can't be read."""

    scalars: Scalars
    problems: Sequence[str]


def read_tensorboard(
    folder: Path, lead: str | None = None, accuracy: str | None = None
) -> FinishedRun:
    """Return the run of a log folder.

    Args:
        folder: A folder with event files in it or below it, of one run with keys of ours.
        lead: What stands before our names in its tags; None for the likeliest.
        accuracy: Tag of the accuracy; None for the usual names.

    Returns:
        The run, and what of the folder could not be read.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        RunError: There are several runs, or none; or a key is not there.
    """
    unread: list[str] = []
    runs = {name: _read_run(folder / name) for name in _find_runs(folder, unread)}
    problems = [*unread, *(problem for run in runs.values() for problem in run.problems)]
    where = f"'{printable(folder)}'"
    # Without a number of ours, what can't be read is the likeliest reason.
    reason = f". Not read: {list_some(problems, 3)}" if problems else ""
    if not runs:
        raise RunError(f"there is no event file of TensorBoard in {where} or below it{reason}")
    ours = [name for name, run in runs.items() if find_leads(run.scalars)]
    if len(ours) > 1:
        paths = "".join(f"\n  {printable(folder / name)}" for name in ours)
        raise RunError(f"{where} holds {len(ours)} runs; give one of{paths}")
    # Without one of ours, all say what there is instead.
    name = ours[0] if ours else ", ".join(runs)
    scalars = {tag: points for one in ours or runs for tag, points in runs[one].scalars.items()}
    try:
        lead = choose_lead(scalars, lead, f"run {printable(name)} of {where}")
    except RunError as error:
        raise RunError(f"{error}{reason}") from None
    source = f"run {printable(name)} of {printable(folder)}, keys {lead}aiq, {lead}efficiency..."
    return FinishedRun(source, find_evaluations(scalars, lead, accuracy), problems)


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text that can be printed and saved, whatever bytes it has.

    Examples:
        >>> printable("runs/\udcff\n")
        'runs/\\xff\\n'
    """
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _find_runs(folder: Path, unread: list[str]) -> list[str]:
    def note(error: OSError) -> None:
        unread.append(f"{printable(error.filename)} ({error.strerror})")

    return sorted(
        os.path.relpath(path, folder)
        for path, _, files in os.walk(folder, onerror=note)
        if any("tfevents" in file for file in files)
    )


def _read_run(folder: Path) -> _Run:
    scalars: dict[str, list[Point]] = {}
    problems: list[str] = []
    for file in sorted(folder.iterdir()):
        if "tfevents" in file.name and not file.is_dir():
            damages: list[str] = []
            try:
                for tag, point in _read_points(file, damages):
                    scalars.setdefault(tag, []).append(point)
            except OSError as error:
                damages.append(error.strerror or str(error))
            if damages:
                problems.append(f"{printable(file)} ({list_some(damages, 1)})")
    return _Run(scalars, problems)


def _read_points(file: Path, damages: list[str]) -> Iterator[tuple[str, Point]]:
    """Yield what an event file holds, and note what can't be read."""
    purpose = "Reading TensorBoard's event files"
    events: Any = require(
        "tensorboard.compat.proto.event_pb2", extra="tensorboard", purpose=purpose
    )
    compat = require("tensorboard.data_compat", extra="tensorboard", purpose=purpose)
    tensors = require("tensorboard.util.tensor_util", extra="tensorboard", purpose=purpose)
    if not stat.S_ISREG(file.stat().st_mode):
        damages.append("it is not a file")  # A pipe would be waited for without end.
        return
    with file.open("rb") as opened:
        for begin, record in _read_records(opened, damages):
            try:
                # Event by event: pictures and histograms, which the same files hold, are passed.
                event = compat.migrate_event(events.Event.FromString(record))
                points = [
                    (value.tag, float(tensors.make_ndarray(value.tensor)))
                    for value in event.summary.value
                    if value.tensor.dtype in _REAL and not value.tensor.tensor_shape.dim
                ]
            except Exception:  # noqa: BLE001 - bytes of anything
                damages.append(f"damaged at byte {begin}")
                continue
            for tag, number in points:
                yield tag, Point(event.step, event.wall_time, number)


def _read_records(file: BinaryIO, damages: list[str]) -> Iterator[tuple[int, bytes]]:
    """Yield where each record of an event file begins, and the record.

    TensorBoard's own reader ends in silence where one is damaged, and lets TensorFlow end the
    process where it is said to be longer than the memory.
    """
    checksum = require(
        "tensorboard.compat.tensorflow_stub.pywrap_tensorflow",
        extra="tensorboard",
        purpose="Reading TensorBoard's event files",
    ).masked_crc32c
    begin, size = 0, os.fstat(file.fileno()).st_size
    while head := file.read(_HEAD):
        length = int.from_bytes(head[:_LENGTH], "little")
        end = begin + _HEAD + length + _TAIL
        if len(head) == _HEAD and checksum(head[:_LENGTH]) != _number(head[_LENGTH:]):
            damages.append(f"damaged at byte {begin}, or no event file")
            return
        if len(head) < _HEAD or end > size:
            damages.append(f"cut short at byte {begin}, or still written to")
            return
        record, tail = file.read(length), file.read(_TAIL)
        if length <= _MOST_CHECKED and checksum(record) != _number(tail):
            damages.append(f"damaged at byte {begin}")
        else:
            yield begin, record
        begin = end


def _number(four: bytes) -> int:
    return int.from_bytes(four, "little")

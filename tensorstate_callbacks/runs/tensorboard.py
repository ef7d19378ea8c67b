"""A TensorBoard log folder in; the scalars of one of its runs out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import RunError, require
from tensorstate_callbacks.runs.finished_run import FinishedRun
from tensorstate_callbacks.runs.logged_keys import (
    Point,
    Scalars,
    choose_lead,
    evaluations,
    leads,
)

# Float and double; a scalar is a tensor of no dimension.
_REAL = (1, 2)


class LoggedRun(NamedTuple):
    """A run of a log folder.

    Attributes:
        name: Its folder, from the log folder; `"."` for the log folder itself.
        scalars: Tag to what was logged under it.
        time: When the last of our figures was logged, seconds since 1970.
    """

    name: str
    scalars: Scalars
    time: float


def read_tensorboard(
    folder: Path, run: str | None = None, lead: str | None = None, accuracy: str | None = None
) -> FinishedRun:
    """Return a run of a log folder.

    Args:
        folder: A folder with event files in it or below it.
        run: The run's name, as TensorBoard shows it, or the name of the folder above it; None
            for the run that was logged last.
        lead: What stands before our names in its tags; None for the likeliest.
        accuracy: Tag of the accuracy; None for the usual names.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        RunError: There is no such run, or nothing of ours in it.
    """
    there = [_read_run(folder, name) for name in _runs(folder)]
    if not there:
        raise RunError(f"there is no event file of TensorBoard in {str(folder)!r} or below it")
    if run is None:
        ours = [logged for logged in there if leads(logged.scalars)]
        if not ours:
            tags = {tag: points for logged in there for tag, points in logged.scalars.items()}
            choose_lead(tags, None, f"{str(folder)!r} (runs {_names(there)})")
    else:
        ours = [logged for logged in there if logged.name == run]
        # Keras writes into the run `validation` below the folder that it was given.
        ours = ours or [
            logged
            for logged in there
            if leads(logged.scalars) and Path(run) in Path(logged.name).parents
        ]
        if not ours:
            raise RunError(f"{str(folder)!r} has no run {run!r}; it has {_names(there)}")
    latest = max(ours, key=lambda logged: logged.time)
    lead = choose_lead(latest.scalars, lead, f"run {latest.name!r} of {str(folder)!r}")
    others = f", the latest of {len(ours)} ({_names(ours)})" if len(ours) > 1 else ""
    own_name = folder.resolve().name if latest.name == "." else latest.name
    return FinishedRun(
        name=own_name.replace(os.sep, "-"),
        source=f"run {latest.name} of {folder}{others}, keys {lead}aiq, {lead}efficiency...",
        evaluations=evaluations(latest.scalars, lead, accuracy),
    )


def _names(runs: list[LoggedRun], most: int = 12) -> str:
    names = ", ".join(logged.name for logged in runs[:most])
    return names + (f" and {len(runs) - most} more" if len(runs) > most else "")


def _runs(folder: Path) -> list[str]:
    return sorted(
        os.path.relpath(path, folder)
        for path, _, files in os.walk(folder)
        if any("tfevents" in file for file in files)
    )


def _read_run(folder: Path, name: str) -> LoggedRun:
    scalars: dict[str, list[Point]] = {}
    for file in sorted((folder / name).iterdir()):
        if "tfevents" in file.name:
            for tag, point in _points(file):
                scalars.setdefault(tag, []).append(point)
    ours = {lead + end for lead in leads(scalars) for end in ("aiq", "efficiency")}
    times = [point.time for tag in ours for point in scalars.get(tag, [])]
    return LoggedRun(name, scalars, max(times, default=0.0))


def _points(file: Path) -> Iterator[tuple[str, Point]]:
    # Event by event: pictures and histograms, which the same files hold, are passed over.
    loader: Any = require(
        "tensorboard.backend.event_processing.event_file_loader",
        extra="tensorboard",
        purpose="Reading TensorBoard's event files",
    )
    tensors = require("tensorboard.util.tensor_util", extra="tensorboard", purpose="Reading them")
    for event in loader.EventFileLoader(str(file)).Load():
        for value in event.summary.value:
            tensor = value.tensor
            if tensor.dtype in _REAL and not tensor.tensor_shape.dim:
                number = float(tensors.make_ndarray(tensor))
                yield value.tag, Point(event.step, event.wall_time, number)

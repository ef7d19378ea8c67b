"""Read a finished run of a TensorBoard log folder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorstate_callbacks.errors import RunError, require
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


def read_tensorboard(
    folder: Path, lead: str | None = None, accuracy: str | None = None
) -> FinishedRun:
    """Return the run of a log folder.

    Args:
        folder: A folder with event files in it or below it, of one run with keys of ours.
        lead: What stands before our names in its tags; None for the likeliest.
        accuracy: Tag of the accuracy; None for the usual names.

    Raises:
        MissingExtraError: TensorBoard is not installed.
        RunError: There are several runs, or none; or a key is not there.
    """
    runs = {name: _read_scalars(folder / name) for name in _find_runs(folder)}
    if not runs:
        raise RunError(f"there is no event file of TensorBoard in {str(folder)!r} or below it")
    ours = [name for name, scalars in runs.items() if find_leads(scalars)]
    if len(ours) > 1:
        paths = "".join(f"\n  {folder / name}" for name in ours)
        raise RunError(f"{str(folder)!r} holds {len(ours)} runs; give one of{paths}")
    # Without one of ours, all say what there is instead.
    name = ours[0] if ours else ", ".join(runs)
    scalars = {tag: points for one in ours or runs for tag, points in runs[one].items()}
    lead = choose_lead(scalars, lead, f"run {name} of {str(folder)!r}")
    return FinishedRun(
        source=f"run {name} of {folder}, keys {lead}aiq, {lead}efficiency...",
        evaluations=find_evaluations(scalars, lead, accuracy),
    )


def _find_runs(folder: Path) -> list[str]:
    return sorted(
        os.path.relpath(path, folder)
        for path, _, files in os.walk(folder)
        if any("tfevents" in file for file in files)
    )


def _read_scalars(folder: Path) -> Scalars:
    scalars: dict[str, list[Point]] = {}
    for file in sorted(folder.iterdir()):
        if "tfevents" in file.name:
            for tag, point in _read_points(file):
                scalars.setdefault(tag, []).append(point)
    return scalars


def _read_points(file: Path) -> Iterator[tuple[str, Point]]:
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

"""Which positions of a sample are read where not all of them are."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

_ONE = 2**64


@lru_cache(maxsize=1024)
def spread_positions(shape: tuple[int, ...], count: int) -> npt.NDArray[np.intp]:
    """Return `count` positions of a grid, spread evenly over it.

    They are the first of a low-discrepancy sequence (Roberts' R_d, "The Unreasonable Effectiveness
    of Quasirandom Sequences", 2018), so that the positions of a smaller count are among those of a
    larger one. They depend on nothing but the arguments.

    Args:
        shape: How many positions lie along each axis of the grid.
        count: How many to take, at least 1; where there are no more, all are.

    Returns:
        Shape `(min(count, positions),)`: indices into the grid's positions in C order, ascending,
        read-only.

    Example:
        >>> spread_positions((8, 8), 4)
        array([14, 17, 43, 52])
    """
    first = _sequence(shape, count)
    chosen = np.sort(first)
    chosen.flags.writeable = False
    return chosen


def _sequence(shape: tuple[int, ...], count: int) -> npt.NDArray[np.intp]:
    total = int(np.prod(shape, dtype=object))
    if count >= total:
        return np.arange(total)
    found = np.empty(0, np.intp)
    n_points = 2 * count
    # Late cells are hit late: what is then still missing is taken as it lies.
    while len(found) < count and n_points < 64 * total:
        cells = _cells(shape, n_points)
        found = cells[np.sort(np.unique(cells, return_index=True)[1])]
        n_points *= 2
    if len(found) < count:
        found = np.concatenate([found, np.setdiff1d(np.arange(total), found)])
    return found[:count]


def _cells(shape: tuple[int, ...], n_points: int) -> npt.NDArray[np.intp]:
    """Return the cells of the grid that the sequence's points lie in, one after the other."""
    sizes = [size for size in shape if size > 1]
    root = _root(len(sizes))
    cells = np.zeros(n_points, np.uint64)
    numbers = np.arange(n_points, dtype=np.uint64)
    share = 1.0
    for size in sizes:
        share /= root
        # In fixed point, whose overflow is what is asked for: the same on every machine.
        step = np.uint64(int(share * _ONE))
        points = numbers * step + np.uint64(_ONE // 2)
        along = ((points >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)
        cells = cells * np.uint64(size) + along
    return cells.astype(np.intp)


def _root(dimensions: int) -> float:
    """Return the root above 1 of x**(d + 1) = x + 1; of one dimension the golden ratio."""
    x = 2.0
    for _ in range(32):
        power = 1.0
        for _ in range(dimensions):
            power *= x
        x -= (power * x - x - 1) / ((dimensions + 1) * power - 1)
    return x


def select_positions(
    activations: npt.NDArray[Any],
    channel_axis: int,
    sample_axis: int | None,
    places: npt.NDArray[np.intp],
) -> npt.NDArray[Any]:
    """Return a copy of the activations at some positions of each sample.

    Args:
        activations: Of any shape.
        channel_axis: The axis of the neurons.
        sample_axis: The axis of the samples; None where there is one sample.
        places: Indices into the positions of the other axes, in C order.

    Returns:
        Shape `(samples, places, neurons)`.
    """
    if sample_axis is None:
        moved = np.moveaxis(activations, channel_axis, -1)[np.newaxis]
    else:
        moved = np.moveaxis(activations, (sample_axis, channel_axis), (0, -1))
    grid = moved.shape[1:-1]
    return moved[(slice(None), *np.unravel_index(places, grid))] if grid else moved[:, np.newaxis]


def grid_of(shape: Sequence[int], channel_axis: int, sample_axis: int | None) -> tuple[int, ...]:
    """Return how many positions lie along each axis but those of samples and neurons."""
    axes = {channel_axis % len(shape), None if sample_axis is None else sample_axis % len(shape)}
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)

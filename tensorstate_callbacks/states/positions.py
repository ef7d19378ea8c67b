"""Which positions of a sample are read where not all of them are."""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks._native import kernel_report, pack_positions
from tensorstate_callbacks._native.arguments import checked_axis, checked_threads
from tensorstate_callbacks._native.layout import LastLayout, Memory

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

    Examples:
        >>> spread_positions((8, 8), 4)
        array([ 5, 16, 36, 49])
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


@lru_cache(maxsize=1024)
def grid_of(shape: tuple[int, ...], channel_axis: int, sample_axis: int | None) -> tuple[int, ...]:
    """Return how many positions lie along each axis but those of samples and neurons."""
    axes = {channel_axis % len(shape), None if sample_axis is None else sample_axis % len(shape)}
    return tuple(size for axis, size in enumerate(shape) if axis not in axes)


class PositionPacker:
    """Packs the states of a layer at chosen positions of each sample.

    Args:
        n_neurons: Bits of a state, at least 1.
        n_threads: At most so many threads pack a large batch, the caller's among them.

    Examples:
        >>> activations = np.zeros((2, 3, 8, 8), np.float32)
        >>> activations[1, 2] = 1
        >>> PositionPacker(3).pack(activations, 1, places=spread_positions((8, 8), 2))
        array([[0],
               [0],
               [4],
               [4]], dtype=uint8)
    """

    def __init__(self, n_neurons: int, *, n_threads: int = 1) -> None:
        self._n_neurons, self._n_threads = n_neurons, checked_threads(n_threads)
        self._kernel = kernel_report()[0]
        self._last_layout = LastLayout(n_neurons)

    def pack(
        self,
        activations: npt.NDArray[Any] | Memory,
        channel_axis: int,
        threshold: float = 0.0,
        *,
        sample_axis: int | None = 0,
        places: npt.NDArray[np.intp] | None = None,
        bfloat16: bool = False,
    ) -> npt.NDArray[np.uint8]:
        """Pack the states of a batch, reading the chosen positions alone, where they lie.

        Args:
            activations: See `StateCounter.update`.
            channel_axis: The axis of the neurons.
            threshold: A neuron fires where its activation is greater.
            sample_axis: The axis of the samples; None where there is one sample.
            places: Indices into the positions of the other axes, in C order; None packs all.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.

        Returns:
            Shape `(samples * places, ceil(n_neurons / 8))`: sample after sample, the places of
            each in the order given.

        Raises:
            TypeError: If the dtype is not supported, or an argument is no number.
            ValueError: If an axis is not there, the channel axis does not have `n_neurons` entries,
                both axes are the same, a place is none of a sample's positions, or the threshold
                is not finite.
        """
        layout = self._last_layout.of(activations, channel_axis, threshold, bfloat16)
        shape = activations.shape
        if sample_axis is not None:
            sample_axis = checked_axis(shape, sample_axis)
            if sample_axis == layout.order[-1]:
                raise ValueError(f"axis {sample_axis} cannot be that of samples and of neurons")
        return pack_positions(
            self._kernel, activations, layout, sample_axis, places, self._n_threads
        )

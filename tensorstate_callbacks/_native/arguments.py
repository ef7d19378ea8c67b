"""Check what a caller passed in, and say what is wrong with it."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LARGEST_GROUP = 22
MOST_THREADS = 64


def checked_integer(value: int, name: str) -> int:
    """`value` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


def checked_width(n_neurons: int) -> int:
    """The number of neurons as an int of at least 1."""
    width = checked_integer(n_neurons, "n_neurons")
    if width < 1:
        raise ValueError(f"n_neurons must be at least 1, not {width}")
    return width


def checked_group_size(group_size: int) -> int:
    """The number of neurons of a unit as an int of 1 to 22."""
    size = checked_integer(group_size, "group_size")
    if not 1 <= size <= LARGEST_GROUP:
        raise ValueError(
            f"group_size must be 1 to {LARGEST_GROUP}, not {size}: a unit of that many neurons has"
            " 2**group_size counts"
        )
    return size


def checked_threads(n_threads: int) -> int:
    """The number of threads as an int of 1 to 64: more would only wait for one another."""
    threads = checked_integer(n_threads, "n_threads")
    if threads < 1:
        raise ValueError(f"n_threads must be at least 1, not {threads}")
    return min(threads, MOST_THREADS)


def plain_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """`values` as a plain array; a mask, which would be lost, is refused."""
    if type(values) is np.ndarray:
        return values
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array: a state has no missing neurons; select what is to"
            " be counted, or fill it, first"
        )
    return np.asarray(values)


def checked_axis(shape: tuple[int, ...], channel_axis: int, n_neurons: int | None = None) -> int:
    """The channel axis counted from 0; it must have one entry per neuron, if they are known."""
    shape, axis = tuple(shape), operator.index(channel_axis)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"activations of shape {shape} have no axis {axis}")
    if n_neurons is not None and shape[axis] != n_neurons:
        raise ValueError(
            f"axis {axis} of activations of shape {shape} has {shape[axis]}"
            f" channels, but this counter counts states of {n_neurons} neurons"
        )
    return axis % len(shape)


def checked_threshold(threshold: float) -> float:
    """The threshold as a finite Python number, an int if it was one."""
    if isinstance(threshold, np.generic):
        threshold = threshold.item()  # NumPy would compare in the scalar's own type
    if not isinstance(threshold, Real):
        raise TypeError(f"threshold must be a real number, not {threshold!r}")
    if threshold != threshold or threshold in (math.inf, -math.inf):
        raise ValueError(f"threshold must be finite, not {threshold}")
    return threshold


def checked_rows(rows: NDArray[np.uint8], n_neurons: int) -> NDArray[np.uint8]:
    """Packed rows in C order; engines look at the padding of each row while they count."""
    rows = plain_array(rows, "packed rows")
    width = -(-n_neurons // 8)
    if rows.dtype != np.uint8:
        raise TypeError(f"packed rows must be uint8, not {rows.dtype.name}")
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(
            f"packed rows of {n_neurons} neurons have the shape (m, {width}), not {rows.shape}"
        )
    return np.ascontiguousarray(rows)


def check_padding(rows: NDArray[np.uint8], n_neurons: int) -> None:
    """Raise ValueError if checked rows have a bit beyond the neurons."""
    if n_neurons % 8 and len(rows) and rows[:, -1].max() >> n_neurons % 8:
        raise ValueError(f"packed rows have bits set beyond their {n_neurons} neurons")


def checked_counts(counts: NDArray[np.uint64], n_rows: int) -> NDArray[np.uint64]:
    """One count per row, in C order."""
    counts = plain_array(counts, "counts")
    if counts.dtype.newbyteorder("=") != np.uint64:
        raise TypeError(f"counts must be uint64, not {counts.dtype.name}")
    if counts.shape != (n_rows,):
        raise ValueError(f"counts must have one entry per row, ({n_rows},), not {counts.shape}")
    return np.ascontiguousarray(counts, np.uint64)

"""Count and pack states in plain NumPy, as the compiled counter does where that is missing."""

from __future__ import annotations

import math
import os
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorstate_callbacks._native.arguments import (
    check_padding,
    checked_axis,
    checked_threshold,
    plain_array,
)
from tensorstate_callbacks._native.layout import Firing, Layout, Memory, layout_of

_COUNT_MAX = 2**64 - 1
_ROWS_AT_ONCE = 1 << 16

# One for all engines: a fork waits for it, so that a child finds none that is locked for good.
_lock = RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )

Counted = tuple[NDArray[Any], NDArray[np.uint64]]


class _RowsEngine:
    """Packs activations for engines that count rows."""

    def add_rows(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64] | None) -> None:
        raise NotImplementedError

    def add_firing(self, firing: Firing) -> None:
        self.add_rows(pack_firing(firing), None)

    def add_memory(self, memory: Memory, layout: Layout) -> None:
        self.add_firing(layout.firing(memory.array()))


class NumpyEngine(_RowsEngine):
    """Counts distinct states of `n_neurons` bits with sorting.

    States are held as keys whose sort order is that of their bytes: big-endian numbers up to 64
    neurons, raw bytes above. New batches wait in a list until they are worth a merge.
    """

    def __init__(self, n_neurons: int) -> None:
        self._n_neurons = n_neurons
        self._row_bytes = -(-n_neurons // 8)
        self.reset()

    @property
    def n_states(self) -> int:
        return self._n_states

    @property
    def n_distinct(self) -> int:
        return len(self._settled()[0])

    @property
    def nbytes(self) -> int:
        with _lock:
            return sum(keys.nbytes + counts.nbytes for keys, counts in self._parts)

    def reset(self) -> None:
        with _lock:
            self._parts: list[Counted] = [
                (self._keys(np.empty((0, self._row_bytes), np.uint8)), np.empty(0, np.uint64))
            ]
            self._n_waiting = 0
            self._n_states = 0

    def add_rows(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64] | None) -> None:
        # Copies: another thread may write to what was given.
        rows = rows.copy()
        check_padding(rows, self._n_neurons)
        if counts is None:
            added = len(rows)
            keys, times = np.unique(self._keys(rows), return_counts=True)
            part = keys, times.astype(np.uint64)
        else:
            counts = counts.copy()
            added, seen = _exact_sum(counts), counts > 0
            part = self._keys(rows)[seen], counts[seen]
        with _lock:
            _check_sum(self._n_states, added)
            parts = [*self._parts, part]
            waiting = self._n_waiting + len(part[0])
            if waiting > max(_ROWS_AT_ONCE, len(parts[0][0])):
                parts, waiting = [_merged(parts)], 0
            self._parts, self._n_waiting = parts, waiting
            self._n_states += added

    def snapshot(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        keys, counts = self._settled()
        return self._rows(keys), counts.copy()

    def spectrum(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        values, multiplicities = np.unique(self._settled()[1], return_counts=True)
        return values, multiplicities.astype(np.uint64)

    def fired(self) -> NDArray[np.uint64]:
        keys, counts = self._settled()
        total = np.zeros(self._n_neurons, np.uint64)
        for start in range(0, len(keys), _ROWS_AT_ONCE):
            block = slice(start, start + _ROWS_AT_ONCE)
            bits = np.unpackbits(
                self._rows(keys[block]), axis=1, count=self._n_neurons, bitorder="little"
            )
            total += counts[block] @ bits.astype(np.uint64)
        return total

    def _settled(self) -> Counted:
        with _lock:
            if len(self._parts) > 1:
                self._parts, self._n_waiting = [_merged(self._parts)], 0
            return self._parts[0]

    def _keys(self, rows: NDArray[np.uint8]) -> NDArray[Any]:
        if self._row_bytes > 8:
            return np.ascontiguousarray(rows).view(f"V{self._row_bytes}").reshape(-1)
        padded = np.zeros((len(rows), 8), np.uint8)
        padded[:, : self._row_bytes] = rows
        return padded.view(">u8").reshape(-1).astype(np.uint64)

    def _rows(self, keys: NDArray[Any]) -> NDArray[np.uint8]:
        if self._row_bytes > 8:
            return keys.view(np.uint8).reshape(-1, self._row_bytes).copy()
        padded = keys.astype(">u8").view(np.uint8).reshape(-1, 8)
        return np.ascontiguousarray(padded[:, : self._row_bytes])


def table_size(n_neurons: int, group_size: int) -> int:
    """How many counts a layer's units have, those of a smaller last unit included."""
    width = min(group_size, n_neurons)
    whole, left = divmod(n_neurons, width)
    return (whole << width) + (1 << left if left else 0)


class NumpyGroupEngine(_RowsEngine):
    """Counts the states of each unit of `group_size` neurons, at most `n_neurons`.

    All units' counts are one array that is never written to, only replaced: what fails halfway
    leaves it as it was.
    """

    def __init__(self, n_neurons: int, group_size: int) -> None:
        self._n_neurons, self._width = n_neurons, group_size
        self._n_units = -(-n_neurons // group_size)
        self._n_counts = table_size(n_neurons, group_size)
        if self._n_counts >= 2**60:  # of which NumPy says that the dimension is too large
            raise MemoryError
        self.reset()

    @property
    def n_states(self) -> int:
        return int(self._tables[: 1 << self._width].sum())

    @property
    def nbytes(self) -> int:
        return self._tables.nbytes

    def reset(self) -> None:
        self._tables = np.zeros(self._n_counts, np.uint64)

    def add_rows(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64] | None) -> None:
        # Copies: another thread may write to what was given.
        rows = rows.copy()
        check_padding(rows, self._n_neurons)
        times = np.ones(len(rows), np.uint64) if counts is None else counts.copy()
        at_once = max(1, 2**19 // self._n_units)
        with _lock:
            _check_sum(self.n_states, _exact_sum(times))
            tables = self._tables.copy()
            for start in range(0, len(rows), at_once):
                some = slice(start, start + at_once)
                np.add.at(tables, self._places(rows[some]), times[some, None])
            self._tables = tables

    def add_tables(self, tables: NDArray[np.uint64], n_states: int) -> None:
        with _lock:
            _check_sum(self.n_states, n_states)
            self._tables = self._tables + tables

    def snapshot(self) -> tuple[NDArray[np.uint64], int]:
        with _lock:
            return self._tables.copy(), self.n_states

    def _places(self, rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where the count of each row's and unit's state stands: (rows, units)."""
        bits = np.unpackbits(rows, axis=1, count=self._n_units * self._width, bitorder="little")
        padded = np.zeros((len(rows), self._n_units, 32), np.uint8)
        padded[:, :, : self._width] = bits.reshape(len(rows), self._n_units, self._width)
        states = np.packbits(padded, axis=2, bitorder="little").view("<u4")[:, :, 0]
        places: NDArray[np.int64] = states + (np.arange(self._n_units) << self._width)
        return places


def pack_firing(firing: Firing) -> NDArray[np.uint8]:
    """The packed states of all positions, in C order of the axes but the channels'."""
    keys = firing.bits
    if firing.folded:
        sign = keys >> (8 * keys.itemsize - 1)
        magnitude = keys & np.iinfo(keys.dtype).max // 2
        keys = np.where(sign, -magnitude, magnitude)
    if firing.always_alike:
        fires = np.full(keys.shape, firing.span > 0)
    else:
        fires = keys - keys.dtype.type(firing.first) < firing.span
    n_positions = math.prod(keys.shape[:-1])
    return np.packbits(fires.reshape(n_positions, keys.shape[-1]), axis=1, bitorder="little")


def pack_positions(
    firing: Firing,
    layout: Layout,
    sample_axis: int | None,
    places: NDArray[np.intp] | None,
) -> NDArray[np.uint8]:
    """The packed states of positions, sample after sample; see `_native.pack_positions`."""
    bits = firing.bits
    if sample_axis is None:
        bits = bits[np.newaxis]
    else:
        bits = np.moveaxis(bits, layout.order.index(sample_axis), 0)
    if places is not None:
        if bits.ndim == 2:
            bits = bits[:, np.newaxis]
        grid = bits.shape[1:-1]
        n_positions = math.prod(grid)
        for place in places[(places < 0) | (places >= n_positions)]:
            raise ValueError(f"place {place} is none of a sample's {n_positions} positions")
        chosen: tuple[Any, ...] = np.unravel_index(places, grid)
        bits = bits[(slice(None), *chosen)]
    return pack_firing(firing._replace(bits=bits))


def _merged(parts: list[Counted]) -> Counted:
    """One part in key order, with equal keys added up as exact integers."""
    keys = np.concatenate([part[0] for part in parts])
    counts = np.concatenate([part[1] for part in parts])
    if len(keys) == 0:
        return keys, counts
    order = np.argsort(keys)
    keys, counts = keys[order], counts[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(counts, starts)


def _exact_sum(counts: NDArray[np.uint64]) -> int:
    # Halves cannot wrap: there are far fewer than 2**32 rows.
    low = int((counts & np.uint64(0xFFFF_FFFF)).sum())
    return (int((counts >> np.uint64(32)).sum()) << 32) + low


def _check_sum(n_states: int, added: int) -> None:
    if n_states + added > _COUNT_MAX:
        raise OverflowError("a counter holds at most 2**64 - 1 states")


def pack_states(
    activations: ArrayLike, channel_axis: int, threshold: float = 0.0, *, bfloat16: bool = False
) -> NDArray[np.uint8]:
    """The states of all positions, packed: what `StateCounter.update` counts, as rows.

    Args:
        activations: see `StateCounter.update`.
        channel_axis: the axis of the neurons; may be negative.
        threshold: a finite number; a neuron fires where its activation is greater.
        bfloat16: int16 or uint16 `activations` are the bits of bfloat16 numbers.

    Returns:
        (m, ceil(n_neurons / 8)) uint8, one row per position in C order of the other axes; neuron
        0 is bit 0 of byte 0.

    Raises:
        TypeError: if the dtype is not supported or an argument is not a number.
        ValueError: if the channel axis is not there, or the threshold is not finite.

    Examples:
        >>> import numpy as np
        >>> pack_states(np.array([[1.0, -1.0, 2.0], [0.0, 3.0, 0.0]]), channel_axis=1)
        array([[5],
               [2]], dtype=uint8)
    """
    array = plain_array(activations, "activations")
    axis = checked_axis(array.shape, channel_axis)
    layout = layout_of(array.dtype, array.ndim, axis, checked_threshold(threshold), bfloat16)
    return pack_firing(layout.firing(array))

"""Lay out what is counted together: unit, state, label, and how many times a sample showed it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.states.counter import StateCounter

Rows = npt.NDArray[np.uint8]

_NUMBER_BYTES = 4
# What the states of some samples take at a time, before equal ones are counted together.
_MOST_BYTES = 32 << 20
# Of an array of all states of a unit so many entries may be empty for each that isn't.
_MOST_EMPTY = 16


class JointRows(NamedTuple):
    """What was counted: in how many samples of a class a state was seen so many times.

    Attributes:
        keys: Shape `(m, key_bytes)`, uint8: number of the unit, where there are several, and state;
            rows with the same one follow each other.
        units: Which unit the state is of, shape `(m,)`, int64.
        states: Packed, shape `(m, bytes)`, uint8.
        labels: Class of the samples, shape `(m,)`, int64.
        times: How many times each of them showed the state, shape `(m,)`, int64.
        n_samples: How many samples did, shape `(m,)`, int64.
    """

    keys: Rows
    units: npt.NDArray[np.int64]
    states: Rows
    labels: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    n_samples: npt.NDArray[np.int64]

    @property
    def counts(self) -> npt.NDArray[np.uint64]:
        """How often the states were seen, repetitions included."""
        return (self.times * self.n_samples).astype(np.uint64)


class JointLayout:
    """How rows that are counted together are made of states, and read back.

    A row is the number of the unit, where the layer has groups, its packed state, the label of a
    sample, and how many times the sample showed the state: numbers of four bytes.

    Args:
        n_neurons: Bits of a state of the layer.
        group_size: Neurons of a unit; None makes the layer one unit.
        n_threads: At most so many threads work on a large batch.

    Attributes:
        width: Neurons of a unit; the last one may have fewer.
    """

    def __init__(self, n_neurons: int, group_size: int | None, n_threads: int) -> None:
        self._n_neurons, self._group_size, self._n_threads = n_neurons, group_size, n_threads
        self.width = n_neurons if group_size is None else min(group_size, n_neurons)

    @property
    def n_bits(self) -> int:
        """Bits of a row."""
        return 8 * (self.key_bytes + 2 * _NUMBER_BYTES)

    @property
    def n_units(self) -> int:
        """Units of the layer."""
        return -(-self._n_neurons // self.width)

    @property
    def key_bytes(self) -> int:
        """Bytes of a unit's number, where there are groups, and of its state."""
        return self._unit_bytes + self._state_bytes

    @property
    def _unit_bytes(self) -> int:
        return 0 if self._group_size is None else _NUMBER_BYTES

    @property
    def _state_bytes(self) -> int:
        return -(-self.width // 8)

    def unpack(self, joint: Rows, counts: npt.NDArray[np.uint64]) -> JointRows:
        """Return what such rows, and how often each was counted, say.

        Args:
            joint: In the order of their bytes.
            counts: How often each was counted.
        """
        key = self.key_bytes
        states = joint[:, self._unit_bytes : key]
        units = np.zeros(len(joint), np.int64)
        if self._unit_bytes:
            units = _numbers(joint[:, :_NUMBER_BYTES], "<u4")
        labels = _numbers(joint[:, key : key + _NUMBER_BYTES], "<i4")
        times = _numbers(joint[:, key + _NUMBER_BYTES :], "<u4")
        return JointRows(joint[:, :key], units, states, labels, times, counts.view(np.int64))

    def pack(self, rows: Rows, labels: npt.NDArray[np.int32], n_positions: int) -> Iterator[Rows]:
        """Yield a row for each state that a sample shows, with its label and how often it does.

        Args:
            rows: Packed states of the layer, sample after sample.
            labels: Of the samples.
            n_positions: States of each sample.
        """
        of_unit = (self.key_bytes + 2 * _NUMBER_BYTES) * n_positions
        if self._takes_tables(n_positions):
            of_unit = max(of_unit, 8 << self.width)
        step = max(_MOST_BYTES // (of_unit * self.n_units), 1)
        for first in range(0, len(labels), step):
            some = labels[first : first + step]
            states = rows[first * n_positions : (first + step) * n_positions]
            keys, samples, times = self._times(states, len(some), n_positions)
            yield _side_by_side(keys, some[samples], times)

    def _takes_tables(self, n_positions: int) -> bool:
        few_empty = 1 << self.width <= _MOST_EMPTY * n_positions
        return self._group_size is not None and n_positions > 1 and few_empty

    def _times(
        self, rows: Rows, n_samples: int, n_positions: int
    ) -> tuple[Rows, npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        """Return unit and state, sample, and how many times it shows it, of all that are shown."""
        if self._takes_tables(n_positions):
            return self._table_times(rows, n_samples)
        keys = self._keys(rows)
        samples = np.repeat(np.arange(n_samples, dtype=np.uint32), len(keys) // n_samples)
        if n_positions == 1:
            return keys, samples.astype(np.intp), np.ones(len(keys), np.uint32)
        seen = StateCounter(8 * (self.key_bytes + _NUMBER_BYTES), n_threads=self._n_threads)
        seen.update_packed(_side_by_side(keys, samples))
        distinct, counts = seen.snapshot()
        which = _numbers(distinct[:, self.key_bytes :], "<u4")
        return distinct[:, : self.key_bytes], which, counts.astype(np.uint32)

    def _table_times(
        self, rows: Rows, n_samples: int
    ) -> tuple[Rows, npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        """Do as `_times`, by an array of all states of all samples: of small units it is faster."""
        states, n_units = self._unit_states(rows), self.n_units
        tables = np.arange(n_samples * n_units, dtype=np.intp).reshape(n_samples, 1, n_units)
        places = (tables << self.width) + codes_of(states).reshape(n_samples, -1, n_units)
        counts = np.bincount(places.reshape(-1), minlength=n_samples * n_units << self.width)
        shown = np.flatnonzero(counts)
        samples, units = np.divmod(shown >> self.width, n_units)
        codes = (shown & ((1 << self.width) - 1)).astype("<u4").view(np.uint8).reshape(-1, 4)
        keys = np.concatenate([_bytes(units.astype(np.uint32)), codes[:, : self._state_bytes]], 1)
        return keys, samples, counts[shown].astype(np.uint32)

    def _keys(self, rows: Rows) -> Rows:
        """Return unit and state of each state of the layer: as many rows as it has units, each."""
        if self._group_size is None:
            return rows
        units = np.tile(np.arange(self.n_units, dtype=np.uint32), len(rows))
        return np.concatenate([_bytes(units), self._unit_states(rows)], axis=1)

    def _unit_states(self, rows: Rows) -> Rows:
        """Return the states of all units, one after the other, of each state of the layer."""
        n_units, width = self.n_units, self.width
        if width == 8:
            return rows.reshape(-1, 1)
        bits = np.zeros((len(rows), n_units * width), np.uint8)
        bits[:, : self._n_neurons] = np.unpackbits(
            rows, axis=1, count=self._n_neurons, bitorder="little"
        )
        packed = np.packbits(bits.reshape(-1, width), axis=1, bitorder="little")
        return packed.reshape(-1, self._state_bytes)


def _bytes(numbers: npt.NDArray[Any]) -> Rows:
    return numbers.astype(numbers.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, _NUMBER_BYTES)


def _numbers(columns: Rows, kind: str) -> npt.NDArray[np.int64]:
    return np.ascontiguousarray(columns).view(kind).reshape(-1).astype(np.int64)


def codes_of(states: Rows) -> npt.NDArray[np.int64]:
    """Return the states of small units as numbers: neuron i is bit i."""
    codes = np.zeros(len(states), np.int64)
    for place, column in enumerate(states.T):
        codes += column.astype(np.int64) << (8 * place)
    return codes


def _side_by_side(keys: Rows, *numbers: npt.NDArray[Any]) -> Rows:
    return np.concatenate([keys, *map(_bytes, numbers)], axis=1)

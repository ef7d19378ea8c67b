"""Count the states of each unit of a few neighbouring neurons of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks._native import GroupEngine, make_group_engine, merge_group_engines
from tensorstate_callbacks._native.arguments import (
    checked_group_size,
    checked_integer,
    checked_threads,
    plain_array,
)
from tensorstate_callbacks._native.fallback import table_size
from tensorstate_callbacks.states.row_counter import RowCounter
from tensorstate_callbacks.states.spectrum import Spectrum

__all__ = ["GroupCounter", "table_size"]

_COUNTS_AT_ONCE = 2**18


class GroupCounter(RowCounter):
    """Counts the states of each unit of a layer, exactly, in memory that doesn't grow with them.

    Neurons 0 to `group_size - 1` are the first unit, the next `group_size` the second; the last
    unit has what is left. A unit of g neurons has `2**g` counts. What a counter holds doesn't
    depend on how the data was cut: batch size, order, shards and threads give the same numbers.
    Several threads may feed one counter. A call that raises an error leaves it as it was.

    Args:
        n_neurons: Neurons of the layer, at least 1.
        group_size: Neurons of a unit, 1 to 22. Where it is `n_neurons` or more, the layer is one
            unit.
        n_threads: At most so many threads work on a large batch, the caller's among them. What is
            counted doesn't depend on it.

    Raises:
        TypeError: An argument is not an integer.
        ValueError: One is out of range, or the environment variable `TENSORSTATE_KERNEL` names a
            kernel that this machine can't run.
        MemoryError: There is no memory for the counts of all units.

    Examples:
        >>> import numpy as np
        >>> counter = GroupCounter(3, group_size=2)
        >>> counter.update(np.array([[1.0, -1.0, 2.0], [0.5, 0.0, 9.0], [0.0, 1.0, 0.0]]), -1)
        >>> counter.n_states, counter.n_units
        (3, 2)
        >>> counter.tables()
        array([0, 2, 1, 0, 1, 2], dtype=uint64)
        >>> counter.n_distinct, counter.fired()
        (array([2, 2], dtype=uint64), array([2, 1, 2], dtype=uint64))
    """

    _engine: GroupEngine

    def __init__(self, n_neurons: int, group_size: int, *, n_threads: int = 1) -> None:
        super().__init__(n_neurons)
        self._group_size = checked_group_size(group_size)
        self._width = min(self._group_size, self._n_neurons)
        try:
            self._kernel, self._engine = make_group_engine(
                self._n_neurons, self._width, checked_threads(n_threads)
            )
        except MemoryError:
            raise MemoryError(
                f"there is no memory for the {self._n_counts} counts that groups of"
                f" {self._width} of {self._n_neurons} neurons have; take a smaller group_size"
            ) from None

    @property
    def group_size(self) -> int:
        """Neurons of a unit, as asked for; the last unit may have fewer."""
        return self._group_size

    @property
    def n_units(self) -> int:
        """Number of units of the layer."""
        return -(-self._n_neurons // self._width)

    @property
    def n_distinct(self) -> NDArray[np.uint64]:
        """Number of distinct states seen so far of each unit: `(n_units,)` uint64."""
        seen = [np.count_nonzero(units, axis=1) for units in self._units()]
        return np.concatenate(seen).astype(np.uint64)

    def merge(self, other: GroupCounter) -> None:
        """Add all that `other` has counted; `other` stays as it is.

        Raises:
            TypeError: `other` is not a GroupCounter.
            ValueError: Its units are others.
            OverflowError: The counter would hold more than 2**64 - 1 states.
        """
        if not isinstance(other, GroupCounter):
            raise TypeError(f"only a GroupCounter can be merged, not {type(other).__name__}")
        if (other._n_neurons, other._width) != (self._n_neurons, self._width):
            raise ValueError(
                f"cannot merge groups of {other.group_size} of {other.n_neurons} neurons into a"
                f" counter of groups of {self.group_size} of {self.n_neurons} neurons"
            )
        merge_group_engines(self._engine, other._engine)

    def tables(self) -> NDArray[np.uint64]:
        """Return how often each unit was in each state: one uint64 array for all units.

        The count of state s of unit u is at `u * 2**group_size + s`, where neuron i of the unit is
        bit i of s. A smaller last unit of g neurons has only its `2**g` states there, and a layer
        that is one unit its `2**n_neurons`. Arrays of counters with the same units can be added up,
        over processes too, for `add_tables`.
        """
        return self._engine.snapshot()[0]

    def add_tables(self, tables: NDArray[np.uint64], n_states: int) -> None:
        """Add what was counted elsewhere: by counters of other processes, or on a device.

        Args:
            tables: Counts, uint64, as `tables()` returns them.
            n_states: States of the layer that were counted: the sum of the counts of each unit.

        Raises:
            TypeError: `tables` is not uint64, or `n_states` is not an integer.
            ValueError: The shape is wrong, or the counts of a unit don't add up to `n_states`.
            OverflowError: The counter would hold more than 2**64 - 1 states.

        Examples:
            >>> import numpy as np
            >>> counter = GroupCounter(3, group_size=2)
            >>> counter.add_tables(np.array([0, 2, 1, 0, 1, 2], np.uint64), 3)
            >>> counter.fired()
            array([2, 1, 2], dtype=uint64)
        """
        tables, n_states = plain_array(tables, "tables"), checked_integer(n_states, "n_states")
        if tables.dtype.newbyteorder("=") != np.uint64:
            raise TypeError(f"tables must be uint64, not {tables.dtype.name}")
        if tables.shape != (self._n_counts,):
            raise ValueError(
                f"tables of groups of {self._width} of {self._n_neurons} neurons have the shape"
                f" ({self._n_counts},), not {tables.shape}"
            )
        if n_states >= 2**64:
            raise OverflowError("a counter holds at most 2**64 - 1 states")
        tables = np.array(tables, np.uint64)  # another thread may write to what was given
        sums = [total for units in self._units_of(tables) for total in _exact_sums(units)]
        for unit, total in enumerate(sums):
            if total != n_states:
                raise ValueError(f"the counts of unit {unit} add up to {total}, not {n_states}")
        self._engine.add_tables(tables, n_states)

    def spectra(self) -> list[Spectrum]:
        """Return the spectrum of each unit: what the units' entropies depend on.

        Examples:
            >>> import numpy as np
            >>> counter = GroupCounter(10, group_size=8)
            >>> counter.update_packed(np.array([[1, 0], [2, 0], [2, 1]], np.uint8))
            >>> [spectrum.values.tolist() for spectrum in counter.spectra()]
            [[1, 2], [1, 2]]
        """
        return [spectrum for units in self._units() for spectrum in _spectra(units)]

    def fired(self) -> NDArray[np.uint64]:
        """Return in how many states each neuron fired: `(n_neurons,)` uint64."""
        return self.snapshot()[1]

    def snapshot(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return `tables()` and `fired()` of one moment, for little more than the work of one."""
        tables = self.tables()
        return tables, np.concatenate([_fired(units) for units in self._units_of(tables)])

    @property
    def _n_counts(self) -> int:
        return table_size(self._n_neurons, self._width)

    def _units(self) -> Iterator[NDArray[np.uint64]]:
        return self._units_of(self.tables())

    def _units_of(self, tables: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
        """The counts of some units of one size after the other: (units, 2**size)."""
        states = 1 << self._width
        whole = self._n_neurons // self._width * states
        at_once = max(_COUNTS_AT_ONCE, states)
        for start in range(0, whole, at_once):
            yield tables[start : min(start + at_once, whole)].reshape(-1, states)
        if whole < len(tables):
            yield tables[whole:].reshape(1, -1)

    def __repr__(self) -> str:
        return (
            f"GroupCounter(n_neurons={self.n_neurons}, group_size={self.group_size},"
            f" n_states={self.n_states}, kernel={self.kernel!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        counts, n_states = self._engine.snapshot()
        places = np.flatnonzero(counts)
        # Of most units most states are never seen.
        sparse = 2 * len(places) < len(counts)
        return {
            "n_neurons": self.n_neurons,
            "group_size": self.group_size,
            "n_states": n_states,
            "places": places if sparse else None,
            "counts": counts[places] if sparse else counts,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["n_neurons"], state["group_size"])  # type: ignore[misc]
        tables = state["counts"]
        if state["places"] is not None:
            tables = np.zeros(self._n_counts, np.uint64)
            tables[state["places"]] = state["counts"]
        self.add_tables(tables, state["n_states"])


def _exact_sums(units: NDArray[np.uint64]) -> list[int]:
    # Halves cannot wrap: a unit has at most 2**22 counts.
    high = (units >> np.uint64(32)).sum(axis=1).tolist()
    low = (units & np.uint64(0xFFFF_FFFF)).sum(axis=1).tolist()
    return [(some << 32) + rest for some, rest in zip(high, low, strict=True)]


def _fired(units: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """In how many states each neuron fired, of units of one size."""
    fired = []
    while (half := units.shape[1] // 2) > 0:
        # The last neuron fires in the second half of the states; then without it.
        fired.append(units[:, half:].sum(axis=1))
        units = units[:, :half] + units[:, half:]
    return np.stack(fired[::-1], axis=1).reshape(-1)


def _spectra(units: NDArray[np.uint64]) -> list[Spectrum]:
    """The spectra of units of one size, for the work of one."""
    n_units, n_states = units.shape
    ordered = np.sort(units, axis=1)
    begins = ordered > 0
    begins[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    places = np.flatnonzero(begins)
    unit = places // n_states
    ends = np.minimum(np.append(places[1:], ordered.size), (unit + 1) * n_states)
    multiplicities = (ends - places).astype(np.uint64)
    cuts = np.searchsorted(unit, np.arange(1, n_units))
    parts = (np.split(ordered.reshape(-1)[places], cuts), np.split(multiplicities, cuts))
    return [Spectrum(*part) for part in zip(*parts, strict=True)]

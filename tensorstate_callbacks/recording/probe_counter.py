"""Count the states of one probe: whole layers or groups, all positions or some, within a budget."""

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.recording.budget import (
    COUNT_BYTES,
    WHOLE,
    Budget,
    Sampling,
    bytes_per_state,
    counter_bytes,
    level_positions,
    level_sizes,
)
from tensorstate_callbacks.states.counter import Memory, StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter, table_size
from tensorstate_callbacks.states.positions import (
    PositionPacker,
    grid_of,
    spread_positions,
)

Counter = StateCounter | GroupCounter
Rows = npt.NDArray[np.uint8]
Grid = tuple[int, ...]

# States of reserves wait until there are so many bytes of them: most passes end before.
_MOST_WAITING = 4 << 20
# What the states of a batch take besides, at least.
_WAITING_BYTES = 400


class _Waiting(NamedTuple):
    """States of a batch that the reserves have not counted yet.

    Attributes:
        rows: Packed, sample after sample.
        grid: How many positions of a sample lie along each axis.
        read: How many of them each level reads.
        level: The one that these were read for.
    """

    rows: Rows
    grid: Grid
    read: tuple[int, ...]
    level: int


class ProbeCounter:
    """Counts the states that one probe shows with one number of neurons.

    The counter of all positions that are to be read has reserves where it may grow: one of every
    sixteenth position, one of every sixteenth of these, down to one position. What they read is
    taken from the packed states at once, and counted only once it matters. Where the machine has no
    memory for a counter, all of them are given up.

    Args:
        n_neurons: Bits of a state.
        sampling: What is a unit, and which positions are read.
        budget: Shares the memory out; None where there is no limit.
        n_threads: At most so many threads work on a large batch.

    Attributes:
        n_neurons: Bits of a state.
        level: The counter that is read, 0 for that of all positions; None once none fits.
        n_wanted: Positions of a sample that the last batch was to be read at.
    """

    def __init__(
        self,
        n_neurons: int,
        sampling: Sampling = WHOLE,
        budget: Budget | None = None,
        n_threads: int = 1,
    ) -> None:
        self.n_neurons, self._n_threads = n_neurons, n_threads
        self.level: int | None = 0
        self._group_size, self._positions = sampling.group_size, sampling.positions
        self._budget = budget
        self.n_wanted = 0
        self._may_grow = self._group_size is None and bytes_per_state(n_neurons) > 0
        if budget is not None and not self._may_grow:
            budget.take(self._fixed_bytes())
        self._packer = PositionPacker(n_neurons, n_threads=n_threads)
        self._counters: list[Counter | None] = [None]
        try:
            self._counters = [self._new_counter()]
        except MemoryError:
            self.level = None
        # What the reserves have counted.
        self._n_counted = [0]
        self._waiting: list[_Waiting] = []
        self._n_waiting = 0
        # An interrupt must not lock the thread out that it leaves it to.
        self._lock = threading.RLock()

    @property
    def counter(self) -> Counter:
        """The counter that is read; an empty one where none fits."""
        found = None if self.level is None else self._counters[self.level]
        return StateCounter(self.n_neurons) if found is None else found

    @property
    def progress(self) -> tuple[int | None, int]:
        """What changes with each batch that is counted."""
        return self.level, self.counter.n_states

    @property
    def has_seen(self) -> bool:
        """Whether any states were counted, or would have been if there were memory."""
        return self.n_wanted > 0 and (self.level is None or self.counter.n_states > 0)

    @property
    def thinned(self) -> tuple[int, int] | None:
        """Positions of a sample that are read and that were to be read, where these differ."""
        return thinned_to(self.level, self.n_wanted)

    def levels(self) -> list[Counter | None]:
        """Return the counters of all levels, up to date; None for those that were given up."""
        with self._lock:
            try:
                self._count_waiting()
            except MemoryError:
                self.keep(None)
            return list(self._counters)

    def sizes(self) -> list[int | None]:
        """Return the size at each level, in bytes; see `budget`."""
        counters = self.levels()
        if self._may_grow:
            distinct = [c.n_distinct if isinstance(c, StateCounter) else None for c in counters]
            return level_sizes(self.n_neurons, distinct)
        return [None if counter is None else self._fixed_bytes() for counter in counters]

    def keep(self, level: int | None) -> None:
        """Give up the levels before one, or all."""
        with self._lock:
            if level is None:
                self._waiting, self._n_waiting = [], 0
            self.level = level
            n_gone = len(self._counters) if level is None else level
            self._counters[:n_gone] = [None] * n_gone

    def give_up(self, grid: Grid) -> None:
        """Count nothing: there is no memory to read a batch with such positions."""
        self.n_wanted = self.n_read(grid) or self.n_wanted
        self.keep(None)

    def update(
        self,
        activations: npt.NDArray[Any] | Memory,
        channel_axis: int,
        threshold: float = 0.0,
        *,
        sample_axis: int | None = 0,
        bfloat16: bool = False,
    ) -> None:
        """Count the states of a batch; see `StateCounter.update`.

        Args:
            activations: Activations of any shape.
            channel_axis: The axis of the neurons.
            threshold: A neuron fires where its activation is greater.
            sample_axis: The axis of the samples; None where there is one sample.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.
        """
        shape = activations.shape
        grid = grid_of(shape, channel_axis, sample_axis)
        n_positions = math.prod(grid)

        def rows_at(n_read: int) -> Rows:
            return self._packer.pack(
                activations,
                channel_axis,
                threshold,
                sample_axis=sample_axis,
                places=None if n_read == n_positions else spread_positions(grid, n_read),
                bfloat16=bfloat16,
            )

        def count_all(counter: Counter) -> None:
            counter.update(activations, channel_axis, threshold, bfloat16=bfloat16)

        n_samples = 1 if sample_axis is None else shape[sample_axis]
        self._count(grid, n_positions, n_samples, rows_at, count_all)

    def pack(
        self,
        activations: npt.NDArray[Any] | Memory,
        channel_axis: int,
        threshold: float = 0.0,
        *,
        sample_axis: int | None = 0,
        bfloat16: bool = False,
    ) -> Rows:
        """Return the states of a batch at all positions that are to be read, sample after sample.

        The arguments are those of `update`.
        """
        return self._packer.pack(
            activations,
            channel_axis,
            threshold,
            sample_axis=sample_axis,
            places=self.places(grid_of(activations.shape, channel_axis, sample_axis)),
            bfloat16=bfloat16,
        )

    def update_packed(self, rows: Rows, grid: Grid) -> None:
        """Count states that are packed already; see `StateCounter.update_packed`.

        Args:
            rows: The states of all positions that are to be read, those of `places` where these
                are not all, sample after sample.
            grid: How many positions of a sample lie along each axis.
        """
        n_given = self.n_read(grid)

        def rows_at(n_read: int) -> Rows:
            if n_read == n_given:
                return rows
            return _take(rows, n_given, _places_among(grid, n_given, n_read))

        n_samples = len(rows) // n_given if n_given else 0
        self._count(grid, n_given, n_samples, rows_at, lambda c: c.update_packed(rows))

    def add_tables(self, tables: npt.NDArray[np.uint64], n_states: int, n_positions: int) -> None:
        """Add what was counted of groups elsewhere; see `GroupCounter.add_tables`.

        Args:
            tables: How often each unit was in each state.
            n_states: States of the layer that were counted.
            n_positions: Positions of a sample that the last batch was read at.
        """
        self.n_wanted = n_positions or self.n_wanted
        counter = self.counter
        # Else it was given up.
        if isinstance(counter, GroupCounter):
            try:
                counter.add_tables(tables, n_states)
            except MemoryError:
                self.keep(None)

    def n_read(self, grid: Grid) -> int:
        """Return how many positions of a sample are to be read."""
        total = math.prod(grid)
        return total if self._positions is None else min(self._positions, total)

    def places(self, grid: Grid) -> npt.NDArray[np.intp] | None:
        """Return the positions that are to be read, indices in C order; None where all are."""
        wanted = self.n_read(grid)
        return None if wanted == math.prod(grid) else spread_positions(grid, wanted)

    def _count(
        self,
        grid: Grid,
        n_given: int,
        n_samples: int,
        rows_at: Callable[[int], Rows],
        count_all: Callable[[Counter], None],
    ) -> None:
        """Count a batch.

        Args:
            grid: How many positions of a sample lie along each axis.
            n_given: How many of them are given.
            n_samples: Samples.
            rows_at: Packs the states of so many positions of each sample.
            count_all: Has a counter count those of all positions that are given.
        """
        wanted = self.n_read(grid)
        if wanted and n_samples:
            self.n_wanted = wanted
        try:
            self._count_wanted(grid, wanted, n_given, n_samples, rows_at, count_all)
        except MemoryError:
            self.keep(None)

    def _count_wanted(
        self,
        grid: Grid,
        wanted: int,
        n_given: int,
        n_samples: int,
        rows_at: Callable[[int], Rows],
        count_all: Callable[[Counter], None],
    ) -> None:
        budget = self._budget if self._may_grow else None
        if budget is None:
            if self.level is not None:
                self._count_one(wanted, n_given, rows_at, count_all)
            return
        # Before the lock: others may have to give up something. A fifteenth is for reserves.
        budget.take(bytes_per_state(self.n_neurons) * n_samples * wanted * 16 // 15)
        with self._lock:
            if self.level is None:
                return
            read = level_positions(wanted)
            self._add_levels(len(read))
            n_read = read[min(self.level, len(read) - 1)]
            if self.level + 1 == len(self._counters):
                self._count_one(n_read, n_given, rows_at, count_all)
                return
            # Packed once for both: to read the activations again takes longer.
            rows = rows_at(n_read)
            n_next = read[min(self.level + 1, len(read) - 1)]
            reserve = _take(rows, n_read, _places_among(grid, n_read, n_next))
            # Only now, so that what can't be read is not counted anywhere.
            self.counter.update_packed(rows)
            self._waiting.append(_Waiting(reserve, grid, read, self.level + 1))
            self._n_waiting += reserve.nbytes + _WAITING_BYTES
            if self._n_waiting > _MOST_WAITING:
                self._count_waiting()

    def _count_one(
        self,
        n_read: int,
        n_given: int,
        rows_at: Callable[[int], Rows],
        count_all: Callable[[Counter], None],
    ) -> None:
        if n_read == n_given:
            count_all(self.counter)
        else:
            self.counter.update_packed(rows_at(n_read))

    def _add_levels(self, n_levels: int) -> None:
        """Add the reserves that a batch needs which has more positions than those before."""
        if n_levels <= len(self._counters):
            return
        self._count_waiting()
        while len(self._counters) < n_levels:
            # Of what came before, the last level has read one position, as a further one would.
            last, further = self._counters[-1], self._new_counter()
            if isinstance(last, StateCounter) and isinstance(further, StateCounter):
                further.merge(last)
            self._counters.append(further)
            self._n_counted.append(further.n_states)

    def _count_waiting(self) -> None:
        """Have the reserves count what waits for them."""
        while self._waiting:
            rows, grid, read, first = self._waiting[0]
            for level in range(first, len(self._counters)):
                n_of, n_read = (read[min(each, len(read) - 1)] for each in (first, level))
                some = _take(rows, n_of, _places_among(grid, n_of, n_read))
                counter = self._counters[level]
                # Else an interrupt came before it was taken off the list.
                if counter is not None and counter.n_states == self._n_counted[level]:
                    counter.update_packed(some)
                self._n_counted[level] += len(some)
            self._waiting.pop(0)
        self._n_waiting = 0

    def _new_counter(self) -> Counter:
        if self._group_size is None:
            return StateCounter(self.n_neurons, n_threads=self._n_threads)
        return GroupCounter(self.n_neurons, self._group_size, n_threads=self._n_threads)

    def _fixed_bytes(self) -> int:
        if self._group_size is None:
            return counter_bytes(self.n_neurons, 0)
        return COUNT_BYTES * table_size(self.n_neurons, self._group_size)


def thinned_to(level: int | None, n_wanted: int) -> tuple[int, int] | None:
    """Return how many positions a level reads of those that were wanted; None where all."""
    if level == 0:
        return None
    read = level_positions(n_wanted)
    return 0 if level is None else read[min(level, len(read) - 1)], n_wanted


def _take(rows: Rows, n_positions: int, places: npt.NDArray[np.intp]) -> Rows:
    by_sample = rows.reshape(-1, n_positions, rows.shape[1])
    # A tenth of the time that indexing takes.
    return by_sample.take(places, axis=1).reshape(-1, rows.shape[1])


@lru_cache(maxsize=4096)
def _places_among(grid: Grid, n_of: int, n_read: int) -> npt.NDArray[np.intp]:
    """Return where the positions of a smaller count are among those of a larger one."""
    return np.searchsorted(spread_positions(grid, n_of), spread_positions(grid, n_read))

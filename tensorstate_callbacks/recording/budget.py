"""Which layers are read at fewer positions, so that all counters fit into memory.

Each layer has several counters: one of all its positions, and reserves, of which each reads a
sixteenth of the positions of the one before. A layer's *size* at a level is the memory of its
counters from that level on. The budget is shared out like water between vessels: up to one height,
the *level of the water*, each layer has what it needs; those that need more get that much.

What a layer needs only grows as data comes in, and so the water only falls. A counter whose size is
above the water will therefore be above it at the end, whatever comes, and is given up at once; what
is left is what the rule, applied to the sizes of the whole pass, says. So the choice depends on the
data alone, not on how it was cut. The sizes are computed from the numbers of distinct states: what
tables really hold depends on the order in which they grew.
"""

import dataclasses
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Protocol, TypeVar

Name = TypeVar("Name")

STEP = 16
"""Each level reads one of so many positions of the one before."""

COUNT_BYTES = 4
"""What a group's counter takes for each state that a unit may be in."""

# Up to here a counter is an array of all states; up to there it becomes one when that is smaller.
_ARRAY = 16
_MAY_BE_ARRAY = 21


def counter_bytes(n_neurons: int, n_distinct: int) -> int:
    """Return the memory that a `StateCounter` may take, in bytes, at its most.

    Args:
        n_neurons: Bits of a state.
        n_distinct: Distinct states seen.
    """
    array = COUNT_BYTES << n_neurons
    if n_neurons <= _ARRAY:
        return array
    table = bytes_per_state(n_neurons) * n_distinct
    return min(table, array) if n_neurons <= _MAY_BE_ARRAY else table


def bytes_per_state(n_neurons: int) -> int:
    """Return how much one more distinct state may take."""
    if n_neurons <= _ARRAY:
        return 0
    row = -(-n_neurons // 8)
    return 40 if row <= 8 else 56 + row * 3 // 2


@lru_cache(maxsize=1024)
def level_positions(n_positions: int) -> tuple[int, ...]:
    """Return how many positions of a sample each level reads, the whole first.

    Examples:
        >>> level_positions(112 * 112), level_positions(1)
        ((12544, 784, 49, 4, 1), (1,))
    """
    found = [n_positions]
    while found[-1] > 1:
        found.append(-(-found[-1] // STEP))
    return tuple(found)


def water_level(sizes: Sequence[float | None], budget: float) -> float:
    """Return the height up to which each layer has what it needs; infinite where all fit.

    Args:
        sizes: What each layer needs; None of one that was found to need more than the water.
        budget: What there is.
    """
    known = sorted(size for size in sizes if size is not None)
    n_above = len(sizes) - len(known)
    if not n_above and sum(known) <= budget:
        return math.inf
    left = budget
    for index, size in enumerate(known):
        # The others would get as much each: if that is less, this one is above the water too.
        share = left / (len(known) - index + n_above)
        if size > share:
            return share
        left -= size
    return left / n_above


def level_sizes(n_neurons: int, distinct: Sequence[int | None]) -> list[int | None]:
    """Return the size of a layer's counters at each level, in bytes.

    Args:
        n_neurons: Bits of a state.
        distinct: Distinct states at each level; None at those that were given up.

    Examples:
        >>> level_sizes(64, [None, 1000, 100])
        [None, 44000, 4000]
    """
    sizes: list[int | None] = []
    held = 0
    for number in reversed(distinct):
        held += 0 if number is None else counter_bytes(n_neurons, number)
        sizes.append(None if number is None else held)
    return sizes[::-1]


def kept_levels(
    sizes: Mapping[Name, Sequence[int | None]], budget: float
) -> dict[Name, int | None]:
    """Return the level that each layer is read at; None of one that doesn't fit at any.

    Args:
        sizes: Of each layer the size at each level, the whole first; None at the levels that were
            given up.
        budget: Bytes that all counters may hold.
    """
    height = water_level([levels[0] for levels in sizes.values()], budget)
    return {
        name: next(
            (level for level, size in enumerate(levels) if size is not None and size <= height),
            None,
        )
        for name, levels in sizes.items()
    }


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What of a layer's states is counted, and how, and what is found in them.

    Args:
        group_size: Neurons of a unit, 1 to 22; None makes the layer one unit.
        positions: At most that many positions of each sample are read, at least 1; None reads all.
        max_memory: Bytes that the counters of one pass may hold together, at least 1; None sets no
            limit.
        neurons: Whether to find the neurons that agree or oppose each other.
        by_class: Whether states are also counted by the classes of their samples.
        keeps_rows: Whether states are kept in their order, all of them, in place of counts.
    """

    group_size: int | None = None
    positions: int | None = None
    max_memory: int | None = None
    neurons: bool = False
    by_class: bool = False
    keeps_rows: bool = False

    def halves(self) -> "Sampling":
        """Return what the counters of all classes together have, and those by class: half each."""
        if self.max_memory is None:
            return self
        return dataclasses.replace(self, max_memory=max(self.max_memory // 2, 1))


WHOLE = Sampling()
"""All positions, the layer as one unit, whatever memory it takes."""


def describe_thinned(thinned: Mapping[str, tuple[int, int]]) -> str:
    """Return the warning of layers that are read at fewer positions since memory was short.

    Args:
        thinned: The positions of a sample that each is read at, and of how many; 0 where it could
            not be counted at all.
    """
    fewer = [f"{name} ({n} of {total})" for name, (n, total) in thinned.items() if n]
    gone = [name for name, (n, _) in thinned.items() if not n]
    parts = [f"fewer positions of a sample are read of {', '.join(fewer)}"] * bool(fewer)
    parts += [f"{', '.join(gone)} could not be counted at all"] * bool(gone)
    return (
        "the counters need more memory than max_memory gives them or the machine has: "
        f"{'; '.join(parts)}. What is reported is exact for what was read. Count groups of neurons "
        "(group_size=8), whose memory doesn't grow; or read fewer positions of all layers "
        "(positions=16); or give more max_memory"
    )


class Sized(Protocol):
    """What shares in a budget: the counters of a probe."""

    def sizes(self) -> list[int | None]:
        """Return the size at each level, in bytes; None at those that were given up."""

    def keep(self, level: int | None) -> None:
        """Give up the levels before one, or all."""


class Budget:
    """The memory that the counters of one pass share.

    Args:
        n_bytes: How much there is.

    Attributes:
        n_bytes: How much there is.
        was_short: Whether it might not have been enough.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._members: list[Sized] = []
        # What is left if all states turn out to be distinct.
        self._left = n_bytes
        self.was_short = False
        # An interrupt must not lock the thread out that it leaves it to.
        self._lock = threading.RLock()

    def join(self, member: Sized) -> None:
        """Let a probe's counters share in it."""
        self._members.append(member)

    def leave(self, member: Sized) -> None:
        """Share it among the others."""
        with suppress(ValueError):
            self._members.remove(member)

    def take(self, n_bytes: int) -> None:
        """Take so much of it at most; where it may not be there, others give up what they must."""
        # Several threads count, and none of what they take may be lost.
        with self._lock:
            self._left -= n_bytes
            if self._left < 0:
                self.was_short = True
                self._settle(n_bytes)

    @property
    def most_taken(self) -> int:
        """How much was taken if all states were distinct."""
        return self.n_bytes - self._left

    def finish(self) -> None:
        """Have the rule decide on what the whole pass has shown."""
        with self._lock:
            if self.was_short:
                self._settle(0)

    def _settle(self, wanted: int) -> None:
        members = list(self._members)
        sizes = {number: member.sizes() for number, member in enumerate(members)}
        held = 0
        for number, level in kept_levels(sizes, self.n_bytes).items():
            members[number].keep(level)
            held += (sizes[number][level] or 0) if level is not None else 0
        self._left = self.n_bytes - held - wanted

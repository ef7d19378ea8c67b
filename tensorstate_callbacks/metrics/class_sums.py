"""Sum over the states of a layer what they tell of classes.

The sums are of numbers of fixed point, integers: they add up to the same in any order, over the
processes among which the states are divided too, so that what is made of them is the same to the
last bit however the data was cut.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.metrics.class_tables import ClassTable, Integers

Floats: TypeAlias = npt.NDArray[np.float64]

MOST_PAIRED = 100
"""Of more classes than these no two are compared: there would be more pairs than anyone reads."""

# Entries of tables that are worked on at a time: some MiB.
_BLOCK = 1 << 18


class Size(NamedTuple):
    """How many classes there are, and units and neurons of the layer."""

    n_classes: int
    n_units: int
    n_neurons: int

    @property
    def has_pairs(self) -> bool:
        """Whether classes are compared two by two."""
        return self.n_classes <= MOST_PAIRED

    @property
    def of_bits(self) -> "_Scale":
        """For entropies, and information, of all units together."""
        of_labels = self.n_units * max(self.n_classes - 1, 1).bit_length()
        return _Scale.up_to(max(self.n_neurons, of_labels), 62)

    @property
    def of_shares(self) -> "_Scale":
        """For shares of all units together, whose sums floats are to hold exactly."""
        return _Scale.up_to(self.n_units, 52)


class Found(NamedTuple):
    """What the sums tell; see `ClassMetrics`."""

    n_distinct: Integers
    entropy: Floats
    information: float
    overlap: Floats | None
    divergence: Floats | None


def class_sums(table: ClassTable, totals: Integers, size: Size) -> Integers:
    """Return all that adds up over processes, each of which has the rows of its own states.

    Args:
        table: Of this process.
        totals: `ClassTable.totals`, of all processes.
        size: Of the layer.
    """
    parts = [
        np.bincount(table.classes, minlength=size.n_classes).astype(np.int64),
        _entropy_sums(table, totals, size.of_bits),
        np.array([_information_sum(table, totals, size.of_bits)], np.int64),
    ]
    if size.has_pairs:
        parts.append(_pair_sums(table, totals, size.of_shares).reshape(-1))
    return np.concatenate(parts)


def found_of(sums: Integers, seen: npt.NDArray[np.bool_], size: Size) -> Found:
    """Return what the sums over all states tell.

    Args:
        sums: Those of `class_sums`, of all processes.
        seen: Whether each unit saw any states of each class, shape `(units, classes)`.
        size: Of the layer.
    """
    n, n_units = size.n_classes, size.n_units
    n_distinct, entropies, (information,) = np.split(sums[: 2 * n + 1], [n, 2 * n])
    overlap = divergence = None
    if size.has_pairs:
        pairs = size.of_shares.floats(sums[2 * n + 1 :].reshape(2, n, n))
        shared, diverging = pairs
        overlap = np.clip(shared / n_units, 0.0, 1.0)
        # Else there would be what was rounded.
        np.fill_diagonal(overlap, seen.mean(axis=0))
        # What only one of two classes showed adds half of its share.
        alone = n_units - (shared + shared.T) / 2
        divergence = np.clip((diverging + alone) / n_units, 0.0, 1.0)
        np.fill_diagonal(divergence, 0.0)
    return Found(
        n_distinct,
        # A sum of rounded numbers can pass the bound.
        np.clip(size.of_bits.floats(entropies), 0.0, size.n_neurons),
        max(float(size.of_bits.floats(information)) / n_units, 0.0),
        overlap,
        divergence,
    )


class _Scale(NamedTuple):
    """Numbers of fixed point: `bits` of them are behind it."""

    bits: int

    @classmethod
    def up_to(cls, most: int, bits: int) -> "_Scale":
        """Return the finest with which sums up to `most` have at most so many bits."""
        return cls(bits - int(most).bit_length())

    def integers(self, values: Floats) -> Integers:
        return np.rint(np.ldexp(values, self.bits)).astype(np.int64)

    def floats(self, values: Integers) -> Floats:
        return np.ldexp(values.astype(np.float64), -self.bits)


def _shares(table: ClassTable, totals: Integers) -> Floats:
    """Return the share that each entry has of the states of its unit and class."""
    return table.counts / totals[table.units[table.states], table.classes]


def _entropy_sums(table: ClassTable, totals: Integers, scale: _Scale) -> Integers:
    shares = _shares(table, totals)
    sums = np.zeros(table.n_classes, np.int64)
    np.add.at(sums, table.classes, scale.integers(-shares * np.log2(shares)))
    return sums


def _information_sum(table: ClassTable, totals: Integers, scale: _Scale) -> int:
    if not len(table.counts):
        return 0
    begins = np.flatnonzero(np.append(True, np.diff(table.states) != 0))
    n_each = np.diff(begins, append=len(table.states))
    of_state = np.repeat(np.add.reduceat(table.counts, begins), n_each)
    units = table.units[table.states]
    of_unit = totals.sum(axis=1)[units]
    # What a state tells of the label: its shares of the classes against theirs of all states.
    ratios = (table.counts / of_state) / (totals[units, table.classes] / of_unit)
    return int(scale.integers(table.counts / of_unit * np.log2(ratios)).sum())


def _pair_sums(table: ClassTable, totals: Integers, scale: _Scale) -> Integers:
    """Return two sums over the states that class a and class b showed, shape `(2, C, C)`.

    They are of the shares that these states have of class a, and of what they add to the
    divergence.
    """
    n_classes = table.n_classes
    sums = np.zeros((2, n_classes, n_classes), np.int64)
    shares = _shares(table, totals)
    step = max(_BLOCK // n_classes, 1)
    n_states = len(table.units)
    for first in range(0, n_states, step):
        here = slice(*np.searchsorted(table.states, [first, first + step]))
        block = np.zeros((min(step, n_states - first), n_classes))
        block[table.states[here] - first, table.classes[here]] = shares[here]
        seen = block > 0
        # Integers of so few bits that floats hold their sums exactly.
        exact = np.rint(np.ldexp(block, scale.bits))
        sums[0] += (exact.T @ seen.astype(np.float64)).astype(np.int64)
        for a in range(n_classes):
            rows = np.flatnonzero(seen[:, a])
            row, b = np.nonzero(seen[rows, a + 1 :])
            p, q = block[rows[row], a], block[rows[row], a + 1 + b]
            mean = (p + q) / 2
            added = (p * np.log2(p / mean) + q * np.log2(q / mean)) / 2
            np.add.at(sums[1, a], a + 1 + b, scale.integers(added))
    sums[1] += sums[1].T
    return sums

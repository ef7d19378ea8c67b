"""What the states of a layer tell of the classes of its samples.

All of it is made from sums over states of numbers of fixed point, integers: they add up to the same
in any order, over the processes among which the states are divided too, so that the metrics are the
same to the last bit however the data was cut.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.metrics.class_tables import ClassTable, Integers, class_tables
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.states.class_counter import ClassCounter

MOST_PAIRED = 100
"""Of more classes than these no two are compared: there would be more pairs than anyone reads."""

Add: TypeAlias = Callable[[Integers], Integers]
Floats: TypeAlias = npt.NDArray[np.float64]

# Entries of tables that are worked on at a time: some MiB.
_BLOCK = 1 << 18


class ClassMetrics(NamedTuple):
    """What the states of a layer tell of the classes of its samples, by Shannon entropy.

    Of a layer in groups, entropies are sums over its units, and overlaps, divergences and the
    information are means of theirs. Each figure stands beside that of labels shuffled by sample:
    what the first shows beyond the second is of the classes, the rest of having seen few states.
    Shuffled figures are of one shuffling, the same for the same data. They move by little if the
    layer showed many states, and differences of that size say nothing.

    Attributes:
        labels: The classes, ascending, shape `(C,)`, int64.
        n_states: States of each class, repetitions included, shape `(C,)`, int64.
        n_distinct: Distinct states of each, of all units together, shape `(C,)`, int64.
        entropy: Of the states of each class, bits, shape `(C,)`.
        efficiency: `entropy / n_neurons`, share 0 to 1, shape `(C,)`.
        shuffled_entropy: As `entropy`, of shuffled labels.
        shuffled_efficiency: As `efficiency`, of shuffled labels.
        information: Mutual information of state and label, bits: how much of the label a state
            tells, at most the entropy of the labels, `label_entropy`.
        shuffled_information: As `information`, of shuffled labels, which states tell nothing of.
        overlap: `overlap[a, b]` is the share of the states of class a, repetitions included, that
            class b showed too, 0 to 1, shape `(C, C)`; None where there are more than 100 classes.
        shuffled_overlap: As `overlap`, of shuffled labels.
        divergence: Jensen-Shannon divergence of the states of two classes (Lin, "Divergence
            measures based on the Shannon entropy", 1991), bits, 0 (the same states, equally often)
            to 1 (none in common), shape `(C, C)`; None where there are more than 100 classes.
        shuffled_divergence: As `divergence`, of shuffled labels.
    """

    labels: Integers
    n_states: Integers
    n_distinct: Integers
    entropy: Floats
    efficiency: Floats
    shuffled_entropy: Floats
    shuffled_efficiency: Floats
    information: float
    shuffled_information: float
    overlap: Floats | None
    shuffled_overlap: Floats | None
    divergence: Floats | None
    shuffled_divergence: Floats | None

    # What tuples do by themselves asks for the truth of an array.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassMetrics) and self.to_dict() == other.to_dict()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((*self.n_states.tolist(), *self.entropy.tolist(), self.information))

    @property
    def n_classes(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    @property
    def label_entropy(self) -> float:
        """Entropy of the labels of the states, bits: the most that a state can tell of them."""
        counts = [number for number in self.n_states.tolist() if number]
        total = sum(counts)
        return max(math.fsum(-n / total * math.log2(n / total) for n in counts), 0.0)

    @property
    def mean_divergence(self) -> float | None:
        """Mean divergence of two different classes, bits; None where it isn't known."""
        return _mean_of_pairs(self.divergence)

    @property
    def mean_shuffled_divergence(self) -> float | None:
        """As `mean_divergence`, of shuffled labels."""
        return _mean_of_pairs(self.shuffled_divergence)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers and lists; `from_dict` reads them back."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in self._asdict().items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ClassMetrics":
        """Build what `to_dict` was called on."""
        whole = ("labels", "n_states", "n_distinct")
        columns: dict[str, Any] = {
            name: np.array(fields[name], np.int64 if name in whole else np.float64)
            if isinstance(fields[name], list)
            else fields[name]
            for name in cls._fields
        }
        return cls(**columns)


def class_metrics(
    counter: ClassCounter,
    labels: Integers | None = None,
    n_samples: Mapping[int, int] | None = None,
    add: Add = lambda own: own,
) -> ClassMetrics:
    """Return the metrics of what was counted by class.

    Args:
        counter: What was counted; of several processes, of which each calls this, of the states
            that belong to this one, but all that was counted of these.
        labels: All classes, ascending; None: those of the counter.
        n_samples: How many samples each of them has.
        add: Returns the sum of an array over all processes.

    Raises:
        ValueError: Nothing was counted.
    """
    labels = counter.labels() if labels is None else labels
    n_samples = counter.n_samples if n_samples is None else n_samples
    tables = class_tables(counter.rows(), labels, n_samples, counter.n_units)
    totals = add(np.stack([table.totals() for table in tables]))
    if not totals[0].any():
        raise ValueError("no states were counted by class: count some first")
    size = _Size(len(labels), counter.n_units, counter.n_neurons)
    pairs = list(zip(tables, totals, strict=True))
    sums = add(np.stack([_sums(table, its_totals, size) for table, its_totals in pairs]))
    counted, shuffled = (
        _found(its, seen > 0, size) for its, seen in zip(sums, totals, strict=True)
    )
    return ClassMetrics(
        labels,
        totals[0].max(axis=0),
        counted.n_distinct,
        counted.entropy,
        _efficiencies(counted.entropy, counter.n_neurons),
        shuffled.entropy,
        _efficiencies(shuffled.entropy, counter.n_neurons),
        counted.information,
        shuffled.information + _strayed(totals[1], totals[0]),
        counted.overlap,
        shuffled.overlap,
        counted.divergence,
        shuffled.divergence,
    )


class _Size(NamedTuple):
    n_classes: int
    n_units: int
    n_neurons: int

    @property
    def has_pairs(self) -> bool:
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


class _Found(NamedTuple):
    n_distinct: Integers
    entropy: Floats
    information: float
    overlap: Floats | None
    divergence: Floats | None


def _sums(table: ClassTable, totals: Integers, size: _Size) -> Integers:
    """Return all that adds up over processes, each of which has the rows of its own states."""
    parts = [
        np.bincount(table.classes, minlength=size.n_classes).astype(np.int64),
        _entropy_sums(table, totals, size.of_bits),
        np.array([_information_sum(table, totals, size.of_bits)], np.int64),
    ]
    if size.has_pairs:
        parts.append(_pair_sums(table, totals, size.of_shares).reshape(-1))
    return np.concatenate(parts)


def _found(sums: Integers, seen: npt.NDArray[np.bool_], size: _Size) -> _Found:
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
    return _Found(
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


def _strayed(shuffled: Integers, counted: Integers) -> float:
    """Return what the information lacks since shuffled classes have other numbers of states, bits.

    Each state is shuffled by itself, so that these come out a little larger or smaller. What they
    tell by that, the units' mean of their divergence from the true numbers, the states don't.
    """
    drawn = shuffled / np.maximum(shuffled.sum(axis=1, keepdims=True), 1)
    true = counted / counted.sum(axis=1, keepdims=True)
    seen = drawn > 0
    terms = drawn[seen] * np.log2(drawn[seen] / true[seen])
    return math.fsum(terms.tolist()) / len(counted)


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


def _efficiencies(entropies: Floats, n_neurons: int) -> Floats:
    return np.array([efficiency(entropy, n_neurons) for entropy in entropies.tolist()])


def _mean_of_pairs(matrix: Floats | None) -> float | None:
    if matrix is None or len(matrix) < 2:
        return None
    return math.fsum(matrix[np.triu_indices(len(matrix), 1)].tolist()) / math.comb(len(matrix), 2)

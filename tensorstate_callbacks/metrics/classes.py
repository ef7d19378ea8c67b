"""What the states of a layer tell of the classes of its samples."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from tensorstate_callbacks.metrics.class_sums import Floats, Size, class_sums, found_of
from tensorstate_callbacks.metrics.class_tables import Integers, class_tables
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.states.class_counter import ClassCounter

Add: TypeAlias = Callable[[Integers], Integers]


# Of so many classes the pairs take some KiB a layer.
_MOST_HELD = 20


class ClassMetrics(NamedTuple):
    """What the states of a layer tell of the classes of its samples, by Shannon entropy.

    Each metric stands beside the same for shuffled labels. What it shows beyond that comes from the
    classes; the rest comes from having seen few states. The labels are shuffled by sample, once,
    and in the same way for the same data. Another shuffling would give slightly other numbers, so
    differences of that size say nothing.

    With units smaller than the layer, entropies are sums over the units, and overlaps, divergences
    and the information are means over them.

    Attributes:
        labels: The classes, ascending, shape `(C,)`, int64.
        n_states: States of each class, repetitions included, shape `(C,)`, int64.
        n_distinct: Distinct states of each class, of all units together, shape `(C,)`, int64.
        entropy: Entropy of the states of each class, bits, shape `(C,)`.
        efficiency: `entropy / n_neurons`, share 0 to 1, shape `(C,)`.
        shuffled_entropy: As `entropy`, of shuffled labels.
        shuffled_efficiency: As `efficiency`, of shuffled labels.
        information: Mutual information of state and label, bits: how much a state tells of the
            label, at most `label_entropy`.
        shuffled_information: As `information`, of shuffled labels, of which states tell nothing.
        overlap: `overlap[a, b]` is the share of the states of class a, repetitions included, that
            class b showed too, 0 to 1, shape `(C, C)`. None where there are more than 100 classes;
            with more than 20, only the last report of a callback's history has it.
        shuffled_overlap: As `overlap`, of shuffled labels.
        divergence: Jensen-Shannon divergence of the states of two classes (Lin, "Divergence
            measures based on the Shannon entropy", 1991), bits, 0 (the same states, equally often)
            to 1 (none in common), shape `(C, C)`; None as `overlap` is.
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
        """Number of classes."""
        return len(self.labels)

    @property
    def label_entropy(self) -> float:
        """Entropy of the labels of the states, bits: the most that a state can tell of them."""
        counts = [number for number in self.n_states.tolist() if number]
        total = sum(counts)
        return max(math.fsum(-n / total * math.log2(n / total) for n in counts), 0.0)

    def without_pairs(self) -> "ClassMetrics":
        """Return them without what is known of pairs of classes, where that takes much memory."""
        if self.n_classes <= _MOST_HELD or self.divergence is None:
            return self
        return self._replace(
            overlap=None, shuffled_overlap=None, divergence=None, shuffled_divergence=None
        )

    @property
    def mean_divergence(self) -> float | None:
        """Mean divergence of two different classes, bits; None where it isn't known."""
        return _mean_of_pairs(self.divergence)

    @property
    def mean_shuffled_divergence(self) -> float | None:
        """As `mean_divergence`, of shuffled labels."""
        return _mean_of_pairs(self.shuffled_divergence)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as numbers and lists, for `from_dict`."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in self._asdict().items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ClassMetrics":
        """Build again what `to_dict` was called on."""
        whole = ("labels", "n_states", "n_distinct")
        columns: dict[str, Any] = {
            name: np.array(fields[name], np.int64 if name in whole else np.float64)
            if isinstance(fields[name], list)
            else fields[name]
            for name in cls._fields
        }
        return cls(**columns)


def class_metrics(counter: ClassCounter, add: Add = lambda own: own) -> ClassMetrics:
    """Return the metrics of what was counted by class.

    Args:
        counter: What was counted. Where several processes have divided the states among them, and
            each calls this: all that was counted of its own, and the samples of all.
        add: Returns the sum of an array over all processes.

    Raises:
        ValueError: Nothing was counted.
    """
    labels, by_label = counter.labels(), counter.n_samples
    n_samples = np.array([by_label[label] for label in labels.tolist()])
    tables = class_tables(counter.rows(), labels, n_samples, counter.n_units)
    totals = add(np.stack([table.totals() for table in tables]))
    if not totals[0].any():
        raise ValueError("no states were counted by class: count some first")
    size = Size(len(labels), counter.n_units, counter.n_neurons)
    pairs = list(zip(tables, totals, strict=True))
    sums = add(np.stack([class_sums(table, its_totals, size) for table, its_totals in pairs]))
    counted, shuffled = (
        found_of(its, seen > 0, size) for its, seen in zip(sums, totals, strict=True)
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
        shuffled.information + _strayed(totals[1], n_samples),
        counted.overlap,
        shuffled.overlap,
        counted.divergence,
        shuffled.divergence,
    )


def _strayed(totals: Integers, n_samples: Integers) -> float:
    """Return what the information of shuffled labels lacks as the classes stray from their shares.

    Each state is shuffled by itself, so that the classes come out with a little more or fewer
    states than by their samples, whose labels are dealt. What is lost by that is the divergence of
    the one from the other, the units' mean.

    Args:
        totals: States of each class in each unit, of shuffled labels, shape `(units, classes)`.
        n_samples: Samples of each class, shape `(classes,)`.
    """
    dealt = totals / totals.sum(axis=1, keepdims=True)
    ratios = dealt / (n_samples / n_samples.sum())
    seen = ratios > 0
    return math.fsum((dealt[seen] * np.log2(ratios[seen])).tolist()) / len(totals)


def _efficiencies(entropies: Floats, n_neurons: int) -> Floats:
    return np.array([efficiency(entropy, n_neurons) for entropy in entropies.tolist()])


def _mean_of_pairs(matrix: Floats | None) -> float | None:
    if matrix is None or len(matrix) < 2:
        return None
    return math.fsum(matrix[np.triu_indices(len(matrix), 1)].tolist()) / math.comb(len(matrix), 2)

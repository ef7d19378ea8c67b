"""How often the samples of each class were in each state, as they are and with shuffled labels.

A layer has more states the more samples there are, and classes share fewer of them than they would
if all had been seen: what is found of classes means something only beside the same metric of labels
that say nothing. Labels are shuffled by sample, since positions of one sample are alike. What is
seen of a state then depends on how many samples showed it how often, and on nothing else.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.states.joint_rows import JointRows
from tensorstate_callbacks.states.partition import hash_rows, random_words

Integers = npt.NDArray[np.int64]

# Labels are drawn for so many samples at a time.
_DRAWS = 1 << 20
# Of the shuffling; fewer would leave traces.
_ROUNDS = 4


class ClassTable(NamedTuple):
    """How often each class was in each state, without zeros, state after state.

    Attributes:
        states: Numbers of the states, ascending, shape `(m,)`, int64.
        classes: Numbers of the classes, ascending of each state, shape `(m,)`, int64.
        counts: How often, shape `(m,)`, int64, all above 0.
        units: Which unit each state is of, shape `(states,)`, int64.
        n_classes: How many classes there are.
        n_units: How many units there are.
    """

    states: Integers
    classes: Integers
    counts: Integers
    units: Integers
    n_classes: int
    n_units: int

    def totals(self) -> Integers:
        """Return how many states each unit was seen in by each class, shape `(units, classes)`."""
        totals = np.zeros((self.n_units, self.n_classes), np.int64)
        np.add.at(totals, (self.units[self.states], self.classes), self.counts)
        return totals


def class_tables(
    rows: JointRows, labels: Integers, n_samples: Integers, n_units: int
) -> tuple[ClassTable, ClassTable]:
    """Return the table of what was counted, and that of shuffled labels.

    For each state the labels of all samples are shuffled anew, and dealt to those that showed it,
    in the order of how many times they did. The shuffling hangs on the state alone: so it is the
    same whatever the batches, their order and the processes. What is summed over states has the
    mean that one shuffling for all of them would give.

    Args:
        rows: What was counted, or the part of it that has all of some states.
        labels: All classes, ascending.
        n_samples: How many samples each of them has, shape `(classes,)`.
        n_units: Units of the layer.
    """
    is_new = np.ones(len(rows.labels), np.bool_)
    is_new[1:] = (rows.keys[1:] != rows.keys[:-1]).any(axis=1)
    states = np.cumsum(is_new) - 1
    units = rows.units[is_new]
    classes = np.searchsorted(labels, rows.labels)
    counted = _added([(states, classes, rows.times * rows.n_samples)], len(labels))
    shuffled = _added(_shuffled(rows, states, n_samples), len(labels))
    size = units, len(labels), n_units
    return ClassTable(*counted, *size), ClassTable(*shuffled, *size)


def _shuffled(
    rows: JointRows, states: Integers, n_samples: Integers
) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Yield states, dealt classes, and how many times each state was shown.

    Args:
        rows: What was counted.
        states: The number of the state of each row, ascending.
        n_samples: How many samples each class has.
    """
    if not len(states):
        return
    order = np.lexsort((rows.times, states))
    times, of_row = rows.times[order], rows.n_samples[order]
    begins = np.flatnonzero(np.append(True, np.diff(states) != 0))
    seeds = hash_rows(rows.keys[begins])
    ends = np.cumsum(of_row)
    starts = (ends - of_row)[begins]
    deck = np.cumsum(n_samples)
    for first in range(0, int(ends[-1]), _DRAWS):
        # Of the samples that showed the states, one after the other, those from the first on.
        drawn = np.arange(first, min(first + _DRAWS, int(ends[-1])))
        row = np.searchsorted(ends, drawn, side="right")
        state = states[row]
        places = _shuffled_places(drawn - starts[state], seeds[state], int(deck[-1]))
        yield state, np.searchsorted(deck, places, side="right"), times[row]


def _shuffled_places(places: Integers, seeds: npt.NDArray[np.uint64], size: int) -> Integers:
    """Return where each place of a deck of some size comes to lie, in one shuffling for each seed.

    Within the numbers of so many bits all steps can be undone, so no two places come to lie on
    one; those beyond the deck go on until they are in it (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002).
    """
    n_bits = max(int(size - 1).bit_length(), 1)
    mask, half = np.uint64((1 << n_bits) - 1), np.uint64((n_bits + 1) // 2)
    found = (places % size).astype(np.uint64)
    left = np.arange(len(found))
    while len(left):
        moved = found[left]
        for step in range(_ROUNDS):
            key = random_words(seeds[left], np.full(len(left), step, np.uint64))
            moved = (moved + (key >> np.uint64(32))) * (key | np.uint64(1)) & mask
            moved ^= moved >> half
        found[left] = moved
        left = left[moved >= size]
    return found.astype(np.int64)


def _added(
    parts: Iterator[tuple[Integers, Integers, Integers]] | list[tuple[Integers, ...]],
    n_classes: int,
) -> tuple[Integers, Integers, Integers]:
    """Return states, classes and counts, those of the same state and class added up."""
    found = [np.zeros((2, 0), np.int64)]
    for states, classes, counts in parts:
        keys = states * n_classes + classes
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        begins = np.flatnonzero(np.append(True, np.diff(keys) != 0))[: len(keys)]
        sums = np.add.reduceat(counts, begins) if len(begins) else counts
        found.append(np.stack([keys[begins], sums]))
    if len(found) > 2:
        keys, counts = np.concatenate(found, axis=1)
        return _added([(keys // n_classes, keys % n_classes, counts)], n_classes)
    keys, counts = found[-1]
    return keys // n_classes, keys % n_classes, counts

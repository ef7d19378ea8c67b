"""Count the states of a layer for each class of samples, with what a shuffling of labels needs."""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks._native.arguments import check_padding, checked_rows
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter, table_size
from tensorstate_callbacks.states.joint_rows import JointLayout, JointRows, Rows, codes_of


class ClassCounter:
    """Counts the states of a layer by the label of the sample that shows them, exactly.

    It keeps of each state, for each class, how many samples showed it once, twice, three times...:
    what is counted by labels that were dealt out anew to the samples can be told from that. What it
    holds does not depend on how the samples were cut into batches, nor on their order. Several
    threads may feed one counter. A call that raises leaves the counter as it was.

    Args:
        n_neurons: Bits of a state, at least 1.
        group_size: Neurons of a unit, 1 to 22; None makes the layer one unit.
        n_threads: At most so many threads work on a large batch, the caller's among them.

    Examples:
        >>> import numpy as np
        >>> counter = ClassCounter(3)
        >>> counter.update_packed(np.array([[1], [5], [5], [5]], np.uint8), np.array([7, 8]))
        >>> counter.of(7).counts(), counter.of(8).counts(), counter.total().counts()
        (array([1, 1], dtype=uint64), array([2], dtype=uint64), array([1, 3], dtype=uint64))
    """

    def __init__(
        self, n_neurons: int, group_size: int | None = None, *, n_threads: int = 1
    ) -> None:
        self._n_neurons, self._group_size, self._n_threads = n_neurons, group_size, n_threads
        self._layout = JointLayout(n_neurons, group_size, n_threads)
        self._joint = StateCounter(self._layout.n_bits, keep_states=True, n_threads=n_threads)
        self._n_samples: dict[int, int] = {}
        self._n_states = 0
        # An interrupt must not lock the thread out that it leaves it to.
        self._lock = threading.RLock()

    @classmethod
    def of_joint(
        cls, n_neurons: int, group_size: int | None, joint: StateCounter, n_samples: dict[int, int]
    ) -> ClassCounter:
        """Return a counter that holds what was counted elsewhere.

        Args:
            n_neurons: Bits of a state.
            group_size: Neurons of a unit.
            joint: What such a counter has in `joint`, or a part of it.
            n_samples: Samples of each class.
        """
        counter = cls(n_neurons, group_size)
        counter._joint.merge(joint)
        counter._n_samples = dict(n_samples)
        counter._n_states = counter.n_counted // counter.n_units
        return counter

    @property
    def n_neurons(self) -> int:
        """Bits of a state of the layer."""
        return self._n_neurons

    @property
    def group_size(self) -> int | None:
        """Neurons of a unit, as asked for; None where the layer is one."""
        return self._group_size

    @property
    def n_units(self) -> int:
        """Units of the layer."""
        return self._layout.n_units

    @property
    def key_bytes(self) -> int:
        """Bytes of a unit's number, where there are groups, and of its state."""
        return self._layout.key_bytes

    @property
    def n_states(self) -> int:
        """States of the layer that were counted, repetitions included, of all classes."""
        return self._n_states

    @property
    def n_counted(self) -> int:
        """States of all units that it holds: of a whole counter `n_states` of each."""
        return int(self.rows().counts.sum(dtype=np.uint64))

    @property
    def n_rows(self) -> int:
        """How many rows it holds: what its memory grows with."""
        return self._joint.n_distinct

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the counter's tables hold."""
        return self._joint.nbytes

    @property
    def joint(self) -> StateCounter:
        """What counts a unit's state, a label and times together, `key_bytes` being the state's."""
        return self._joint

    @property
    def n_samples(self) -> MappingProxyType[int, int]:
        """How many samples each class had, by label: those of each call."""
        return MappingProxyType(dict(self._n_samples))

    def labels(self) -> npt.NDArray[np.int64]:
        """The labels of all samples so far, ascending, shape `(classes,)`, int64."""
        return np.array(sorted(self._n_samples), np.int64)

    def update_packed(self, rows: Rows, labels: npt.NDArray[np.integer[Any]]) -> None:
        """Count the states of some samples.

        Args:
            rows: The states of the layer, shape `(samples * positions, ceil(n_neurons / 8))`,
                uint8, sample after sample, equally many of each; as `StateCounter.update_packed`
                takes them. No sample may be in two calls: how often it shows a state matters.
            labels: The class of each sample, shape `(samples,)`, whole numbers of 32 bits.

        Raises:
            TypeError: The labels are not whole numbers.
            ValueError: There are no labels for so many states, a label has more than 32 bits, a
                shape is wrong, or a bit beyond `n_neurons` is set.
        """
        labels, rows = _checked_labels(labels), checked_rows(rows, self._n_neurons)
        check_padding(rows, self._n_neurons)
        if len(labels) == 0 or len(rows) % len(labels):
            if len(labels) == len(rows):
                return
            raise ValueError(
                f"{len(rows)} states can't be those of {len(labels)} samples, equally many of each"
            )
        n_positions = len(rows) // len(labels)
        if n_positions == 0:
            return
        joint = np.concatenate(list(self._layout.pack(rows, labels, n_positions)))
        unique, numbers = np.unique(labels, return_counts=True)
        with self._lock:
            self._joint.update_packed(joint)
            self._n_states += len(rows)
            for label, number in zip(unique.tolist(), numbers.tolist(), strict=True):
                self._n_samples[label] = self._n_samples.get(label, 0) + number

    def merge(self, other: ClassCounter) -> None:
        """Add all that `other` has counted, of other samples; `other` stays as it is.

        Raises:
            ValueError: It counts other units.
        """
        mine, its = (c.n_neurons for c in (self, other)), (c.group_size for c in (self, other))
        if len({*mine}) > 1 or len({*its}) > 1:
            raise ValueError(
                f"cannot merge classes of {other.n_neurons} neurons in units of "
                f"{other.group_size} into {self.n_neurons} neurons in units of {self.group_size}"
            )
        with self._lock:
            self._joint.merge(other._joint)
            self._n_states += other._n_states
            for label, number in other._n_samples.items():
                self._n_samples[label] = self._n_samples.get(label, 0) + number

    def of(self, label: int) -> StateCounter | GroupCounter:
        """Return a counter of the states of one class alone; an empty one of a class not seen."""
        rows = self.rows()
        return self._counter_of(rows, rows.labels == label)

    def total(self) -> StateCounter | GroupCounter:
        """Return a counter of the states of all classes: what one without labels would hold."""
        rows = self.rows()
        return self._counter_of(rows, np.ones(len(rows.labels), np.bool_))

    def rows(self) -> JointRows:
        """Return all that was counted, in the order of the bytes of unit and state."""
        return self._layout.unpack(*self._joint.snapshot())

    def _counter_of(
        self, rows: JointRows, chosen: npt.NDArray[np.bool_]
    ) -> StateCounter | GroupCounter:
        counts = rows.counts[chosen]
        if self._group_size is None:
            counter = StateCounter(self._n_neurons, n_threads=self._n_threads)
            counter.add_counts(np.ascontiguousarray(rows.states[chosen]), counts)
            return counter
        groups = GroupCounter(self._n_neurons, self._group_size, n_threads=self._n_threads)
        codes = codes_of(rows.states[chosen])
        tables = np.zeros(table_size(self._n_neurons, self._group_size), np.uint64)
        np.add.at(tables, (rows.units[chosen] << self._layout.width) + codes, counts)
        groups.add_tables(tables, int(counts.sum(dtype=np.uint64)) // self.n_units)
        return groups

    def __repr__(self) -> str:
        return (
            f"ClassCounter(n_neurons={self.n_neurons}, group_size={self.group_size},"
            f" n_states={self.n_states}, classes={len(self._n_samples)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()


def _checked_labels(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise TypeError(
            "labels must be whole numbers, one for each sample; got an array of "
            f"{labels.dtype.name} of shape {labels.shape}"
        )
    limits = np.iinfo(np.int32)
    if len(labels) and not limits.min <= int(labels.min()) <= int(labels.max()) <= limits.max:
        raise ValueError(f"a label has more than 32 bits: {int(labels.min())} to {labels.max()}")
    return labels.astype(np.int32)

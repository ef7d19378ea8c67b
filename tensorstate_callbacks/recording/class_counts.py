"""Count a pass's states by the classes of its samples, beside what counts all of them.

A layer whose states can't all be counted by class has no metrics of classes, and is told of: those
of a part of the samples would be wrong. So what is counted by class adds up to what is counted of
the layer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.recording.budget import Budget, Sampling, bytes_per_state, counter_bytes
from tensorstate_callbacks.recording.class_labels import Labels, check_number_of_classes
from tensorstate_callbacks.recording.class_problems import (
    FEWER,
    NO_LABELS,
    SHORT,
    THINNED,
    UNFIT,
)
from tensorstate_callbacks.recording.pass_counts import Width
from tensorstate_callbacks.recording.probe_counter import Grid, ProbeCounter, Rows
from tensorstate_callbacks.states.class_counter import ClassCounter

Samples = npt.NDArray[np.intp] | None
"""Indices into a batch's labels of the samples that a call holds, in order; None for all."""


class Classed(NamedTuple):
    """What was counted by class in a pass.

    Attributes:
        counters: Of each probe and number of neurons whose states were all counted by class.
        problems: Why those of others were not.
    """

    counters: Mapping[Width, ClassCounter]
    problems: Mapping[Width, str]


class ClassCounts:
    """The class counters of the probes over one evaluation pass.

    Several threads may count at once.

    Args:
        sampling: What is a unit, and how much memory classes have.
        n_threads: At most so many threads work on a large batch.

    Attributes:
        budget: Shares the memory out among the layers; None where there is no limit.
    """

    def __init__(self, sampling: Sampling, n_threads: int = 1) -> None:
        self._group_size, self._n_threads = sampling.group_size, n_threads
        most = sampling.max_memory
        self.budget = None if most is None else Budget(most)
        self._labels: Labels | None = None
        self._known: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._counters: dict[Width, _Counter] = {}
        self._problems: dict[Width, str] = {}

    def begin_batch(self, labels: npt.NDArray[Any] | None) -> None:
        """Take the labels of the batch that comes.

        Args:
            labels: Shape `(N,)`, whole numbers; None where they aren't known.

        Raises:
            ValueError: There are too many classes.
        """
        self._labels = None if labels is None else self._checked(labels)

    def labels_of(
        self,
        width: Width,
        grid: Grid,
        n_samples: int | None,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> Labels | None:
        """Return the labels of the samples that a call holds; None where it isn't counted by class.

        Args:
            width: The probe, and its number of neurons.
            grid: How many positions lie along each of the other axes.
            n_samples: How many entries the axis of the samples has, each of one sample: as many as
                there are labels, or so many times that, each sample's one after the other. None
                where there is no such axis.
            samples: Which samples they are.
            labels: Those of the batch; None: of the batch that was begun.

        Raises:
            ValueError: There are too many classes.
        """
        if width in self._problems:
            return None
        known = self._labels if labels is None else self._checked(labels)
        if known is None:
            self.give_up(width, NO_LABELS)
            return None
        chosen = known if samples is None else known[samples]
        given = 1 if n_samples is None else n_samples
        if given and not _fits(len(chosen), given, grid):
            shape = (*([] if n_samples is None else [n_samples]), *grid, width.n_neurons)
            self.give_up(width, f"{shape} {UNFIT}, of {len(chosen)} labels")
            return None
        return chosen

    def count(self, width: Width, rows: Rows, labels: Labels) -> None:
        """Count states by class.

        Args:
            width: The probe, and its number of neurons.
            rows: The states of all positions that are to be read, sample after sample.
            labels: Of the samples.
        """
        if width in self._problems or not len(rows):
            return
        counter = self._counter(width)
        try:
            if self.budget is not None:
                most = len(rows) * counter.counter.n_units
                self.budget.take(counter.bytes_of_row * most)
            counter.update(rows, labels)
        except MemoryError:
            counter.keep(None)

    def give_up(self, width: Width, problem: str) -> None:
        """Note why a probe's states can't be counted by class, and forget those that were."""
        self._problems.setdefault(width, problem)
        self._forget(width)

    def drop(self, names: frozenset[str]) -> None:
        """Forget probes."""
        for width in [width for width in list(self._counters) if width.probe in names]:
            self._forget(width)
        for width in [width for width in list(self._problems) if width.probe in names]:
            self._problems.pop(width, None)

    def results(self, totals: Mapping[Width, ProbeCounter]) -> Classed:
        """Return what was counted by class of all that the totals hold.

        Args:
            totals: What counts each probe that saw a state, all classes together.
        """
        if self.budget is not None:
            self.budget.finish()
        counters, problems = {}, {}
        for width, total in totals.items():
            if total.level is None:
                # Not counted at all, as is told of elsewhere.
                continue
            counter = self._counters.get(width)
            problem = self._problems.get(width)
            if problem is None and counter is not None and counter.is_gone:
                problem = SHORT
            elif problem is None and total.level != 0:
                problem = THINNED
            elif problem is None and (
                counter is None or counter.counter.n_states != total.counter.n_states
            ):
                problem = FEWER
            if problem is not None:
                problems[width] = problem
            elif counter is not None:
                counters[width] = counter.counter
        return Classed(counters, problems)

    def _checked(self, labels: npt.NDArray[Any]) -> Labels:
        found = np.asarray(labels)
        known = np.union1d(self._known, found).astype(np.int64)
        check_number_of_classes(len(known))
        self._known = known
        return found

    def _counter(self, width: Width) -> "_Counter":
        found = self._counters.get(width)
        if found is not None:
            return found
        made = _Counter(ClassCounter(width.n_neurons, self._group_size, n_threads=self._n_threads))
        # One step, without a lock that an interrupt could leave: all threads get the same.
        taken = self._counters.setdefault(width, made)
        if taken is made and self.budget is not None:
            self.budget.join(made)
        return taken

    def _forget(self, width: Width) -> None:
        counter = self._counters.pop(width, None)
        if counter is not None and self.budget is not None:
            self.budget.leave(counter)


def _fits(n_labels: int, n_given: int, grid: Grid) -> bool:
    """Tell whether so many entries are those of the labels' samples, one after the other."""
    if n_given == n_labels:
        return True
    # Of several entries a label it must be sure that the samples don't lie along another axis.
    return n_labels > 0 and n_given % n_labels == 0 and (n_labels == 1 or n_labels not in grid)


class _Counter:
    """A layer's class counter, a member of the budget: it is held whole or given up."""

    def __init__(self, counter: ClassCounter) -> None:
        self.counter = counter
        self.is_gone = False
        self.bytes_of_row = bytes_per_state(counter.joint.n_neurons)

    def update(self, rows: Rows, labels: Labels) -> None:
        if not self.is_gone:
            self.counter.update_packed(rows, labels)
            # Another thread may have found that there is no memory for it.
            if self.is_gone:
                self.keep(None)

    def sizes(self) -> list[int | None]:
        return [None if self.is_gone else class_bytes(self.counter)]

    def keep(self, level: int | None) -> None:
        if level is None:
            self.is_gone = True
            self.counter = ClassCounter(self.counter.n_neurons, self.counter.group_size)


def class_bytes(counter: ClassCounter) -> int:
    """Return the memory that a class counter may take, in bytes, at its most."""
    return counter_bytes(counter.joint.n_neurons, counter.n_rows)

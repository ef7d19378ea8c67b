"""Count the states of named probes over one evaluation pass."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.budget import WHOLE, Budget, Sampling
from tensorstate_callbacks.recording.channel_axis import (
    Axis,
    folded,
    folded_sample_axis,
    n_neurons,
    normal_axes,
)
from tensorstate_callbacks.recording.class_counts import ClassCounts, Classed, Samples
from tensorstate_callbacks.recording.class_problems import SHORT
from tensorstate_callbacks.recording.pass_counts import (
    PassCounts,
    PassInfo,
    Width,
    name_widths,
)
from tensorstate_callbacks.recording.probe_counter import Counter, Grid, ProbeCounter, Rows
from tensorstate_callbacks.recording.probe_rows import RowKeeper, RowLimit
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.states.counter import Memory
from tensorstate_callbacks.states.positions import grid_of
from tensorstate_callbacks.states.row_counter import memory_or_array


class Recorder:
    """Counters of the probed layers over one evaluation pass.

    Nothing but counts is kept of the activations. Several threads may observe at once. A layer that
    is used with several numbers of neurons, as one activation for a whole network is, has a counter
    for each: `relu@64` and `relu@256`.

    Args:
        names: Names of the probes, in any order: reports list them in the order in which they
            first observed something, which is that of the forward pass.
        threshold: A neuron fires where its activation is above it; finite.
        sampling: What is a unit, which positions are read, and how much memory there is.
        n_threads: At most so many threads work on a large batch.

    Attributes:
        error: The first error that `observe_later` kept, or None.
        budget: Shares the memory out among the probes; None where there is no limit.
        finds_neurons: Whether reports are to tell which neurons agree.
        row_limit: Limits the memory of states that are kept in their order; None where they are
            counted.
        classes: Counts states by the classes of their samples too; None where that isn't asked for.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        threshold: float = 0.0,
        sampling: Sampling = WHOLE,
        n_threads: int = 1,
    ) -> None:
        self.names = tuple(names)
        self._n_threads = n_threads
        self._threshold = threshold
        self.classes: ClassCounts | None = None
        if sampling.by_class:
            sampling = sampling.halves()
            self.classes = ClassCounts(sampling, n_threads)
        self._sampling = sampling
        self.finds_neurons = sampling.neurons
        self.budget = None if sampling.max_memory is None else Budget(sampling.max_memory)
        self.row_limit = RowLimit() if sampling.keeps_rows else None
        self._counters: dict[Width, ProbeCounter] = {}
        self._dropped: frozenset[str] = frozenset()
        self.error: ProbeError | None = None

    @property
    def counters(self) -> Mapping[str, Counter]:
        """Counter of each probe, in the order in which they were first reached, read-only."""
        return MappingProxyType(name_widths(self.by_width()))

    def by_width(self) -> dict[Width, Counter]:
        """Return the counter of each probe and number of neurons, in the order of `counters`."""
        return {width: counter.counter for width, counter in self.probe_counters().items()}

    def probe_counters(self) -> dict[Width, ProbeCounter]:
        """Return what counts each probe and number of neurons, in the order of `counters`."""
        # A copy: another thread may be adding a probe's first batch.
        return {
            width: counter
            for width, counter in dict(self._counters).items()
            if width.probe not in self._dropped
        }

    @property
    def dropped(self) -> frozenset[str]:
        """The probes that were forgotten."""
        return self._dropped

    def drop(self, names: Iterable[str]) -> None:
        """Forget probes, and what they saw."""
        gone = self._dropped | frozenset(names)
        self._dropped = gone
        self.names = tuple(name for name in self.names if name not in gone)
        # In place: another thread may be adding a probe's first batch.
        for width in [width for width in list(self._counters) if width.probe in gone]:
            counter = self._counters.pop(width, None)
            if counter is not None and self.budget is not None:
                self.budget.leave(counter)
        if self.classes is not None:
            self.classes.drop(gone)

    def begin_batch(self, labels: npt.NDArray[Any] | None) -> None:
        """Take the labels of the batch that comes, where states are counted by class.

        They hold for all that is observed until the next batch begins, on whatever thread, where it
        is not given labels of its own. What is observed while they are unknown leaves its layer
        without metrics of classes.

        Args:
            labels: Shape `(N,)`, whole numbers, as `class_labels.as_labels` makes them of what a
                batch holds; None where they aren't known.

        Raises:
            ProbeError: There are too many classes.
        """
        if self.classes is not None:
            try:
                self.classes.begin_batch(labels)
            except ValueError as error:
                raise ProbeError(f"states can't be counted by class: {error}") from error

    def observe(
        self,
        name: str,
        activations: npt.ArrayLike | Memory,
        channel_axis: Axis,
        *,
        sample_axis: int | None = 0,
        bfloat16: bool = False,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        """Count the states of one batch.

        Args:
            name: The probe.
            activations: Activations of any shape; see `StateCounter.update`.
            channel_axis: The axis of the neurons, or several that are one unit; may be negative.
            sample_axis: The axis of the samples; None where there is one sample.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.
            samples: Which of the batch's samples these are, indices into its labels in the order of
                the activations; None: all. Each may have several entries along the axis of the
                samples, one after the other.
            labels: Of the batch, where others are under way at once; None: those of `begin_batch`.

        Raises:
            ProbeError: They can't be counted: a type that can't fire, no such axis. The batch isn't
                counted, what was counted before stays.
        """
        if name in self._dropped:
            return
        try:
            if not hasattr(activations, "shape"):
                activations = np.asarray(activations)
            counter = self._counter(name, activations.shape, channel_axis)
            along = folded_sample_axis(sample_axis, channel_axis, activations.shape)
            try:
                array, axis = _on_one_axis(activations, channel_axis)
            except MemoryError:
                taken = {*normal_axes(channel_axis, activations.shape), sample_axis}
                sizes = enumerate(activations.shape)
                counter.give_up(tuple(size for axis, size in sizes if axis not in taken))
                return
            known = None
            if self.classes is not None and counter.level is not None:
                n_samples = None if along is None else array.shape[along]
                width, grid = Width(name, counter.n_neurons), grid_of(array.shape, axis, along)
                known = self._labels_of(width, grid, n_samples, samples, labels)
            how: dict[str, Any] = {"sample_axis": along, "bfloat16": bfloat16}
            if self.classes is None or known is None:
                counter.update(array, axis, self._threshold, **how)
                return
            try:
                # Packed once for both: to read the activations again takes longer.
                rows = counter.pack(array, axis, self._threshold, **how)
            except MemoryError:
                self.classes.give_up(width, SHORT)
                counter.update(array, axis, self._threshold, **how)
                return
            counter.update_packed(rows, grid)
            self.classes.count(width, rows, known)
        except KeyError:
            raise
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error

    def observe_later(
        self,
        name: str,
        activations: npt.ArrayLike,
        channel_axis: Axis,
        sample_axis: int | None = 0,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        """Like `observe`, where an error raised at once would be lost: `report` raises it."""
        try:
            self.observe(
                name,
                activations,
                channel_axis,
                sample_axis=sample_axis,
                samples=samples,
                labels=labels,
            )
        except ProbeError as error:
            self.error = self.error or error

    def observe_packed_later(
        self,
        name: str,
        rows: Rows,
        n_neurons: int,
        grid: Grid,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        """Like `observe_later`, of states that were packed elsewhere.

        Args:
            name: The probe.
            rows: See `ProbeCounter.update_packed`.
            n_neurons: Bits of a state.
            grid: How many positions of a sample lie along each axis.
            samples: As for `observe`.
            labels: As for `observe`.
        """
        if name in self._dropped:
            return
        try:
            counter = self._counter_of(Width(name, n_neurons))
            counter.update_packed(rows, grid)
            if self.classes is not None:
                n_read = counter.n_read(grid)
                n_samples = len(rows) // n_read if n_read else 0
                width = Width(name, counter.n_neurons)
                known = self._labels_of(width, grid, n_samples, samples, labels)
                if known is not None:
                    self.classes.count(width, rows, known)
        except Exception as error:  # noqa: BLE001
            problem = ProbeError(f"layer {name!r} could not be counted: {error}")
            problem.__cause__ = error
            self.error = self.error or problem

    def add_tables(
        self, width: Width, tables: npt.NDArray[np.uint64], n_states: int, n_positions: int
    ) -> None:
        """Add what was counted of groups elsewhere; see `ProbeCounter.add_tables`."""
        self._counter_of(width).add_tables(tables, n_states, n_positions)

    def sort(self, names: Iterable[str]) -> None:
        """Bring the probes into an order: that in which they would first have observed something.

        Args:
            names: All that have.
        """
        order = {name: at for at, name in enumerate(names)}
        self._counters = dict(sorted(self._counters.items(), key=lambda item: order[item[0].probe]))

    def seen(self) -> list[str]:
        """Return the probes that have seen a state, in forward order."""
        return list(dict.fromkeys(w.probe for w, c in self.probe_counters().items() if c.has_seen))

    def unseen(self) -> list[str]:
        """Return the probes that have seen none."""
        seen = set(self.seen())
        return [name for name in self.names if name not in seen]

    def report(self, info: PassInfo | None = None) -> EfficiencyReport:
        """Return the report of all probes that saw a state.

        Raises:
            ProbeError: An observation failed, or no probe saw any state.
            ValueError: `accuracy`, `alpha` or `beta` is out of its range.
        """
        if self.error is not None:
            raise self.error
        return self.counts().report(PassInfo() if info is None else info)

    def thinned(self) -> dict[str, tuple[int, int]]:
        """Return what `PassCounts.thinned` says of the pass so far."""
        counters = self.probe_counters()
        if self.budget is not None:
            self.budget.finish()
        return name_widths({w: c.thinned for w, c in counters.items() if c.thinned is not None})

    def counts(self) -> PassCounts:
        """Return what was counted so far; `error` isn't raised."""
        thinned = self.thinned()
        counters = {w: c for w, c in self.probe_counters().items() if c.has_seen}
        classes, problems = self.class_results()
        left_out = {w.probe for w, c in counters.items() if c.level is None}
        return PassCounts(
            tuple(name for name in self.names if name not in left_out),
            {w: c.counter for w, c in counters.items() if c.level is not None},
            thinned,
            self.finds_neurons,
            classes,
            problems,
        )

    def class_results(self) -> Classed:
        """Return what was counted by class so far, and why some layers have no classes."""
        if self.classes is None:
            return Classed({}, {})
        return self.classes.results({w: c for w, c in self.probe_counters().items() if c.has_seen})

    def _labels_of(
        self,
        width: Width,
        grid: Grid,
        n_samples: int | None,
        samples: Samples,
        labels: npt.NDArray[Any] | None,
    ) -> npt.NDArray[np.int64] | None:
        """Return the labels that a call's states are to be counted by; see `ClassCounts`."""
        if self.classes is None or n_samples == 0:
            return None
        return self.classes.labels_of(width, grid, n_samples, samples, labels)

    def _counter(
        self,
        name: str,
        shape: tuple[int, ...],
        channel_axis: Axis,
        n_threads: int | None = None,
    ) -> ProbeCounter:
        if not shape:
            raise ValueError(f"activations need an axis of neurons; got shape {shape}")
        return self._counter_of(Width(name, n_neurons(channel_axis, shape)), n_threads)

    def _counter_of(self, width: Width, n_threads: int | None = None) -> ProbeCounter:
        counter = self._counters.get(width)
        return self._new_counter(width, n_threads) if counter is None else counter

    def _new_counter(self, width: Width, n_threads: int | None) -> ProbeCounter:
        if width.probe not in self.names:
            raise KeyError(f"no probe is named {width.probe!r}; there are {', '.join(self.names)}")
        width = Width(width.probe, int(width.n_neurons))
        n_threads = n_threads or self._n_threads
        counter: ProbeCounter
        if self.row_limit is None:
            counter = ProbeCounter(width.n_neurons, self._sampling, self.budget, n_threads)
        else:
            counter = RowKeeper(width.n_neurons, self._sampling, self.row_limit, n_threads)
        # One step, without a lock that an interrupt could leave: all threads get the same.
        taken = self._counters.setdefault(width, counter)
        if taken is counter and self.budget is not None:
            self.budget.join(counter)
        return taken


def _on_one_axis(activations: Any, axis: Axis) -> tuple[Any, int]:
    array = memory_or_array(activations)
    return (array, axis) if isinstance(axis, int) else folded(np.asarray(array), axis)

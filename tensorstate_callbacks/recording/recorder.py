"""Count the states of named probes over one evaluation pass, in one process or in several."""

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.budget import WHOLE, Budget, Sampling
from tensorstate_callbacks.recording.channel_axis import Axis, folded, folded_sample_axis
from tensorstate_callbacks.recording.probe_counter import Counter, ProbeCounter
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.states.counter import Memory
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.spectrum import Spectrum, add_spectra

Entry = TypeVar("Entry")
Name = TypeVar("Name")


class Width(NamedTuple):
    """What a counter is for: a probe, and a number of neurons that it was seen with."""

    probe: str
    n_neurons: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassInfo:
    """What a report says of its pass besides the layers.

    Args:
        accuracy: Accuracy on the same data, share 0 to 1; None where there is none.
        alpha: Order of the Rényi entropy; 1 is Shannon's.
        beta: Weight of accuracy in aIQ, above 0.
        epoch: Epoch the pass belongs to, counted from 0.
        step: Training steps made before the pass.
        stage: First part of the metric keys.
    """

    accuracy: float | None = None
    alpha: float = 1
    beta: float = 2
    epoch: int | None = None
    step: int | None = None
    stage: str = "val"


class ProbeCounts(NamedTuple):
    """What was counted of one probe with one number of neurons.

    Attributes:
        counted: Frequency spectrum of the states, of several processes of each one's own share;
            or how often each unit was in each of its states, see `GroupCounter.tables`.
        fired: How often each neuron fired in the states that this process counted, shape
            `(n_neurons,)`, uint64.
        group_size: Neurons of a unit; None where the layer is one unit.
    """

    counted: Spectrum | npt.NDArray[np.uint64]
    fired: npt.NDArray[np.uint64]
    group_size: int | None = None

    @classmethod
    def of(cls, counter: "Counter | ProbeCounts") -> "ProbeCounts":
        """Return what a counter has counted."""
        if isinstance(counter, ProbeCounts):
            return counter
        if isinstance(counter, GroupCounter):
            return cls(*counter.snapshot(), counter.group_size)
        return cls(counter.spectrum(), counter.fired())

    def report(self, name: str, alpha: float) -> LayerReport:
        """Return the report of the layer `name`."""
        if isinstance(self.counted, Spectrum):
            return LayerReport.from_spectrum(name, self.counted, self.fired, alpha)
        size = self.group_size or len(self.fired)
        return LayerReport.from_tables(name, self.counted, size, self.fired, alpha)


class PassCounts(NamedTuple):
    """What was counted in one evaluation pass: all that a report depends on.

    Attributes:
        names: All probes.
        probes: Of each probe that saw a state, and each number of neurons that it saw them with,
            in forward order: what was counted, or its counter, which is read only for the report,
            as the tables of all layers may take more memory than their counters.
        thinned: Where memory was short: the positions of a sample that a probe was read at in the
            end, and of how many; 0 where it could not be counted at all.
    """

    names: tuple[str, ...]
    probes: Mapping[Width, Counter | ProbeCounts]
    thinned: Mapping[str, tuple[int, int]] = MappingProxyType({})

    def seen(self) -> list[str]:
        """Return the probes that have seen a state, in forward order."""
        return list(dict.fromkeys(width.probe for width in self.probes))

    def unseen(self) -> list[str]:
        """Return the probes that have seen none."""
        seen = set(self.seen())
        return [name for name in self.names if name not in seen]

    def report(self, info: PassInfo) -> EfficiencyReport:
        """Return the report of all probes that saw a state; see `Recorder.report`."""
        layers = {
            name: ProbeCounts.of(counts).report(name, info.alpha)
            for name, counts in name_widths(self.probes).items()
        }
        if not layers:
            raise ProbeError(
                f"no probe saw any activations: {', '.join(self.names)}. Run the model on "
                "some data while recording, and attach to layers that it calls."
            )
        return EfficiencyReport(layers=layers, **vars(info))


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

    Attributes:
        error: The first error that `observe_later` kept, or None.
        budget: Shares the memory out among the probes; None where there is no limit.
    """

    def __init__(
        self,
        names: Iterable[str],
        *,
        threshold: float = 0.0,
        sampling: Sampling = WHOLE,
    ) -> None:
        self.names = tuple(names)
        self._threshold = threshold
        self._sampling = sampling
        self.budget = None if sampling.max_memory is None else Budget(sampling.max_memory)
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

    def observe(
        self,
        name: str,
        activations: npt.ArrayLike | Memory,
        channel_axis: Axis,
        *,
        sample_axis: int | None = 0,
        bfloat16: bool = False,
    ) -> None:
        """Count the states of one batch.

        Args:
            name: The probe.
            activations: Activations of any shape; see `StateCounter.update`.
            channel_axis: The axis of the neurons, or several that are one unit; may be negative.
            sample_axis: The axis of the samples; None where there is one sample.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.

        Raises:
            ProbeError: They can't be counted: a type that can't fire, no such axis. The batch isn't
                counted, what was counted before stays.
        """
        if name in self._dropped:
            return
        try:
            if not hasattr(activations, "shape"):
                activations = np.asarray(activations)
            array, axis = _on_one_axis(activations, channel_axis)
            counter = self._counter(name, array.shape, axis)
            samples = folded_sample_axis(sample_axis, channel_axis, activations.shape)
            counter.update(array, axis, self._threshold, sample_axis=samples, bfloat16=bfloat16)
        except KeyError:
            raise
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error

    def observe_later(self, name: str, activations: npt.ArrayLike, channel_axis: Axis) -> None:
        """Like `observe`, where an error raised at once would be lost: `report` raises it."""
        try:
            self.observe(name, activations, channel_axis)
        except ProbeError as error:
            self.error = self.error or error

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
        left_out = {w.probe for w, c in counters.items() if c.level is None}
        return PassCounts(
            tuple(name for name in self.names if name not in left_out),
            {w: c.counter for w, c in counters.items() if c.level is not None},
            thinned,
        )

    def _counter(self, name: str, shape: tuple[int, ...], channel_axis: int) -> ProbeCounter:
        if not shape:
            raise ValueError(f"activations need an axis of neurons; got shape {shape}")
        if not -len(shape) <= channel_axis < len(shape):
            raise ValueError(
                f"its activations, of shape {tuple(shape)}, have no axis {channel_axis}"
            )
        width = Width(name, shape[channel_axis])
        counter = self._counters.get(width)
        return self._new_counter(width) if counter is None else counter

    def _new_counter(self, width: Width) -> ProbeCounter:
        if width.probe not in self.names:
            raise KeyError(f"no probe is named {width.probe!r}; there are {', '.join(self.names)}")
        width = Width(width.probe, int(width.n_neurons))
        counter = ProbeCounter(width.n_neurons, self._sampling, self.budget)
        # One step, without a lock that an interrupt could leave: all threads get the same.
        taken = self._counters.setdefault(width, counter)
        if taken is counter and self.budget is not None:
            self.budget.join(counter)
        return taken


def name_widths(entries: Mapping[Width, Entry]) -> dict[str, Entry]:
    """Return entries by names: the probe's, followed by its width where it has several.

    Example:
        >>> name_widths({Width("relu", 6): "a", Width("conv", 6): "b", Width("relu", 12): "c"})
        {'relu@6': 'a', 'conv': 'b', 'relu@12': 'c'}
    """
    probes = [width.probe for width in entries]
    named: dict[str, Entry] = {}
    for width, entry in entries.items():
        name = width.probe
        if probes.count(name) > 1:
            name = f"{name}@{width.n_neurons}"
            while name in probes:
                name += "'"  # A layer is really called so.
        named[name] = entry
    return named


def merge_orders(orders: Iterable[Iterable[Name]]) -> list[Name]:
    """Return the names of several processes in one fixed order.

    Args:
        orders: The names that each process has, in its order: that of the lowest one counts.

    Example:
        >>> merge_orders([[], ["a", "c"], ["b", "a", "c"]])
        ['a', 'c', 'b']
    """
    return list(dict.fromkeys(name for order in orders for name in order))


def merge_counts(parts: Iterable[ProbeCounts]) -> ProbeCounts:
    """Add up what several processes counted of one probe, each of states of its own.

    Returns:
        What one process would have counted: exactly, since all is integers.
    """
    parts = list(parts)
    fired = np.stack([part.fired for part in parts]).sum(axis=0, dtype=np.uint64)
    spectra = [part.counted for part in parts if isinstance(part.counted, Spectrum)]
    return ProbeCounts(add_spectra(spectra), fired)


def _on_one_axis(activations: Any, axis: Axis) -> tuple[Any, int]:
    return (activations, axis) if isinstance(axis, int) else folded(np.asarray(activations), axis)

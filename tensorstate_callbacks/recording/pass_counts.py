"""What was counted in one evaluation pass, by one process or by several, and its report."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import ProbeError, TensorStateWarning, list_some
from tensorstate_callbacks.metrics.classes import ClassMetrics, class_metrics
from tensorstate_callbacks.recording.budget import describe_thinned
from tensorstate_callbacks.recording.class_problems import SHORT, describe_problems
from tensorstate_callbacks.recording.probe_counter import Counter
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.states.agreement import Agreement
from tensorstate_callbacks.states.class_counter import ClassCounter
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
        agreement: Which neurons agree in the states of `counted`; None where nobody asked, where
            that follows from the tables of groups, or where there was no memory to find it.
    """

    counted: Spectrum | npt.NDArray[np.uint64]
    fired: npt.NDArray[np.uint64]
    group_size: int | None = None
    agreement: Agreement | None = None

    @property
    def n_states(self) -> int:
        """How many states of the layer were counted."""
        if isinstance(self.counted, Spectrum):
            return self.counted.n_states
        first = 1 << min(self.group_size or len(self.fired), len(self.fired))
        return int(self.counted[:first].sum(dtype=np.uint64))

    @classmethod
    def of(cls, counter: "Counter | ProbeCounts", *, neurons: bool = False) -> "ProbeCounts":
        """Return what a counter has counted.

        Args:
            counter: The counter.
            neurons: Whether to find the neurons that agree.
        """
        if isinstance(counter, ProbeCounts):
            return counter
        if isinstance(counter, GroupCounter):
            return cls(*counter.snapshot(), counter.group_size)
        found = cls(counter.spectrum(), counter.fired())
        if neurons and counter.n_states:
            # There may be no memory for a second copy of the states: all else is reported then.
            with suppress(MemoryError):
                states = counter.states()
                agreement = Agreement.of_states(states, found.fired, counter.n_states)
                return found._replace(agreement=agreement)
        return found

    def report(self, name: str, alpha: float, *, neurons: bool = False) -> LayerReport:
        """Return the report of the layer `name`.

        Args:
            name: The layer's name.
            alpha: Order of the Rényi entropy.
            neurons: Whether what is known of each neuron was asked for.
        """
        if isinstance(self.counted, Spectrum):
            return LayerReport.from_spectrum(
                name,
                self.counted,
                self.fired,
                alpha,
                agreement=self.agreement,
                followed=neurons,
            )
        size = self.group_size or len(self.fired)
        return LayerReport.from_tables(
            name, self.counted, size, self.fired, alpha, followed=neurons
        )


class PassCounts(NamedTuple):
    """What was counted in one evaluation pass: all that a report depends on.

    Attributes:
        names: All probes.
        probes: Of each probe that saw a state, and each number of neurons that it saw them with,
            in forward order: what was counted, or its counter, which is read only for the report,
            as the tables of all layers may take more memory than their counters.
        thinned: Where memory was short: the positions of a sample that a probe was read at in the
            end, and of how many; 0 where it could not be counted at all.
        neurons: Whether the report is to tell which neurons agree.
        classes: Where states are counted by class, of each probe all of whose states are: what was
            counted, or what that tells of the classes.
        class_problems: Why those of others are not.
    """

    names: tuple[str, ...]
    probes: Mapping[Width, Counter | ProbeCounts]
    thinned: Mapping[str, tuple[int, int]] = MappingProxyType({})
    neurons: bool = False
    classes: Mapping[Width, ClassCounter | ClassMetrics] = MappingProxyType({})
    class_problems: Mapping[Width, str] = MappingProxyType({})

    def seen(self) -> list[str]:
        """Return the probes that have seen a state, in forward order."""
        return list(dict.fromkeys(width.probe for width in self.probes))

    def unseen(self) -> list[str]:
        """Return the probes that have seen none."""
        seen = set(self.seen())
        return [name for name in self.names if name not in seen]

    def class_warning(self) -> str | None:
        """Return what is to be warned of layers without metrics of classes; None if all have."""
        problems = {
            name: self.class_problems[width]
            for name, width in self._names().items()
            if width in self.class_problems
        }
        return describe_problems(problems) if problems else None

    def _names(self) -> dict[str, Width]:
        return name_widths({width: width for width in self.probes})

    def report(self, info: PassInfo) -> EfficiencyReport:
        """Return the report of all probes that saw a state; see `Recorder.report`.

        Warns:
            TensorStateWarning: There is no memory to read what was counted of some, or to find the
                neurons that agree.
        """
        layers: dict[str, LayerReport] = {}
        unread: dict[str, tuple[int, int]] = {}
        unclassed: dict[str, str] = {}
        for name, width in self._names().items():
            try:
                found = ProbeCounts.of(self.probes[width], neurons=self.neurons)
                layers[name] = found.report(name, info.alpha, neurons=self.neurons)
            except MemoryError:
                unread[name] = 0, 0
                continue
            try:
                layers[name] = self._with_classes(layers[name], width)
            except MemoryError:
                unclassed[name] = SHORT
        if unclassed:
            warnings.warn(describe_problems(unclassed), TensorStateWarning, stacklevel=3)
        lost = {**self.thinned, **unread}
        if not layers and lost:
            raise ProbeError(f"no layer could be counted: {describe_thinned(lost)}")
        if unread:
            warnings.warn(describe_thinned(unread), TensorStateWarning, stacklevel=3)
        unknown = [name for name, layer in layers.items() if _lacks_agreement(layer)]
        if unknown:
            warnings.warn(_describe_unknown(unknown), TensorStateWarning, stacklevel=3)
        if not layers:
            raise ProbeError(
                f"no probe saw any activations: {', '.join(self.names)}. Run the model on "
                "some data while recording, and attach to layers that it calls."
            )
        return EfficiencyReport(layers=layers, **vars(info))

    def _with_classes(self, layer: LayerReport, width: Width) -> LayerReport:
        classes = self.classes.get(width)
        if classes is None:
            return layer
        found = class_metrics(classes) if isinstance(classes, ClassCounter) else classes
        return dataclasses.replace(layer, classes=found)


def name_widths(entries: Mapping[Width, Entry]) -> dict[str, Entry]:
    """Return entries by names: the probe's, followed by its width where it has several.

    Examples:
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

    Examples:
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
    # One without states has nothing to say of any two neurons.
    found = [part.agreement for part in parts if not _is_empty(part)]
    known = [agreement for agreement in found if agreement is not None]
    agreement = Agreement.of_parts(known) if known and len(known) == len(found) else None
    return ProbeCounts(add_spectra(spectra), fired, agreement=agreement)


def _is_empty(part: ProbeCounts) -> bool:
    return isinstance(part.counted, Spectrum) and not len(part.counted.values)


def _lacks_agreement(layer: LayerReport) -> bool:
    neurons = layer.neurons
    return neurons is not None and neurons.followed and neurons.agreement is None


def _describe_unknown(names: Sequence[str]) -> str:
    return (
        f"there is no memory to find the neurons that agree in {list_some(names)}: the rest is "
        "reported. Count groups of neurons (group_size=8), of which it is known within each group; "
        "or read fewer positions (positions=16); or leave neurons out"
    )

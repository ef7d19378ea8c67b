"""The metrics of one layer in one evaluation."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.metrics.classes import ClassMetrics
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.metrics.entropy import (
    Estimator,
    effective_number,
    estimate_entropy,
    spectrum_entropy,
)
from tensorstate_callbacks.metrics.intervals import Interval, efficiency_interval
from tensorstate_callbacks.metrics.neurons import NeuronCounts
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.metrics.units import (
    UnitMetrics,
    independent_entropy,
    sum_of,
    unit_sizes,
)
from tensorstate_callbacks.reports.neuron_readings import NeuronReadings
from tensorstate_callbacks.states.agreement import Agreement
from tensorstate_callbacks.states.spectrum import Spectrum, check_alpha


@dataclasses.dataclass(frozen=True, eq=False)
class LayerReport(NeuronReadings):
    """Metrics of one layer over one evaluation pass.

    The layer is one unit of neurons, as in the paper, or is divided into units of `group_size`
    neurons.

    Attributes:
        name: The layer's name; `<name>.input` if its input was probed.
        n_neurons: Neurons (channels) of the layer.
        n_states: States seen of each unit, repetitions included: positions times samples.
        n_distinct: Distinct states seen, of all units together.
        n_singletons: States seen exactly once, of all units together.
        entropy: Entropy of the states, bits; the sum over the units.
        efficiency: `entropy / n_neurons`, share 0 to 1.
        ceiling: The highest efficiency that so many states can show, share 0 to 1:
            `min(n_neurons, log2(n_states)) / n_neurons`. With units of g neurons it is the sum of
            `min(g, log2(n_states))` over the units, divided by `n_neurons`.
        coverage: Good-Turing estimate of the probability that the next state is one already seen,
            `1 - n_singletons / n_states`, share 0 to 1; of several units the smallest. Where it is
            low, the efficiency says more about the number of samples than about the layer.
        firing_rate: Share of neuron-state pairs that fired, 0 to 1.
        n_never: Neurons that fired in no state.
        n_always: Neurons that fired in every state.
        rate_bound: What the efficiency would be if the neurons fired independently at their
            rates, share 0 to 1. It is the efficiency of units of one neuron, and (by Shannon
            entropy) never less than that of larger units.
        spectrum: How many distinct states were seen once, twice, three times..., read-only.
            Estimates and the curves of `plot_states` are made from it. None where the units are
            smaller than the layer, and in a report from a checkpoint or a `train_history` that has
            only its metrics.
        largest: How often the most frequent state was seen; of several units the sum of theirs.
        group_size: Neurons of a unit, of which the last may have fewer; None where the layer is one
            unit.
        mean_coverage: As `coverage`, but the mean of the units.
        units: What is known of each unit, where they are smaller than the layer; None in a report
            from a checkpoint that has only its metrics.
        neurons: How often each neuron fired, and, with `neurons=True`, which neurons agree; read it
            by `firing_rates`, `agreeing` and the like. Fresh reports have it. Only with
            `neurons=True` it is compared, copied, pickled and saved along, so that
            `History.lifelines` has every evaluation; else it is None in a report from a file or a
            checkpoint.
        probe: How its states of `probe_data` have changed since earlier recordings; None where
            there is no `probe_data`, or the layer wasn't called on it.
        classes: What the states tell of the classes of the samples; None without `classes`, where
            they can't be counted, and where the report has only its metrics.
    """

    name: str
    n_neurons: int
    n_states: int
    n_distinct: int
    n_singletons: int
    entropy: float
    efficiency: float
    ceiling: float
    coverage: float
    firing_rate: float
    n_never: int
    n_always: int
    rate_bound: float
    spectrum: Spectrum | None = dataclasses.field(repr=False)
    largest: int = 0
    group_size: int | None = None
    mean_coverage: float = 0.0
    units: UnitMetrics | None = dataclasses.field(default=None, repr=False)
    neurons: NeuronCounts | None = dataclasses.field(default=None, repr=False)
    probe: ProbeChange | None = None
    classes: ClassMetrics | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.spectrum is not None:
            # Of its own and read-only: equality and hash depend on it.
            columns = [np.array(column, np.uint64) for column in self.spectrum]
            for column in columns:
                column.flags.writeable = False
            object.__setattr__(self, "spectrum", Spectrum(*columns))
            object.__setattr__(self, "largest", self.spectrum.largest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerReport):
            return NotImplemented
        return self._lasting() == other._lasting()

    def __hash__(self) -> int:
        return hash(tuple(self._lasting().values()))

    def _lasting(self) -> dict[str, Any]:
        """Return the fields, without what only a fresh report has."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.neurons is not None and not self.neurons.followed:
            fields["neurons"] = None
        return fields

    def __getstate__(self) -> dict[str, Any]:
        return self._lasting()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Arrays come out of a copy writable.
        vars(self).update(state)
        self.__post_init__()

    @classmethod
    def from_spectrum(
        cls,
        name: str,
        spectrum: Spectrum,
        fired: npt.NDArray[np.uint64],
        alpha: float = 1,
        *,
        group_size: int | None = None,
        agreement: Agreement | None = None,
        followed: bool = False,
    ) -> "LayerReport":
        """Compute the metrics of a layer that is one unit.

        Args:
            name: The layer's name.
            spectrum: Frequency spectrum of its states.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.
            group_size: Neurons that a unit was to have, where there are no more.
            agreement: Which neurons agree, where that is known.
            followed: Whether that was asked for, with `neurons=True`.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        entropy = spectrum_entropy(spectrum, alpha)
        return cls.from_metrics(
            name,
            len(fired),
            n_states=spectrum.n_states,
            n_distinct=spectrum.n_distinct,
            n_singletons=spectrum.n_singletons,
            entropy=entropy,
            spectrum=spectrum,
            group_size=group_size,
            neurons=NeuronCounts(fired, spectrum.n_states, agreement, followed),
            **_of_neurons(fired, spectrum.n_states, alpha),
        )

    @classmethod
    def from_tables(
        cls,
        name: str,
        tables: npt.NDArray[np.uint64],
        group_size: int,
        fired: npt.NDArray[np.uint64],
        alpha: float = 1,
        *,
        followed: bool = False,
    ) -> "LayerReport":
        """Compute the metrics of a layer whose units are groups of its neurons.

        Args:
            name: The layer's name.
            tables: How often each unit was in each of its states; see `GroupCounter.tables`.
            group_size: Neurons of each unit but the last, which may have fewer.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.
            followed: Whether to find the neurons of each unit that agree.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        n_neurons = len(fired)
        agreement = Agreement.of_tables(tables, n_neurons, group_size) if followed else None
        if group_size >= n_neurons:
            spectrum = Spectrum.from_counts(tables)
            return cls.from_spectrum(
                name,
                spectrum,
                fired,
                alpha,
                group_size=group_size,
                agreement=agreement,
                followed=followed,
            )
        units = UnitMetrics.of_tables(tables, n_neurons, group_size, alpha)
        n_states = int(tables[: 1 << group_size].sum())
        coverages = 1 - units.n_singletons / n_states
        return cls.from_metrics(
            name,
            n_neurons,
            n_states=n_states,
            n_distinct=int(units.n_distinct.sum()),
            n_singletons=int(units.n_singletons.sum()),
            entropy=sum_of(units.entropy),
            group_size=group_size,
            units=units,
            largest=int(units.largest.sum()),
            coverage=float(coverages.min()),
            mean_coverage=sum_of(coverages) / len(coverages),
            neurons=NeuronCounts(fired, n_states, agreement, followed),
            **_of_neurons(fired, n_states, alpha),
        )

    @classmethod
    def from_metrics(
        cls,
        name: str,
        n_neurons: int,
        *,
        n_states: int,
        n_singletons: int,
        entropy: float,
        group_size: int | None = None,
        coverage: float | None = None,
        mean_coverage: float | None = None,
        **others: Any,
    ) -> "LayerReport":
        """Compute what follows from the metrics that don't follow from others."""
        sizes = unit_sizes(n_neurons, group_size or n_neurons).tolist()
        most = math.log2(n_states)
        if coverage is None:
            coverage = mean_coverage = 1 - n_singletons / n_states
        return cls(
            name=name,
            n_neurons=n_neurons,
            n_states=n_states,
            n_singletons=n_singletons,
            entropy=entropy,
            efficiency=efficiency(entropy, n_neurons),
            ceiling=efficiency(math.fsum(min(size, most) for size in sizes), n_neurons),
            coverage=coverage,
            mean_coverage=coverage if mean_coverage is None else mean_coverage,
            group_size=group_size,
            **{"spectrum": None, **others},
        )

    @property
    def n_units(self) -> int:
        """Number of units that the layer is divided into."""
        return -(-self.n_neurons // self.group_size) if self.group_size else 1

    @property
    def ceiling_share(self) -> float:
        """Share of the ceiling that the efficiency reaches, 0 to 1; 1 where the ceiling is 0."""
        return min(self.efficiency / self.ceiling, 1.0) if self.ceiling else 1.0

    @property
    def max_share(self) -> float:
        """Share of the states that the most frequent one makes up, 0 to 1; of units the mean."""
        return self.largest / (self.n_states * self.n_units)

    @property
    def redundancy(self) -> float:
        """Share of the rate bound that is lost because neurons depend on each other, 0 to 1.

        `1 - efficiency / rate_bound`, and 0 where the bound is 0. Read it where coverage is high:
        too few states look like neurons that depend on each other.
        """
        return max(1 - self.efficiency / self.rate_bound, 0.0) if self.rate_bound else 0.0

    def estimate(self, estimator: Estimator = "chao-shen") -> float:
        """Return the Shannon entropy, corrected for unseen states, bits; see `estimate_entropy`.

        Of several units it is the sum of theirs.

        Args:
            estimator: Name of the estimator, as `estimate_entropy` takes it.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has only its metrics.
        """
        if self.units is not None:
            return self.units.estimate(estimator, self.n_states)
        return estimate_entropy(self._known_spectrum(), estimator, max_bits=self.n_neurons)

    def interval(self, level: float = 0.95, *, n_samples: int | None = None) -> Interval:
        """Return an interval for the efficiency, by Shannon entropy, that more data would show.

        Two things are uncertain: which states were drawn, and what was never seen. For the first
        the interval takes the standard error of the jackknife, for the second the estimators of
        Grassberger, which corrects too little, and of Chao and Shen, which more often corrects too
        much. Its estimate is the larger of the two. With several units, its ends are the sums of
        theirs.

        Args:
            level: How often intervals are meant to hold the true value, above 0 and below 1.
            n_samples: Samples (images) in the pass. States of one sample resemble each other: with
                the number given, a sample counts as one observation, however many states it gave.
                None counts all states as independent, which is right only for layers with one state
                per sample.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has only its metrics.
            ValueError: `level` is not between 0 and 1, or `n_samples` is below 1.
        """
        if self.units is not None:
            bits = self.units.interval(level, self.n_states, n_samples)
            return Interval(*(efficiency(end, self.n_neurons) for end in bits))
        spectrum = self._known_spectrum()
        return efficiency_interval(spectrum, self.n_neurons, level, n_samples=n_samples)

    def effective_states(self, order: float = 1) -> float:
        """Return the effective number of states: so many, used evenly, have the same entropy.

        It is Hill's number, 2 to the power of the Rényi entropy in bits. Order 0 is the number of
        distinct states, 1 weighs each by its share (Shannon), 2 is the inverse of the probability
        that two states are the same, infinity the inverse of the most frequent state's share. Of
        several units it is the geometric mean of theirs.

        It is never more than the number of distinct states seen. States that more data would show
        are not in it, so compare layers and runs on the same data only, and look at `coverage`. It
        can't tell whether the states differ in something that matters.

        Source: M. O. Hill, "Diversity and evenness: a unifying notation and its consequences",
        Ecology 54 (1973) 427-432.

        Args:
            order: 0 to infinity. With units smaller than the layer 0, 1 or infinity.

        Raises:
            StatesNotAvailableError: The report has no spectrum or units to compute it from.
            ValueError: `order` is negative or NaN.

        Examples:
            >>> fired = np.array([4, 2], np.uint64)
            >>> layer = LayerReport.from_spectrum("a", Spectrum.from_counts([2, 2, 4]), fired)
            >>> [round(layer.effective_states(order), 3) for order in (0, 1, 2, math.inf)]
            [3.0, 2.828, 2.667, 2.0]
        """
        check_alpha(order)
        if self.units is not None:
            return self.units.effective_states(order, self.n_states, self.name)
        spectrum = self._known_spectrum()
        return effective_number(spectrum_entropy(spectrum, order), spectrum.n_distinct)

    def _known_spectrum(self) -> Spectrum:
        if self.spectrum is None:
            raise StatesNotAvailableError(
                f"the spectrum of {self.name!r} isn't known: a checkpoint keeps that of its last "
                "evaluation only, and a train_history that of its last window, and the metrics of "
                "those before. history.save('run.json') keeps all that it has"
            )
        return self.spectrum

    def without_states(self) -> "LayerReport":
        """Return the metrics alone, without the spectrum, units and classes.

        With `neurons=True` it keeps how often each neuron fired, but not which of them agree.
        """
        neurons = None if self.neurons is None else self.neurons.counts_alone()
        return dataclasses.replace(self, spectrum=None, units=None, neurons=neurons, classes=None)

    def without_pairs(self) -> "LayerReport":
        """Return a report without the pairs of classes, where these take much memory."""
        classes = None if self.classes is None else self.classes.without_pairs()
        return self if classes is self.classes else dataclasses.replace(self, classes=classes)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics under their names, as a row of a table has them.

        Those of single units, neurons and classes are not among them.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("spectrum", "units", "classes", "largest", "neurons", "probe"):
            del fields[name]
        if self.probe is not None:
            fields |= {
                "turnover": self.probe.since_previous,
                "turnover_from_first": self.probe.since_first,
                "unchanged": self.probe.unchanged,
                "naswot": self.probe.naswot,
            }
        if self.n_units == 1:
            # One unit is the layer, and its coverage its own mean.
            fields |= {"group_size": None, "mean_coverage": None}
        more = ("ceiling_share", "max_share", "redundancy")
        return {**fields, **{name: getattr(self, name) for name in more}}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers, strings and lists, for `from_dict`.

        What is known of each neuron is there with `neurons=True` only.
        """
        fields = self._lasting()
        if fields["neurons"] is None:
            del fields["neurons"]
        else:
            fields["neurons"] = fields["neurons"].to_dict()
        if self.spectrum is not None:
            fields["spectrum"] = [column.tolist() for column in self.spectrum]
        if self.units is not None:
            fields["units"] = self.units.to_dict()
        if self.probe is not None:
            fields["probe"] = self.probe.to_dict()
        if self.classes is not None:
            fields["classes"] = self.classes.to_dict()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LayerReport":
        """Build the report again that `to_dict` was called on."""
        spectrum = fields["spectrum"]
        if spectrum is not None:
            spectrum = Spectrum(*(np.array(column, dtype=np.uint64) for column in spectrum))
        units = fields["units"]
        if units is not None:
            units = UnitMetrics.from_dict(units)
        # Files of earlier versions have none, nor those of recordings that didn't ask for it.
        neurons, probe, classes = map(fields.get, ("neurons", "probe", "classes"))
        if neurons is not None:
            neurons = NeuronCounts.from_dict(neurons, fields["n_states"])
        if probe is not None:
            probe = ProbeChange.from_dict(probe)
        if classes is not None:
            classes = ClassMetrics.from_dict(classes)
        read = {"spectrum": spectrum, "units": units, "neurons": neurons}
        return cls(**{**fields, **read, "probe": probe, "classes": classes})


def _of_neurons(fired: npt.NDArray[np.uint64], n_states: int, alpha: float) -> dict[str, Any]:
    n_neurons = len(fired)
    return {
        "firing_rate": sum(fired.tolist()) / (n_neurons * n_states),
        "n_never": int(np.count_nonzero(fired == 0)),
        "n_always": int(np.count_nonzero(fired == n_states)),
        "rate_bound": efficiency(independent_entropy(fired, n_states, alpha), n_neurons),
    }

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
from tensorstate_callbacks.metrics.entropy import Estimator, estimate_entropy, spectrum_entropy
from tensorstate_callbacks.metrics.intervals import Interval, efficiency_interval
from tensorstate_callbacks.metrics.units import (
    UnitMetrics,
    independent_entropy,
    sum_of,
    unit_sizes,
)
from tensorstate_callbacks.states.spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Firing states of one layer over one evaluation pass.

    The layer is one unit of neurons, as in the paper, or parts of it are units by themselves.

    Attributes:
        name: The layer's name; `<name>.input` if its input was probed.
        n_neurons: Neurons (channels) of the layer.
        n_states: States seen of each unit, repetitions included (positions times samples).
        n_distinct: Distinct states seen, of all units together.
        n_singletons: States seen exactly once, of all units together.
        entropy: Entropy of the states, bits; the sum over the units.
        efficiency: `entropy / n_neurons`, share 0 to 1.
        ceiling: The highest efficiency that so few states can show, share 0 to 1:
            `min(n_neurons, log2(n_states)) / n_neurons`; of units of g neurons the sum of their
            `min(g, log2(n_states))` by `n_neurons`.
        coverage: Good-Turing estimate of the probability that the next state is one already seen,
            `1 - n_singletons / n_states`, share 0 to 1; of several units the smallest. Where it is
            low, the efficiency says more about the number of samples than about the layer.
        firing_rate: Share of neuron-state pairs that fired, 0 to 1.
        n_never: Neurons that fired in no state.
        n_always: Neurons that fired in every state.
        rate_bound: What the efficiency would be if the neurons fired independently at their
            rates, share 0 to 1: the efficiency of units of one neuron, and never less than that
            of larger ones (by Shannon entropy).
        spectrum: How many distinct states were seen once, twice, three times...; what estimates
            and rank-abundance curves are made from; read-only. None where the units are smaller
            than the layer, and in a report from a checkpoint or a `train_history` that has only its
            metrics.
        largest: How often the most frequent state was seen; of several units the sum of theirs.
        group_size: Neurons of a unit, the last one may have fewer; None where it is the layer.
        mean_coverage: As `coverage`, the mean of the units.
        units: What is known of each unit, where they are smaller than the layer; None in a report
            from a checkpoint that has only its metrics.
        classes: What the states tell of the classes of the samples; None where that isn't asked
            for, can't be counted, or the report has only its metrics.
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
    classes: ClassMetrics | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.spectrum is not None:
            # Of its own and read-only: equality and hash depend on it.
            columns = [np.array(column, np.uint64) for column in self.spectrum]
            for column in columns:
                column.flags.writeable = False
            object.__setattr__(self, "spectrum", Spectrum(*columns))
            object.__setattr__(self, "largest", self.spectrum.largest)

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
    ) -> "LayerReport":
        """Compute the metrics of a layer that is one unit.

        Args:
            name: The layer's name.
            spectrum: Frequency spectrum of its states.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.
            group_size: Neurons that a unit was to have, where there are no more.

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
    ) -> "LayerReport":
        """Compute the metrics of a layer whose units are groups of its neurons.

        Args:
            name: The layer's name.
            tables: How often each unit was in each of its states; see `GroupCounter.tables`.
            group_size: Neurons of each unit but the last, which may have fewer.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        n_neurons = len(fired)
        if group_size >= n_neurons:
            spectrum = Spectrum.from_counts(tables)
            return cls.from_spectrum(name, spectrum, fired, alpha, group_size=group_size)
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
        """Units that the layer is divided into."""
        return -(-self.n_neurons // self.group_size) if self.group_size else 1

    @property
    def ceiling_share(self) -> float:
        """Share of the ceiling that the efficiency reaches, 0 to 1; 1 where the ceiling is 0."""
        return min(self.efficiency / self.ceiling, 1.0) if self.ceiling else 1.0

    @property
    def max_share(self) -> float:
        """Share of the states that the most frequent one makes up, 0 to 1; the units' mean."""
        return self.largest / (self.n_states * self.n_units)

    @property
    def redundancy(self) -> float:
        """Share of what its neurons' rates allow that is lost as they depend on each other.

        `1 - efficiency / rate_bound`, 0 to 1; 0 where the bound is 0. Read it where coverage is
        high: too few states look like neurons that depend on each other.
        """
        return max(1 - self.efficiency / self.rate_bound, 0.0) if self.rate_bound else 0.0

    def estimate(self, estimator: Estimator = "chao-shen") -> float:
        """Return the Shannon entropy, corrected for unseen states, bits; see `estimate_entropy`.

        That of units is the sum of theirs.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has only its metrics.
        """
        if self.units is not None:
            return self.units.estimate(estimator, self.n_states)
        return estimate_entropy(self._known_spectrum(), estimator, max_bits=self.n_neurons)

    def interval(self, level: float = 0.95, *, n_samples: int | None = None) -> Interval:
        """Return an interval for the efficiency by Shannon entropy; see `efficiency_interval`.

        Its ends are the sums of those of the units.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has only its metrics.
        """
        if self.units is not None:
            bits = self.units.interval(level, self.n_states, n_samples)
            return Interval(*(efficiency(end, self.n_neurons) for end in bits))
        spectrum = self._known_spectrum()
        return efficiency_interval(spectrum, self.n_neurons, level, n_samples=n_samples)

    def _known_spectrum(self) -> Spectrum:
        if self.spectrum is None:
            raise StatesNotAvailableError(
                f"the spectrum of {self.name!r} isn't known: a checkpoint keeps that of its last "
                "evaluation only, and a train_history that of its last window, and the metrics of "
                "those before. history.save('run.json') keeps all that it has"
            )
        return self.spectrum

    def without_states(self) -> "LayerReport":
        """Return the metrics alone, without the spectrum, units and classes."""
        return dataclasses.replace(self, spectrum=None, units=None, classes=None)

    def metrics(self) -> dict[str, Any]:
        """Return all metrics but those of units and classes, under their names: a table's row."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("spectrum", "units", "classes", "largest"):
            del fields[name]
        if self.n_units == 1:
            # One unit is the layer, and its coverage its own mean.
            fields |= {"group_size": None, "mean_coverage": None}
        more = ("ceiling_share", "max_share", "redundancy")
        return {**fields, **{name: getattr(self, name) for name in more}}

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain numbers, strings and lists; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.spectrum is not None:
            fields["spectrum"] = [column.tolist() for column in self.spectrum]
        if self.units is not None:
            fields["units"] = self.units.to_dict()
        if self.classes is not None:
            fields["classes"] = self.classes.to_dict()
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LayerReport":
        """Build the report that `to_dict` was called on."""
        spectrum = fields["spectrum"]
        if spectrum is not None:
            spectrum = Spectrum(*(np.array(column, dtype=np.uint64) for column in spectrum))
        units = fields["units"]
        if units is not None:
            units = UnitMetrics.from_dict(units)
        # Files that were written before have none.
        classes = fields.get("classes")
        if classes is not None:
            classes = ClassMetrics.from_dict(classes)
        return cls(**{**fields, "spectrum": spectrum, "units": units, "classes": classes})


def _of_neurons(fired: npt.NDArray[np.uint64], n_states: int, alpha: float) -> dict[str, Any]:
    n_neurons = len(fired)
    return {
        "firing_rate": sum(fired.tolist()) / (n_neurons * n_states),
        "n_never": int(np.count_nonzero(fired == 0)),
        "n_always": int(np.count_nonzero(fired == n_states)),
        "rate_bound": efficiency(independent_entropy(fired, n_states, alpha), n_neurons),
    }

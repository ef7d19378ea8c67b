"""The metrics of one layer in one evaluation, and what limits those of several."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.display.view import LOW_COVERAGE, layers_of_low_coverage
from tensorstate_callbacks.errors import StatesNotAvailableError
from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.metrics.entropy import Estimator, estimate_entropy, spectrum_entropy
from tensorstate_callbacks.metrics.intervals import Interval, efficiency_interval
from tensorstate_callbacks.states.spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """Firing states of one layer over one evaluation pass.

    Attributes:
        name: The layer's name; `<name>.input` if its input was probed.
        n_neurons: Neurons (channels), the bits of a state.
        n_states: States seen, repetitions included (positions times samples).
        n_distinct: Distinct states seen.
        n_singletons: States seen exactly once.
        entropy: Entropy of the states, bits.
        efficiency: `entropy / n_neurons`, share 0 to 1.
        ceiling: The highest efficiency that so few states can show,
            `min(n_neurons, log2(n_states)) / n_neurons`, share 0 to 1.
        coverage: Good-Turing estimate of the probability that the next state is one already seen,
            `1 - n_singletons / n_states`, share 0 to 1. Where it is low, the efficiency says more
            about the number of samples than about the layer.
        firing_rate: Share of neuron-state pairs that fired, 0 to 1.
        n_never: Neurons that fired in no state.
        n_always: Neurons that fired in every state.
        spectrum: How many distinct states were seen once, twice, three times...; what estimates
            and rank-abundance curves are made from; read-only. None in a report from a checkpoint
            that has only its metrics.
        largest: How often the most frequent state was seen; of the spectrum, where there is one.
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
    spectrum: Spectrum | None
    largest: int = 0

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
        cls, name: str, spectrum: Spectrum, fired: npt.NDArray[np.uint64], alpha: float = 1
    ) -> "LayerReport":
        """Compute the metrics of one layer.

        Args:
            name: The layer's name.
            spectrum: Frequency spectrum of its states.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        n_states = spectrum.n_states
        return cls.from_metrics(
            name,
            len(fired),
            n_states=n_states,
            n_distinct=spectrum.n_distinct,
            n_singletons=spectrum.n_singletons,
            entropy=spectrum_entropy(spectrum, alpha),
            firing_rate=sum(fired.tolist()) / (len(fired) * n_states),
            n_never=int(np.count_nonzero(fired == 0)),
            n_always=int(np.count_nonzero(fired == n_states)),
            spectrum=spectrum,
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
        spectrum: Spectrum | None = None,
        **others: Any,
    ) -> "LayerReport":
        """Compute what follows from the metrics that don't follow from others."""
        return cls(
            name=name,
            n_neurons=n_neurons,
            n_states=n_states,
            n_singletons=n_singletons,
            entropy=entropy,
            efficiency=efficiency(entropy, n_neurons),
            ceiling=efficiency(min(n_neurons, math.log2(n_states)), n_neurons),
            coverage=1 - n_singletons / n_states,
            spectrum=spectrum,
            **others,
        )

    @property
    def ceiling_share(self) -> float:
        """Share of the ceiling that the efficiency reaches, 0 to 1; 1 where the ceiling is 0."""
        return min(self.efficiency / self.ceiling, 1.0) if self.ceiling else 1.0

    @property
    def max_share(self) -> float:
        """Share of the states that the most frequent one makes up, 0 to 1."""
        return self.largest / self.n_states

    def estimate(self, estimator: Estimator = "chao-shen") -> float:
        """Return the Shannon entropy, corrected for unseen states, bits; see `estimate_entropy`.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has no spectrum.
        """
        return estimate_entropy(self._known_spectrum(), estimator, max_bits=self.n_neurons)

    def interval(self, level: float = 0.95, *, n_samples: int | None = None) -> Interval:
        """Return an interval for the efficiency by Shannon entropy; see `efficiency_interval`.

        Raises:
            StatesNotAvailableError: The report, from a checkpoint, has no spectrum.
        """
        spectrum = self._known_spectrum()
        return efficiency_interval(spectrum, self.n_neurons, level, n_samples=n_samples)

    def _known_spectrum(self) -> Spectrum:
        if self.spectrum is None:
            raise StatesNotAvailableError(
                f"the spectrum of {self.name!r} isn't known: a checkpoint keeps that of its last "
                "evaluation only, and the metrics of those before. history.save('run.json') keeps "
                "all of it"
            )
        return self.spectrum

    def metrics(self) -> dict[str, Any]:
        """Return all metrics but the spectrum, under their names: a row of a table."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["spectrum"], fields["largest"]
        return {**fields, "ceiling_share": self.ceiling_share, "max_share": self.max_share}

    def to_dict(self) -> dict[str, Any]:
        """Return every field as plain numbers, strings and lists; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.spectrum is not None:
            fields["spectrum"] = [column.tolist() for column in self.spectrum]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LayerReport":
        """Build the report that `to_dict` was called on."""
        spectrum = fields["spectrum"]
        if spectrum is not None:
            spectrum = Spectrum(*(np.array(column, dtype=np.uint64) for column in spectrum))
        return cls(**{**fields, "spectrum": spectrum})


def describe_limits(
    layers: Mapping[str, LayerReport], accuracy: float | None, alpha: float
) -> list[str]:
    """Return what a reader of the metrics must know to read them right.

    Args:
        layers: Layer name to report, in forward order.
        accuracy: Accuracy on the same data, share 0 to 1; None where there was none.
        alpha: Order of the Rényi entropy.

    Returns:
        One sentence or more per limit, naming the layers it holds for; empty where there is none.
    """
    found = [describe_low_coverage(layers, alpha), _one_state(layers), _constant(layers)]
    if accuracy is None:
        found.append("There is no accuracy, so there is no aIQ.")
    return [note for note in found if note is not None]


def describe_low_coverage(layers: Mapping[str, LayerReport], alpha: float) -> str | None:
    """Return what is to be said about layers of which too little was seen; None if there are none.

    Such a layer's Good-Turing coverage is below 0.5: had more samples been shown, more than half of
    their states would have been new ones.
    """
    low = layers_of_low_coverage(layers)
    if not low:
        return None
    seen = ", ".join(f"{name} ({coverage:.2f})" for name, coverage in low.items())
    order = "" if alpha == 1 else " by Shannon entropy"
    return (
        f"Coverage is below {LOW_COVERAGE} in {seen}: most states were seen only once there, so "
        "the efficiency tells how many were seen rather than what the layer does. More validation "
        f"data or fewer neurons would be needed. Until then read the efficiency{order} that "
        f"report.layers[{next(iter(low))!r}].interval() estimates, and its range: they allow for "
        "unseen states (Chao-Shen). Compare runs on the same number of samples only."
    )


def _one_state(layers: Mapping[str, LayerReport]) -> str | None:
    names = [name for name, layer in layers.items() if layer.n_distinct == 1]
    if not names:
        return None
    return (
        f"Only one state was seen in {', '.join(names)}: efficiency 0 there makes network "
        "efficiency and aIQ 0 too. Probe the input of such a layer, set another threshold, or "
        "exclude it."
    )


def _constant(layers: Mapping[str, LayerReport]) -> str | None:
    shares = ", ".join(
        f"{name} ({layer.n_never} never, {layer.n_always} always, of {layer.n_neurons})"
        for name, layer in layers.items()
        if layer.n_distinct > 1 and 2 * (layer.n_never + layer.n_always) > layer.n_neurons
    )
    if not shares:
        return None
    return (
        "More than half of the neurons never fired or always did, and carry no information, in "
        f"{shares}."
    )


def check_layer(layer: LayerReport) -> None:
    """Check what was read from a file, which may hold anything.

    Raises:
        TypeError: A field is of another kind.
        ValueError: A number is out of its range, or the spectrum is of other states.
    """
    if not isinstance(layer.name, str):
        raise TypeError(f"a layer's name must be a text; got {layer.name!r}")
    for name in ("n_neurons", "n_states", "n_distinct", "n_singletons", "n_never", "n_always"):
        check_count(f"{name} of {layer.name!r}", getattr(layer, name))
    for name in ("entropy", "efficiency", "ceiling", "coverage", "firing_rate"):
        value = check_number(f"{name} of {layer.name!r}", getattr(layer, name))
        most = layer.n_neurons if name == "entropy" else 1
        if not 0 <= value <= most * (1 + 1e-9):  # rounding
            raise ValueError(f"{name} of {layer.name!r} is out of its range: {value}")
    spectrum = layer.spectrum
    if spectrum is None:
        return
    if any(column.ndim != 1 for column in spectrum) or len({*map(len, spectrum)}) != 1:
        raise ValueError(f"the spectrum of {layer.name!r} must be two lists of the same length")
    found = (spectrum.n_states, spectrum.n_distinct, spectrum.n_singletons)
    if found != (layer.n_states, layer.n_distinct, layer.n_singletons):
        raise ValueError(f"the spectrum of {layer.name!r} is not that of its states")


def check_count(name: str, value: object) -> int:
    """Return `value`, or raise `ValueError` or `TypeError` if it is no whole number of 0 or more.

    Args:
        name: What it counts, for the message.
        value: What was given.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must not be negative; got {value}")
    return value


def check_number(name: str, value: object) -> float:
    """Return `value`, or raise `TypeError` if it is no number.

    Args:
        name: What it measures, for the message.
        value: What was given.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    return value

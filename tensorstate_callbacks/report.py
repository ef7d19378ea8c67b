"""What one evaluation pass said about the network: frozen figures, and the keys they log under."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks import metrics
from tensorstate_callbacks.entropy import Spectrum, spectrum_entropy
from tensorstate_callbacks.metric_keys import layer_keys, safe_key

_LAYER_METRICS: dict[str, Callable[["LayerReport"], float]] = {
    "efficiency": lambda layer: layer.efficiency,
    "entropy": lambda layer: layer.entropy,
    "coverage": lambda layer: layer.coverage,
    "dead": lambda layer: layer.n_never / layer.n_neurons,
    "distinct": lambda layer: float(layer.n_distinct),
}


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

    @classmethod
    def from_spectrum(
        cls, name: str, spectrum: Spectrum, fired: npt.NDArray[np.uint64], alpha: float = 1
    ) -> "LayerReport":
        """Work out the figures of one layer.

        Args:
            name: The layer's name.
            spectrum: Frequency spectrum of its states.
            fired: How often each neuron fired, shape `(n_neurons,)`, uint64.
            alpha: Order of the Rényi entropy.

        Raises:
            ValueError: No state was seen, or `alpha` is negative or NaN.
        """
        n_neurons, n_states = len(fired), spectrum.n_states
        bits = spectrum_entropy(spectrum, alpha)
        capacity = metrics.efficiency(min(n_neurons, math.log2(n_states)), n_neurons)
        return cls(
            name=name,
            n_neurons=n_neurons,
            n_states=n_states,
            n_distinct=spectrum.n_distinct,
            n_singletons=spectrum.n_singletons,
            entropy=bits,
            efficiency=metrics.efficiency(bits, n_neurons),
            ceiling=capacity,
            coverage=1 - spectrum.n_singletons / n_states,
            firing_rate=sum(fired.tolist()) / (n_neurons * n_states),
            n_never=int(np.count_nonzero(fired == 0)),
            n_always=int(np.count_nonzero(fired == n_states)),
        )


@dataclasses.dataclass(frozen=True)
class EfficiencyReport:
    """Efficiency of a network over one evaluation pass.

    Attributes:
        layers: Layer name to `LayerReport`, in forward order, read-only.
        beta: Weight of accuracy in aIQ.
        accuracy: Accuracy on the same data, share 0 to 1; None where there was none.
        epoch: Epoch the pass belongs to, counted from 0; None outside training.
        step: Training steps made before the pass; None where the framework counts none.
        stage: `"val"`, `"test"`..., the first part of the metric keys.

    Raises:
        ValueError: There is no layer, `beta` is not above 0, or the accuracy is not a share.
    """

    layers: Mapping[str, LayerReport]
    beta: float = 2
    accuracy: float | None = None
    epoch: int | None = None
    step: int | None = None
    stage: str = "val"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        if self.accuracy is not None:
            metrics.aIQ(self.efficiency, self.accuracy, self.beta)
        else:
            metrics.check_beta(self.beta)
        if not self.layers:
            raise ValueError("an EfficiencyReport needs at least one layer; got none")

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping can't be pickled.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _rebuild, ({**fields, "layers": dict(self.layers)},)

    @property
    def efficiency(self) -> float:
        """Network efficiency: the geometric mean of the layers' efficiencies, share 0 to 1."""
        return metrics.network_efficiency(layer.efficiency for layer in self.layers.values())

    @property
    def aiq(self) -> float | None:
        """Artificial intelligence quotient, share 0 to 1; None where there is no accuracy."""
        if self.accuracy is None:
            return None
        return metrics.aIQ(self.efficiency, self.accuracy, self.beta)

    def scalars(
        self,
        prefix: str = "",
        *,
        layer_metrics: bool | Sequence[str] = True,
        with_stage: bool = True,
    ) -> dict[str, float]:
        """Return what is logged: `val_aiq`, `val_efficiency`, `val_efficiency/<layer>`...

        Args:
            prefix: Put between stage and name, to tell several callbacks apart: `"x_"` gives
                `val_x_aiq`.
            layer_metrics: The figures logged for each layer; see `check_layer_metrics`.
            with_stage: Whether keys start with the stage; Keras puts it there by itself.

        Raises:
            ValueError: A layer metric has an unknown name.
        """
        values = {"efficiency": self.efficiency}
        if self.aiq is not None:
            values = {"aiq": self.aiq, **values}
        keys = layer_keys(self.layers)
        for figure in check_layer_metrics(layer_metrics):
            for key, layer in zip(keys, self.layers.values(), strict=True):
                values[f"{figure}/{key}"] = _LAYER_METRICS[figure](layer)
        lead = f"{self.stage}_{prefix}" if with_stage else prefix
        return {safe_key(lead + key): value for key, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain numbers, strings, dicts; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        layers = {name: dataclasses.asdict(layer) for name, layer in self.layers.items()}
        return {**fields, "layers": layers, "efficiency": self.efficiency, "aiq": self.aiq}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> "EfficiencyReport":
        """Build the report that `to_dict` was called on."""
        layers = {name: LayerReport(**layer) for name, layer in figures["layers"].items()}
        names = {field.name for field in dataclasses.fields(cls)} - {"layers"}
        return cls(layers=layers, **{name: figures[name] for name in names})

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row per layer, with the epoch, the network's figures and the layer's."""
        network = {
            "epoch": self.epoch,
            "step": self.step,
            "stage": self.stage,
            "accuracy": self.accuracy,
            "network_efficiency": self.efficiency,
            "aiq": self.aiq,
        }
        return [{**network, **dataclasses.asdict(layer)} for layer in self.layers.values()]

    def table(self) -> str:
        """Return the layers' figures as a text table, with a line for the network below."""
        rows: list[tuple[str, ...]] = [
            ("layer", "neurons", "states", "distinct", "efficiency", "ceiling", "coverage")
        ]
        for layer in self.layers.values():
            counts = (f"{n:,}" for n in (layer.n_neurons, layer.n_states, layer.n_distinct))
            shares = (f"{x:.4f}" for x in (layer.efficiency, layer.ceiling, layer.coverage))
            rows.append((layer.name, *counts, *shares))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
            for name, *cells in rows
        ]
        network = {"efficiency": self.efficiency, "accuracy": self.accuracy, "aIQ": self.aiq}
        lines.append(", ".join(f"{k} {v:.4f}" for k, v in network.items() if v is not None))
        return "\n".join(lines)

    def figure(self) -> Any:
        """Draw each layer's efficiency under its ceiling; see `plots.plot_layers`.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        from tensorstate_callbacks.plots import plot_layers

        return plot_layers(self)


def check_layer_metrics(layer_metrics: bool | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the figures to log for each layer.

    Args:
        layer_metrics: True for `"efficiency"`, False for none, or a sequence of names:
            `"efficiency"` (share), `"entropy"` (bits), `"coverage"` (share), `"dead"` (share of
            neurons that never fired), `"distinct"` (number of distinct states).

    Raises:
        ValueError: A name is none of these.
    """
    if isinstance(layer_metrics, bool):
        return ("efficiency",) if layer_metrics else ()
    names = (layer_metrics,) if isinstance(layer_metrics, str) else tuple(layer_metrics)
    for name in names:
        if name not in _LAYER_METRICS:
            raise ValueError(
                f"layer_metrics: {name!r} is not a figure of a layer; there are "
                f"{', '.join(_LAYER_METRICS)}"
            )
    return names


def _rebuild(fields: dict[str, Any]) -> EfficiencyReport:
    return EfficiencyReport(**fields)

"""What one evaluation pass said about the network: frozen figures, and the keys they log under."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from types import MappingProxyType
from typing import Any

from tensorstate_callbacks.display.html_table import report_fragment
from tensorstate_callbacks.display.text_table import layer_table, network_line
from tensorstate_callbacks.metrics.efficiency import aIQ, check_beta, network_efficiency
from tensorstate_callbacks.metrics.intervals import (
    Interval,
    accuracy_interval,
    aiq_interval,
    network_interval,
)
from tensorstate_callbacks.reports.layer_report import (
    LayerReport,
    check_layer_metrics,
    layer_metric,
)
from tensorstate_callbacks.reports.metric_keys import layer_keys, safe_key


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
        alpha: Order of the Rényi entropy that the efficiencies are made from; 1 is Shannon's.

    Raises:
        ValueError: There is no layer, `beta` is not above 0, or the accuracy is not a share.
    """

    layers: Mapping[str, LayerReport]
    beta: float = 2
    accuracy: float | None = None
    epoch: int | None = None
    step: int | None = None
    stage: str = "val"
    alpha: float = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", MappingProxyType(dict(self.layers)))
        if self.accuracy is not None:
            aIQ(self.efficiency, self.accuracy, self.beta)
        else:
            check_beta(self.beta)
        if not self.layers:
            raise ValueError("an EfficiencyReport needs at least one layer; got none")

    def __hash__(self) -> int:
        # Mappings are equal whatever their order.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return hash(frozenset({**fields, "layers": frozenset(self.layers.items())}.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        # A read-only mapping can't be pickled.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _rebuild, ({**fields, "layers": dict(self.layers)},)

    @property
    def efficiency(self) -> float:
        """Network efficiency: the geometric mean of the layers' efficiencies, share 0 to 1."""
        return network_efficiency(layer.efficiency for layer in self.layers.values())

    @property
    def aiq(self) -> float | None:
        """Artificial intelligence quotient, share 0 to 1; None where there is no accuracy."""
        if self.accuracy is None:
            return None
        return aIQ(self.efficiency, self.accuracy, self.beta)

    def interval(self, level: float = 0.95, *, n_samples: int | None = None) -> Interval:
        """Return an interval for the network efficiency; see `network_interval`.

        Args:
            level: How often intervals are meant to hold the true figure, above 0 and below 1.
            n_samples: Samples (images) in the pass; None counts all states of one sample as
                independent: see `entropy_interval`.

        Raises:
            ValueError: `alpha` is not 1, or `level` or `n_samples` is out of its range.
        """
        if self.alpha != 1:
            raise ValueError(
                "intervals are for the Shannon entropy, alpha=1; the figures of this report are "
                f"of order {self.alpha}"
            )
        return network_interval(
            layer.interval(level, n_samples=n_samples) for layer in self.layers.values()
        )

    def aiq_interval(self, level: float = 0.95, *, n_samples: int) -> Interval | None:
        """Return an interval for aIQ, or None where there is no accuracy; see `aiq_interval`.

        Args:
            level: How often intervals are meant to hold the true aIQ, above 0 and below 1.
            n_samples: Samples (images) in the pass, which the accuracy is a share of.

        Raises:
            ValueError: `alpha` is not 1, or `level` or `n_samples` is out of its range.
        """
        efficiency = self.interval(level, n_samples=n_samples)
        if self.accuracy is None:
            return None
        accuracy = accuracy_interval(self.accuracy, level, n_samples=n_samples)
        return aiq_interval(efficiency, accuracy, self.beta)

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
                values[f"{figure}/{key}"] = layer_metric(figure, layer)
        lead = f"{self.stage}_{prefix}" if with_stage else prefix
        return {safe_key(lead + key): value for key, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain numbers, strings, dicts; `from_dict` reads it back."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        layers = {name: layer.to_dict() for name, layer in self.layers.items()}
        return {**fields, "layers": layers, "efficiency": self.efficiency, "aiq": self.aiq}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> "EfficiencyReport":
        """Build the report that `to_dict` was called on."""
        layers = {name: LayerReport.from_dict(layer) for name, layer in figures["layers"].items()}
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
        return [{**network, **layer.figures()} for layer in self.layers.values()]

    def table(self, *, full: bool = False) -> str:
        """Return the layers' figures as a text table, with a line for the network below.

        Args:
            full: Whether to show all figures of each layer, in two tables.
        """
        return f"{layer_table(self.layers, full=full)}\n{network_line(self)}"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        # Only rich asks for it, so it is there.
        from tensorstate_callbacks.display.rich_table import rich_report

        yield rich_report(self, options.max_width)

    def _repr_html_(self) -> str:
        return report_fragment(self, self.notes())

    def save(self, path: str | PathLike[str]) -> None:
        """Write a page to read and to print, `run.html`, or a file to `load`, `run.json`.

        Args:
            path: Where to; a file that is there is replaced.

        Raises:
            ValueError: The name ends in something else.
            FileNotFoundError: There is no such folder.
            MissingExtraError: Matplotlib, which draws the page's figures, is not installed.
        """
        from tensorstate_callbacks.reports.saving import save

        save([self], self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "EfficiencyReport":
        """Read what `save` wrote to `run.json`.

        Raises:
            ValueError: The file holds something else, or not exactly one report.
        """
        from tensorstate_callbacks.reports.saving import load

        reports = load(path)
        if len(reports) != 1:
            raise ValueError(f"{str(path)!r} holds {len(reports)} reports: use History.load")
        return reports[0]

    def notes(self) -> list[str]:
        """Return what limits these figures, in sentences that name layers; see `notes.notes`."""
        from tensorstate_callbacks.reports.notes import notes

        return notes(self)

    def figure(self) -> Any:
        """Draw each layer's efficiency under its ceiling; see `plots.plot_layers`.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        from tensorstate_callbacks.display.plots import plot_layers

        return plot_layers(self)


def _rebuild(fields: dict[str, Any]) -> EfficiencyReport:
    return EfficiencyReport(**fields)

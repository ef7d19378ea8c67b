"""The metrics of a network in one evaluation, and those of a whole training."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsIndex, overload

from tensorstate_callbacks.display.class_tables import classes_html, classes_text
from tensorstate_callbacks.display.tables import (
    history_html,
    history_text,
    layers_text,
    network_line,
    report_html,
)
from tensorstate_callbacks.display.view import lifelines
from tensorstate_callbacks.errors import require
from tensorstate_callbacks.metrics.efficiency import aIQ, check_beta, network_efficiency
from tensorstate_callbacks.metrics.intervals import (
    Interval,
    accuracy_interval,
    aiq_interval,
    network_interval,
)
from tensorstate_callbacks.metrics.lifelines import Lifelines
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.reports.checks import check_count, check_layer, check_number
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.limits import describe_limits
from tensorstate_callbacks.reports.metric_keys import layer_scalars, safe_key
from tensorstate_callbacks.whole_file import whole_file

# What the rows of one evaluation have in common, in the order of their columns.
NETWORK_KEYS = ("epoch", "step", "stage", "accuracy", "network_efficiency", "aiq")


@dataclasses.dataclass(frozen=True)
class EfficiencyReport:
    """Efficiency of a network over one evaluation pass.

    Attributes:
        layers: The `LayerReport` of each layer under its name, in forward order, read-only.
        beta: Weight of accuracy in aIQ.
        accuracy: Accuracy on the same data, share 0 to 1; None where there was none.
        epoch: Epoch the pass belongs to, counted from 0; None outside training.
        step: Training steps made before the pass; None where the framework counts none.
        stage: First part of the metric keys: `"val"`, `"test"`...
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

    @cached_property
    def efficiency(self) -> float:
        """Network efficiency: the geometric mean of the layers' efficiencies, share 0 to 1."""
        return network_efficiency(layer.efficiency for layer in self.layers.values())

    @cached_property
    def aiq(self) -> float | None:
        """aIQ, the artificial intelligence quotient, share 0 to 1; None without an accuracy."""
        if self.accuracy is None:
            return None
        return aIQ(self.efficiency, self.accuracy, self.beta)

    def interval(self, level: float = 0.95, *, n_samples: int | None = None) -> Interval:
        """Return an interval for the network efficiency that more data would show.

        Its ends are those of all layers at their low and at their high ends at once: layers see the
        same samples, so their errors may well go together. See `LayerReport.interval`.

        Args:
            level: How often intervals are meant to hold the true value, above 0 and below 1.
            n_samples: Samples (images) in the pass. States of one sample resemble each other: with
                the number given, a sample counts as one observation, however many states it gave.
                None counts all states as independent, which is right only for layers with one state
                per sample.

        Raises:
            ValueError: `alpha` is not 1, or `level` or `n_samples` is out of its range.
        """
        if self.alpha != 1:
            raise ValueError(
                "intervals are for the Shannon entropy, alpha=1; the metrics of this report are "
                f"of order {self.alpha}"
            )
        return network_interval(
            layer.interval(level, n_samples=n_samples) for layer in self.layers.values()
        )

    def aiq_interval(self, level: float = 0.95, *, n_samples: int) -> Interval | None:
        """Return an interval for the aIQ that more data would show; None without an accuracy.

        Network efficiency and accuracy (Wilson's interval) are taken at their low and at their high
        ends at once.

        Args:
            level: How often intervals are meant to hold the true aIQ, above 0 and below 1.
            n_samples: Samples (images) in the pass, of which the accuracy is a share.

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
        """Return what is logged, under its keys: `val_aiq`, `val_efficiency/<layer>`...

        Args:
            prefix: Put between stage and name, to tell several callbacks apart: `"x_"` gives
                `val_x_aiq`.
            layer_metrics: True gives each layer's efficiency, False nothing of the layers; or the
                names of metrics, as the callbacks' argument of that name takes them.
            with_stage: Whether keys start with the stage; Keras puts it there by itself.

        Raises:
            ValueError: A layer metric has an unknown name.
        """
        values = {"efficiency": self.efficiency}
        if self.aiq is not None:
            values = {"aiq": self.aiq, **values}
        values |= layer_scalars(self.layers, layer_metrics)
        lead = f"{self.stage}_{prefix}" if with_stage else prefix
        return {safe_key(lead + key): value for key, value in values.items()}

    def without_states(self) -> "EfficiencyReport":
        """Return a report of the metrics alone, which takes little memory however much was seen."""
        layers = {name: layer.without_states() for name, layer in self.layers.items()}
        return dataclasses.replace(self, layers=layers)

    def without_pairs(self) -> "EfficiencyReport":
        """Return a report without the pairs of classes, where these take much memory."""
        layers = {name: layer.without_pairs() for name, layer in self.layers.items()}
        if all(layers[name] is layer for name, layer in self.layers.items()):
            return self
        return dataclasses.replace(self, layers=layers)

    def with_probe(self, changes: Mapping[str, ProbeChange]) -> "EfficiencyReport":
        """Return a report that says how the layers' states of `probe_data` have changed.

        Args:
            changes: Layer name to change; those of other layers are passed over.
        """
        layers = {
            name: dataclasses.replace(layer, probe=changes[name]) if name in changes else layer
            for name, layer in self.layers.items()
        }
        return dataclasses.replace(self, layers=layers)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers, strings, lists and dicts, for `from_dict`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        layers = {name: layer.to_dict() for name, layer in self.layers.items()}
        return {**fields, "layers": layers, "efficiency": self.efficiency, "aiq": self.aiq}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "EfficiencyReport":
        """Build the report again that `to_dict` was called on."""
        layers = {name: LayerReport.from_dict(layer) for name, layer in fields["layers"].items()}
        names = {field.name for field in dataclasses.fields(cls)} - {"layers"}
        return cls(layers=layers, **{name: fields[name] for name in names})

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row per layer: the epoch, the network's metrics and the layer's.

        Lone surrogates in a layer's name, which no file can hold, are written as Python's escapes.
        """
        values = (self.epoch, self.step, self.stage, self.accuracy, self.efficiency, self.aiq)
        network = dict(zip(NETWORK_KEYS, values, strict=True))
        return [
            {**network, **layer.metrics(), "name": _encodable(layer.name)}
            for layer in self.layers.values()
        ]

    def table(self, *, full: bool = False) -> str:
        """Return the layers' metrics as a text table, with a line for the network below.

        Args:
            full: Whether to show all metrics of each layer, in several tables, and, if states were
                counted by class, what they tell of the classes.
        """
        tables = layers_text(self.layers, full=full)
        tables += classes_text(self.layers) if full else ""
        return f"{tables}\n{network_line(self)}"

    def _repr_html_(self) -> str:
        return report_html(self) + classes_html(self.layers)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file that `load` reads. For a page to look at, see `write_page`.

        Args:
            path: Name of the file, ending in `.json`. An existing file is replaced once the new one
                is whole.

        Raises:
            ValueError: The name ends in something else.
            FileNotFoundError: There is no such folder.
        """
        _write_json(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "EfficiencyReport":
        """Read the file that `save` wrote.

        Raises:
            ValueError: The file holds something else, or not exactly one report.
        """
        reports = _read_reports(path)
        if len(reports) != 1:
            raise ValueError(f"{str(path)!r} holds {len(reports)} reports: use History.load")
        return reports[0]

    def notes(self) -> list[str]:
        """Return what to be careful about in these metrics, in sentences that name layers."""
        return describe_limits(self.layers, self.accuracy, self.alpha)

    def facts(self) -> list[str]:
        """Return in a few words each how these metrics were made: a heading of a page."""
        return [
            f"stage {self.stage}",
            *([f"step {self.step:,}"] if self.step is not None else []),
            f"β = {self.beta:g} (weight of accuracy in aIQ)",
            f"α = {self.alpha:g} (order of the entropy)",
            *([f"units of {self.group_size} neurons"] if self.group_size else []),
        ]

    @property
    def group_size(self) -> int | None:
        """Neurons of a unit; None where each layer is one unit, as in the paper."""
        sizes = {layer.group_size for layer in self.layers.values()}
        return sizes.pop() if len(sizes) == 1 else None


class History(list[EfficiencyReport]):
    """Reports in the order of their evaluations.

    It is a list, which shows itself as a table, and reads and writes files. Slices and sums of it
    are histories too.
    """

    @overload
    def __getitem__(self, index: SupportsIndex) -> EfficiencyReport: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "EfficiencyReport | History":
        if isinstance(index, slice):
            return History(super().__getitem__(index))
        return super().__getitem__(index)

    def __add__(self, other: Iterable[EfficiencyReport]) -> "History":  # type: ignore[override]
        return History([*self, *other])

    def copy(self) -> "History":
        """Return a history of the same reports."""
        return History(self)

    def lifelines(self, layer: str) -> Lifelines:
        """Return how often each neuron of a layer fired in each evaluation: which died, and when.

        Fresh reports know it, and with `neurons=True` all reports do. The evaluations should be of
        the same data: where a history has several stages or fits, take the reports of one.

        Args:
            layer: Name of the layer.

        Raises:
            StatesNotAvailableError: Some evaluations don't know it any more; names them.
            ValueError: No evaluation has such a layer, or its number of neurons changes.
        """
        return lifelines(self, layer)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row per evaluation and layer; see `EfficiencyReport.to_dicts`."""
        return [row for report in self for row in report.to_dicts()]

    def to_frame(self) -> Any:
        """Return the rows of `to_dicts` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="pandas", purpose="A data frame")
        return pandas.DataFrame(self.to_dicts())

    def table(self) -> str:
        """Return a line per evaluation: the network's metrics, and the layers' if they fit."""
        return history_text(self)

    def _repr_html_(self) -> str:
        return history_html(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write all reports into a JSON file that `load` reads; see `EfficiencyReport.save`."""
        _write_json([report.to_dict() for report in self], path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "History":
        """Read a file that `save` wrote, of a history or of one report.

        Raises:
            ValueError: The file holds something else.
        """
        return cls(_read_reports(path))


def _encodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _rebuild(fields: dict[str, Any]) -> EfficiencyReport:
    return EfficiencyReport(**fields)


def _write_json(content: Any, path: str | PathLike[str]) -> None:
    file = Path(path)
    if file.suffix.lower() != ".json":
        raise ValueError(
            f"{file.name!r}: reports are saved as .json; for a page to read use "
            "tensorstate_callbacks.write_page(reports, 'run.html'), for a picture "
            "tensorstate_callbacks.plot_history(history).savefig('run.png')"
        )
    text = json.dumps(content)
    with whole_file(file) as opened:
        opened.write(text.encode())


def _read_reports(path: str | PathLike[str]) -> list[EfficiencyReport]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = [content] if isinstance(content, Mapping) else content
        return [_read_report(fields) for fields in found]
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} does not hold reports that save('run.json') of this version wrote: "
            f"{type(error).__name__}: {error}"
        ) from error
    except RecursionError:
        raise ValueError(
            f"{str(path)!r} does not hold reports: its JSON is nested too deeply"
        ) from None


def _read_report(fields: Mapping[str, Any]) -> EfficiencyReport:
    report = EfficiencyReport.from_dict(fields)
    for name, layer in report.layers.items():
        if name != layer.name:
            raise ValueError(f"layer {name!r} has the name {layer.name!r}")
        check_layer(layer)
    check_number("beta", report.beta)
    check_number("alpha", report.alpha)
    for name, value in (("epoch", report.epoch), ("step", report.step)):
        if value is not None:
            check_count(name, value)
    if report.accuracy is not None:
        check_number("accuracy", report.accuracy)
    if not isinstance(report.stage, str):
        raise TypeError(f"stage must be a text; got {report.stage!r}")
    return report

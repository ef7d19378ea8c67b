"""Find the evaluations of a finished run among the scalars that it logged."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import RunError, list_some
from tensorstate_callbacks.recording.accuracy import ACCURACY_NAMES
from tensorstate_callbacks.reports.metric_keys import LAYER_METRICS

_NETWORK = ("aiq", "efficiency")
# Beyond them floats are no whole numbers.
_MOST_EPOCHS = 1 << 53
# Which evaluations are meant where a run has several: those of training, as loggers call them.
_LEADS = ("val_", "epoch_", "validation_")
_COUNTS = {"states": "n_states", "distinct": "n_distinct", "singletons": "n_singletons"}


@dataclasses.dataclass(frozen=True)
class RunLayer:
    """A layer in one evaluation of a finished run.

    Attributes:
        values: The metrics that were logged, under the names of `display.tables.COLUMNS`.
    """

    values: Mapping[str, float]

    @property
    def efficiency(self) -> float | None:
        """Bits per neuron, 0 to 1; None where it wasn't logged."""
        return self.values.get("efficiency")

    @property
    def ceiling(self) -> float | None:
        """The highest efficiency that so few states can show; None where it wasn't logged."""
        return self.values.get("ceiling")

    @property
    def rate_bound(self) -> float | None:
        """Efficiency if the neurons fired independently, share 0 to 1."""
        return self.values.get("rate_bound")

    @property
    def coverage(self) -> float | None:
        """Good-Turing coverage, share 0 to 1; None where it wasn't logged."""
        return self.values.get("coverage")

    @property
    def classes(self) -> None:
        """What the states tell of classes, which no logger keeps."""

    @property
    def spectrum(self) -> None:
        """Frequency spectrum of the states, which no logger keeps."""
        return None

    @property
    def neurons(self) -> None:
        """What is known of single neurons: nothing, as loggers keep metrics of layers."""
        return None

    def metrics(self) -> dict[str, Any]:
        """Return the metrics that were logged."""
        return dict(self.values)


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """One evaluation of a finished run; what wasn't logged is None.

    Attributes:
        epoch: Epoch, counted from 0.
        accuracy: Share, 0 to 1.
        efficiency: Network efficiency, share 0 to 1.
        aiq: Share, 0 to 1.
        layers: Layer name, or its key, to what was logged of it.
    """

    epoch: int | None
    accuracy: float | None
    efficiency: float | None
    aiq: float | None
    layers: Mapping[str, RunLayer]

    def facts(self) -> list[str]:
        """Return nothing: how the metrics were made isn't read back."""
        return []

    def notes(self) -> list[str]:
        """Return nothing: what limits the metrics was said as they were logged."""
        return []


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose training is over.

    Attributes:
        source: Where it was read from and under which keys, in words.
        evaluations: The oldest first.
        problems: What of it, or beside it, could not be read, and why.
    """

    source: str
    evaluations: Sequence[RunEvaluation]
    problems: Sequence[str] = ()


class Point(NamedTuple):
    """One value of a scalar.

    Attributes:
        step: The step that the logger counted.
        time: When it was logged, in any unit.
        value: The number.
    """

    step: int
    time: float
    value: float


Scalars = Mapping[str, Sequence[Point]]


def find_leads(keys: Iterable[str]) -> list[str]:
    """Return what stands before our names in the keys, the likeliest first.

    Examples:
        >>> find_leads(["val_efficiency", "val_aiq", "val_x_efficiency", "val_efficiency/a"])
        ['val_', 'val_x_']
    """
    found = {
        key.removesuffix(name)
        for key in keys
        for name in _NETWORK
        if "/" not in key and key.endswith(name)
    }
    found = {lead for lead in found if lead == "" or lead.endswith("_")}
    places = {lead: place for place, lead in enumerate(_LEADS)}
    return sorted(found, key=lambda lead: (places.get(lead, len(places)), len(lead), lead))


def choose_lead(keys: Iterable[str], asked: str | None, where: str) -> str:
    """Return what stands before our names in the keys of a run.

    Args:
        keys: All keys of the run.
        asked: What the user asked for; None for the likeliest.
        where: The run, in words.

    Raises:
        RunError: There is no such key, or none of ours.
    """
    there = list(keys)
    found = find_leads(there)
    if not found:
        raise RunError(
            f"{where} has no key of ours, such as val_efficiency or epoch_efficiency; it has "
            f"{list_some(sorted(there), 12) or 'none at all'}. Was an EfficiencyCallback among the "
            "callbacks of the fit?"
        )
    if asked is not None and asked not in found:
        raise RunError(
            f"{where} has no {asked}efficiency or {asked}aiq; what it has begins with "
            f"{', '.join(map(repr, found))}"
        )
    return found[0] if asked is None else asked


def find_evaluations(
    scalars: Scalars, lead: str, accuracy: str | None = None
) -> list[RunEvaluation]:
    """Return the evaluations of a run.

    Args:
        scalars: Key to what was logged under it.
        lead: What stands before our names; see `find_leads`.
        accuracy: Key of the accuracy; None for the usual names.

    Returns:
        The evaluations, the oldest first. Where the logger counts training steps, a scalar `epoch`
        tells the epoch; otherwise steps are epochs. If a run was begun again, what came after the
        place where it was begun is of the last time.

    Raises:
        RunError: There is no such accuracy.
    """
    by_step = {key: _keep_last_time(points) for key, points in scalars.items()}
    accuracies = by_step.get(_find_accuracy_key(scalars, lead, accuracy), {})
    epochs = by_step.get("epoch")
    layers = _find_layer_keys(scalars, lead)
    ours = [lead + name for name in _NETWORK] + [key for key, _, _ in layers]
    steps = sorted({step for key in ours for step in by_step.get(key, {})})
    found = []
    for step in steps:
        metrics: dict[str, dict[str, float]] = {}
        for key, metric, layer in layers:
            if step in by_step[key]:
                metrics.setdefault(layer, {})[metric] = by_step[key][step]
        found.append(
            RunEvaluation(
                epoch=_find_epoch(step, epochs),
                accuracy=accuracies.get(step),
                efficiency=by_step.get(f"{lead}efficiency", {}).get(step),
                aiq=by_step.get(f"{lead}aiq", {}).get(step),
                layers={layer: RunLayer(values) for layer, values in metrics.items()},
            )
        )
    return found


def _find_accuracy_key(keys: Iterable[str], lead: str, accuracy: str | None) -> str:
    there = list(keys)
    if accuracy is not None and accuracy not in there:
        raise RunError(
            f"the run has no accuracy {accuracy!r}; its keys are {', '.join(sorted(there))}"
        )
    # A prefix tells callbacks apart; the accuracy has the stage only.
    stage = lead[: lead.find("_") + 1]
    usual = [before + name for before in (lead, stage) for name in ACCURACY_NAMES]
    return accuracy or next((key for key in usual if key in there), "")


def _find_layer_keys(scalars: Scalars, lead: str) -> list[tuple[str, str, str]]:
    """Return key, metric and layer of all metrics of layers."""
    found = []
    for key in scalars:
        head, _, layer = key.partition("/")
        metric = head.removeprefix(lead)
        if layer and head.startswith(lead) and metric in LAYER_METRICS:
            found.append((key, _COUNTS.get(metric, metric), layer))
    return found


def _keep_last_time(points: Sequence[Point]) -> dict[int, float]:
    kept: dict[int, float] = {}
    for point in sorted(points, key=lambda point: (point.time, point.step)):
        if kept and point.step <= max(kept):
            kept = {step: value for step, value in kept.items() if step < point.step}
        kept[point.step] = point.value
    return kept


def _find_epoch(step: int, epochs: Mapping[int, float] | None) -> int | None:
    if epochs is None:
        return step
    epoch = epochs.get(step, math.nan)
    return int(epoch) if abs(epoch) < _MOST_EPOCHS else None

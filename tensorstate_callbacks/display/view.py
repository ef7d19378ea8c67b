"""What tables and figures show of evaluations: of fresh reports, and of runs that are finished."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class ShownLayer(Protocol):
    """What is shown of a layer: a `LayerReport` has it, and so has a layer of a finished run."""

    @property
    def efficiency(self) -> float | None:
        """Bits per neuron, 0 to 1; None where it wasn't logged."""

    @property
    def ceiling(self) -> float | None:
        """The highest efficiency that so few states can show; None where it isn't known."""

    def figures(self) -> dict[str, Any]:
        """Return its figures under the names of `layer_columns.COLUMNS`, as far as known."""


class ShownEvaluation(Protocol):
    """What is shown of an evaluation: an `EfficiencyReport` has it, and so has a finished run."""

    @property
    def epoch(self) -> int | None:
        """Epoch counted from 0; None outside training."""

    @property
    def accuracy(self) -> float | None:
        """Share, 0 to 1; None where there was none."""

    @property
    def efficiency(self) -> float | None:
        """Network efficiency, share 0 to 1; None where it wasn't logged."""

    @property
    def aiq(self) -> float | None:
        """Share, 0 to 1; None where there is no accuracy."""

    @property
    def layers(self) -> Mapping[str, ShownLayer]:
        """Layer name to figures, in forward order."""


def positions(history: Sequence[ShownEvaluation]) -> tuple[str, list[int]]:
    """Return the unit of a training's time axis, and the place of each evaluation on it.

    Epochs count from 1, as both frameworks print them. Over several fits, or without epochs, the
    evaluations are counted.
    """
    epochs = [report.epoch + 1 for report in history if report.epoch is not None]
    if len(epochs) == len(history) and epochs == sorted(set(epochs)):
        return "epoch", epochs
    return "evaluation", list(range(1, len(history) + 1))


def best_evaluation(history: Sequence[ShownEvaluation]) -> int | None:
    """Return the index of the highest aIQ, the first of equals; None where there is no aIQ."""
    known = [(report.aiq, -index) for index, report in enumerate(history) if report.aiq is not None]
    return -max(known)[1] if known else None


def best_and_last(history: Sequence[ShownEvaluation]) -> list[tuple[int, str]]:
    """Return the index of the evaluation with the best aIQ and of the last, and which they are.

    They may be one.
    """
    best, last = best_evaluation(history), len(history) - 1
    if best is None:
        return [(last, "last")]
    return [(last, "best aIQ and last")] if best == last else [(best, "best aIQ"), (last, "last")]


def layer_names(history: Sequence[ShownEvaluation]) -> list[str]:
    """Return the names of all layers, in forward order."""
    return list(dict.fromkeys(name for report in history for name in report.layers))


def efficiencies(history: Sequence[ShownEvaluation], layer: str) -> list[float | None]:
    """Return a layer's efficiency in each evaluation; None where it wasn't probed or logged."""
    return [
        report.layers[layer].efficiency if layer in report.layers else None for report in history
    ]


def ceilings(history: Sequence[ShownEvaluation], layer: str) -> list[float | None]:
    """Return a layer's ceiling in each evaluation; None where it isn't known."""
    return [report.layers[layer].ceiling if layer in report.layers else None for report in history]

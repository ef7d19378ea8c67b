"""What the logs of a finished run still say of its evaluations, frozen."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunLayer:
    """A layer in one evaluation of a finished run.

    Attributes:
        values: The figures that were logged, under the names of `layer_columns.COLUMNS`.
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

    def figures(self) -> dict[str, Any]:
        """Return the figures that were logged."""
        return dict(self.values)


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """One evaluation of a finished run; what wasn't logged is None.

    Attributes:
        epoch: Epoch, counted from 0.
        accuracy: Share, 0 to 1.
        efficiency: Network efficiency, share 0 to 1.
        aiq: Share, 0 to 1.
        layers: Layer name, or its key, to figures.
    """

    epoch: int | None
    accuracy: float | None
    efficiency: float | None
    aiq: float | None
    layers: Mapping[str, RunLayer]


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run whose training is over.

    Attributes:
        source: Where it was read from and under which keys, in words.
        evaluations: The oldest first.
    """

    source: str
    evaluations: Sequence[RunEvaluation]

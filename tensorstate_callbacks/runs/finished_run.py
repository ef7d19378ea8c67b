"""The evaluations of a finished run, as far as its logs tell them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


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
    def coverage(self) -> float | None:
        """Good-Turing coverage, share 0 to 1; None where it wasn't logged."""
        return self.values.get("coverage")

    @property
    def spectrum(self) -> None:
        """Frequency spectrum of the states, which no logger keeps."""
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
    """

    source: str
    evaluations: Sequence[RunEvaluation]

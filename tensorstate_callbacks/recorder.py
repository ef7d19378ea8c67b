"""One evaluation pass: activations of named probes in, one EfficiencyReport out."""

import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.counter import Memory, StateCounter
from tensorstate_callbacks.entropy import Spectrum
from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.layer_report import LayerReport
from tensorstate_callbacks.report import EfficiencyReport


class Recorder:
    """Counters of the probed layers over one evaluation pass.

    Nothing but counts is kept of the activations. Several threads may observe at once.

    Args:
        names: Names of the probes, in any order: reports list them in the order in which they
            first observed something, which is that of the forward pass.
        threshold: A neuron fires where its activation is above it; finite.

    Attributes:
        error: The first error that `observe_later` kept, or None.
    """

    def __init__(self, names: Iterable[str], *, threshold: float = 0.0) -> None:
        self.names = tuple(names)
        self._threshold = threshold
        self._counters: dict[str, StateCounter] = {}
        self._lock = threading.Lock()
        self.error: ProbeError | None = None

    @property
    def counters(self) -> Mapping[str, StateCounter]:
        """Counter of each probe, in the order in which they were first reached, read-only."""
        # A copy: another thread may be adding a probe's first batch.
        return MappingProxyType(dict(self._counters))

    def observe(
        self,
        name: str,
        activations: npt.ArrayLike | Memory,
        channel_axis: int,
        *,
        bfloat16: bool = False,
    ) -> None:
        """Count the states of one batch.

        Args:
            name: The probe.
            activations: Activations of any shape; see `StateCounter.update`.
            channel_axis: The axis of the neurons; may be negative.
            bfloat16: The activations are the bits of bfloat16 numbers as 16-bit integers.

        Raises:
            ProbeError: They can't be counted: a type that can't fire, a number of neurons other
                than before, no memory. The batch isn't counted, what was counted before stays.
        """
        counter = self._counters.get(name)
        if counter is None and name not in self.names:
            raise KeyError(f"no probe is named {name!r}; there are {', '.join(self.names)}")
        try:
            if counter is None:
                counter = self._counter(name, activations, channel_axis)
            counter.update(activations, channel_axis, self._threshold, bfloat16=bfloat16)
        except Exception as error:
            raise ProbeError(f"layer {name!r} could not be counted: {error}") from error

    def observe_later(self, name: str, activations: npt.ArrayLike, channel_axis: int) -> None:
        """Like `observe`, where an error raised at once would be lost: `report` raises it."""
        try:
            self.observe(name, activations, channel_axis)
        except ProbeError as error:
            self.error = self.error or error

    def seen(self) -> list[str]:
        """Return the probes that have seen a state, in forward order."""
        return [name for name, counter in self.counters.items() if counter.n_states]

    def unseen(self) -> list[str]:
        """Return the probes that have seen none."""
        seen = set(self.seen())
        return [name for name in self.names if name not in seen]

    def report(
        self,
        *,
        accuracy: float | None = None,
        alpha: float = 1,
        beta: float = 2,
        epoch: int | None = None,
        step: int | None = None,
        stage: str = "val",
    ) -> EfficiencyReport:
        """Return the figures of all probes that saw a state; see `EfficiencyReport`.

        Args:
            accuracy: Accuracy on the same data, share 0 to 1.
            alpha: Order of the Rényi entropy; 1 is Shannon's.
            beta: Weight of accuracy in aIQ, above 0.
            epoch: Epoch the pass belongs to.
            step: Training steps made before the pass.
            stage: First part of the metric keys.

        Raises:
            ProbeError: An observation failed, or no probe saw any state.
            ValueError: `accuracy`, `alpha` or `beta` is out of its range.
        """
        if self.error is not None:
            raise self.error
        return self.figures().report(
            accuracy=accuracy, alpha=alpha, beta=beta, epoch=epoch, step=step, stage=stage
        )

    def figures(self) -> "PassFigures":
        """Return what was counted so far, summed up: all that a report depends on."""
        seen = {name: counter for name, counter in self.counters.items() if counter.n_states}
        return PassFigures(
            self.names, {name: (c.spectrum(), c.fired()) for name, c in seen.items()}
        )

    def _counter(
        self, name: str, activations: npt.ArrayLike | Memory, channel_axis: int
    ) -> StateCounter:
        with self._lock:
            if name not in self._counters:
                shape = getattr(activations, "shape", None)
                if not shape:
                    raise ValueError(f"activations need an axis of neurons; got shape {shape}")
                self._counters[name] = StateCounter(int(shape[channel_axis]))
            return self._counters[name]


class PassFigures(NamedTuple):
    """One evaluation pass, summed up.

    Attributes:
        names: All probes.
        figures: Spectrum and firing counts of each probe that saw a state, in forward order.
    """

    names: tuple[str, ...]
    figures: Mapping[str, tuple[Spectrum, npt.NDArray[np.uint64]]]

    def seen(self) -> list[str]:
        """Return the probes that have seen a state, in forward order."""
        return list(self.figures)

    def unseen(self) -> list[str]:
        """Return the probes that have seen none."""
        return [name for name in self.names if name not in self.figures]

    def report(
        self,
        *,
        accuracy: float | None = None,
        alpha: float = 1,
        beta: float = 2,
        epoch: int | None = None,
        step: int | None = None,
        stage: str = "val",
    ) -> EfficiencyReport:
        """Return the figures of all probes that saw a state; see `Recorder.report`."""
        layers = {
            name: LayerReport.from_spectrum(name, spectrum, fired, alpha)
            for name, (spectrum, fired) in self.figures.items()
        }
        if not layers:
            raise ProbeError(
                f"no probe saw any activations: {', '.join(self.names)}. Run the model on "
                "some data while recording, and attach to layers that it calls."
            )
        return EfficiencyReport(
            layers=layers,
            beta=beta,
            accuracy=accuracy,
            epoch=epoch,
            step=step,
            stage=stage,
            alpha=alpha,
        )

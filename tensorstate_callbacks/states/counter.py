"""Count how often each distinct state of a layer was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks._native import (
    Engine,
    available_kernels,
    kernel_report,
    make_engine,
    merge_engines,
    use_kernel,
    use_openmp,
)
from tensorstate_callbacks._native.arguments import checked_threads
from tensorstate_callbacks._native.fallback import pack_states
from tensorstate_callbacks._native.layout import Memory, firing_range
from tensorstate_callbacks.states.row_counter import RowCounter
from tensorstate_callbacks.states.spectrum import Spectrum

__all__ = [
    "Memory",
    "StateCounter",
    "available_kernels",
    "firing_range",
    "kernel_report",
    "pack_states",
    "use_kernel",
    "use_openmp",
]


class StateCounter(RowCounter):
    """Counts the states of one layer, exactly.

    A state is the firing pattern of `n_neurons` neurons at one position: one bit per neuron, set
    where the activation is greater than a threshold. What a counter holds doesn't depend on how the
    data was cut: batch size, order, shards and threads give the same numbers, in the same order.
    Several threads may feed one counter. A call that raises an error leaves it as it was.

    Args:
        n_neurons: Bits per state, at least 1.
        keep_states: True promises that `states` has the states of more than 64 neurons too. Today
            all counters keep them.
        n_threads: At most so many threads work on a large batch, the caller's among them. What is
            counted doesn't depend on it.

    Raises:
        TypeError: `n_neurons` or `n_threads` is not an integer.
        ValueError: One of them is less than 1, or the environment variable `TENSORSTATE_KERNEL`
            names a kernel that this machine can't run.

    Examples:
        >>> import numpy as np
        >>> counter = StateCounter(3)
        >>> counter.update(np.array([[1.0, -1.0, 2.0], [0.5, 0.0, 9.0], [0.0, 1.0, 0.0]]), -1)
        >>> counter.n_states, counter.n_distinct
        (3, 2)
        >>> counter.counts(), counter.states()
        (array([1, 2], dtype=uint64), array([[2],
               [5]], dtype=uint8))
    """

    _engine: Engine

    def __init__(self, n_neurons: int, *, keep_states: bool = False, n_threads: int = 1) -> None:
        super().__init__(n_neurons)
        self._keep_states = bool(keep_states)
        self._kernel, self._engine = make_engine(self._n_neurons, checked_threads(n_threads))

    @property
    def n_distinct(self) -> int:
        """Number of distinct states seen so far."""
        return self._engine.n_distinct

    def merge(self, other: StateCounter) -> None:
        """Add all that `other` has counted; `other` stays as it is.

        Raises:
            TypeError: `other` is not a StateCounter.
            ValueError: It counts states of another number of neurons.
            OverflowError: The counter would hold more than 2**64 - 1 states.
        """
        if not isinstance(other, StateCounter):
            raise TypeError(f"only a StateCounter can be merged, not {type(other).__name__}")
        if other.n_neurons != self.n_neurons:
            raise ValueError(
                f"cannot merge states of {other.n_neurons} neurons into a counter of"
                f" {self.n_neurons} neurons"
            )
        merge_engines(self._engine, other._engine)

    def counts(self) -> NDArray[np.uint64]:
        """Return how often each distinct state was seen: `(n_distinct,)` uint64.

        The counts are in the order of `states`.
        """
        return self.snapshot()[1]

    def states(self) -> NDArray[np.uint8]:
        """Return the distinct states, sorted by their bytes.

        Their shape is `(n_distinct, ceil(n_neurons / 8))`, uint8; see `decompress_states`.
        """
        return self.snapshot()[0]

    def snapshot(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Return `states()` and `counts()` of one moment, for half the work of both."""
        return self._engine.snapshot()

    def spectrum(self) -> Spectrum:
        """Return how many distinct states were seen once, twice, ...: what an entropy depends on.

        Examples:
            >>> import numpy as np
            >>> counter = StateCounter(8)
            >>> counter.update_packed(np.array([[1], [2], [2], [3], [3]], np.uint8))
            >>> tuple(counter.spectrum())
            (array([1, 2], dtype=uint64), array([1, 2], dtype=uint64))
        """
        return Spectrum(*self._engine.spectrum())

    def moments(self, alphas: Sequence[float]) -> NDArray[np.float64]:
        """Return sums over the counts c of the distinct states, one for each order α.

        Args:
            alphas: Orders, each at least 0; infinity is allowed.

        Returns:
            Σ c log2 c for α = 1, max c for α = ∞, else Σ c^α, shape `(len(alphas),)`, float64.
            Zeros where nothing was counted. Sums are rounded once, so the order of the states
            doesn't matter.

        Raises:
            ValueError: An order is negative or NaN.

        Examples:
            >>> import numpy as np
            >>> counter = StateCounter(8)
            >>> counter.update_packed(np.array([[1], [2], [2]], np.uint8))
            >>> counter.moments([0, 1, 2, np.inf])
            array([2., 2., 5., 2.])
        """
        spectrum = self.spectrum()
        return np.array([spectrum.moment(float(alpha)) for alpha in alphas], np.float64)

    def fired(self) -> NDArray[np.uint64]:
        """Return in how many states each neuron fired: `(n_neurons,)` uint64."""
        return self._engine.fired()

    def __repr__(self) -> str:
        return (
            f"StateCounter(n_neurons={self.n_neurons}, n_states={self.n_states},"
            f" n_distinct={self.n_distinct}, kernel={self.kernel!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        states, counts = self.snapshot()
        return {
            "n_neurons": self.n_neurons,
            "keep_states": self._keep_states,
            "states": states,
            "counts": counts,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["n_neurons"], keep_states=state["keep_states"])  # type: ignore[misc]
        self.add_counts(state["states"], state["counts"])

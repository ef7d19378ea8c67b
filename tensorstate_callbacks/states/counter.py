"""Count how often each distinct state of a layer was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorstate_callbacks._native import (
    available_kernels,
    kernel_report,
    make_engine,
    merge_engines,
    use_kernel,
)
from tensorstate_callbacks._native.arguments import (
    checked_counts,
    checked_rows,
    checked_width,
    plain_array,
)
from tensorstate_callbacks._native.fallback import pack_states
from tensorstate_callbacks._native.layout import LastLayout, Memory
from tensorstate_callbacks.states.spectrum import Spectrum

__all__ = [
    "Memory",
    "StateCounter",
    "available_kernels",
    "kernel_report",
    "pack_states",
    "use_kernel",
]


class StateCounter:
    """Counts the states of one layer, exactly.

    A state is the firing pattern of `n_neurons` neurons at one position: one bit per neuron, set
    where the activation is greater than a threshold. What a counter holds does not depend on how
    the data was cut: batch size, order, shards and threads give the same numbers, in the same
    order. Several threads may feed one counter. A call that raises leaves the counter as it was.

    Args:
        n_neurons: bits per state, at least 1.
        keep_states: ask for it to be promised `states` above 64 neurons. Up to 64 neurons
            states are kept anyway. (Today all are.)

    Raises:
        TypeError: if `n_neurons` is not an integer.
        ValueError: if `n_neurons` is less than 1, or the environment variable
            `TENSORSTATE_KERNEL` names a kernel that this machine cannot run.

    Example:
        >>> import numpy as np
        >>> counter = StateCounter(3)
        >>> counter.update(np.array([[1.0, -1.0, 2.0], [0.5, 0.0, 9.0], [0.0, 1.0, 0.0]]), -1)
        >>> counter.n_states, counter.n_distinct
        (3, 2)
        >>> counter.counts(), counter.states()
        (array([1, 2], dtype=uint64), array([[2],
               [5]], dtype=uint8))
    """

    def __init__(self, n_neurons: int, *, keep_states: bool = False) -> None:
        self._n_neurons = checked_width(n_neurons)
        self._keep_states = bool(keep_states)
        self._kernel, self._engine = make_engine(self._n_neurons)
        self._last_layout = LastLayout(self._n_neurons)

    @property
    def n_neurons(self) -> int:
        """Bits per state."""
        return self._n_neurons

    @property
    def n_states(self) -> int:
        """States counted so far, repeats included."""
        return self._engine.n_states

    @property
    def n_distinct(self) -> int:
        """Different states seen so far."""
        return self._engine.n_distinct

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the counter's tables hold."""
        return self._engine.nbytes

    @property
    def kernel(self) -> str:
        """The kernel that counts: one of `available_kernels`."""
        return self._kernel

    def update(
        self,
        activations: ArrayLike | Memory,
        channel_axis: int,
        threshold: float = 0.0,
        *,
        bfloat16: bool = False,
    ) -> None:
        """Count one state per position of all axes but `channel_axis`.

        The memory is read where it lies, whatever its strides, and never written to. NaN, -0.0 at
        threshold 0 and values equal to the threshold do not fire, +inf does. The comparison is
        exact: a float32 0.1 is greater than the double 0.1, so it fires at that threshold.

        Args:
            activations: for example (N, C, H, W) or (N, H, W, C) float32; at least one axis;
                float16, float32, float64, bfloat16 (of ml_dtypes), integers or bool. A `Memory`
                says where they lie instead: whoever gives it keeps them there.
            channel_axis: the axis of the neurons; may be negative.
            threshold: a finite number; a neuron fires where its activation is greater.
            bfloat16: int16 or uint16 `activations` are the bits of bfloat16 numbers.

        Raises:
            TypeError: if the dtype is not supported, a mask is on, or an argument is no number.
            ValueError: if the channel axis is not there or does not have `n_neurons` entries,
                or the threshold is not finite.
        """
        given: NDArray[Any] | Memory = (
            activations
            if isinstance(activations, Memory)
            else plain_array(activations, "activations")
        )
        layout = self._last_layout.of(given, channel_axis, threshold, bfloat16)
        if layout.always_alike:
            alike = np.full((1, self._n_neurons), layout.span > 0)
            n_positions = math.prod(given.shape) // self._n_neurons
            self.add_counts(
                np.packbits(alike, axis=1, bitorder="little"), np.array([n_positions], np.uint64)
            )
        elif isinstance(given, Memory):
            self._engine.add_memory(given, layout)
        else:
            self._engine.add_firing(layout.firing(given))

    def update_packed(self, rows: NDArray[np.uint8]) -> None:
        """Count states that are packed already.

        Args:
            rows: (m, ceil(n_neurons / 8)) uint8; neuron 0 is bit 0 of byte 0, as
                `np.packbits(..., bitorder="little")` gives it.

        Raises:
            TypeError: if `rows` is not uint8.
            ValueError: if the shape is wrong or a bit beyond `n_neurons` is set.

        Example:
            >>> import numpy as np
            >>> counter = StateCounter(10)
            >>> counter.update_packed(np.array([[255, 3], [255, 3], [1, 0]], np.uint8))
            >>> counter.counts()
            array([1, 2], dtype=uint64)
        """
        self._engine.add_rows(checked_rows(rows, self._n_neurons), None)

    def add_counts(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64]) -> None:
        """Add states that were counted elsewhere: another process, device or file.

        Args:
            rows: (m, ceil(n_neurons / 8)) uint8, as in `update_packed`; a state may stand in
                several rows.
            counts: (m,) uint64, how often each row was seen.

        Raises:
            TypeError: if `rows` is not uint8 or `counts` is not uint64.
            ValueError: if a shape is wrong or a bit beyond `n_neurons` is set.
            OverflowError: if the counter would hold more than 2**64 - 1 states.

        Example:
            >>> import numpy as np
            >>> counter = StateCounter(3)
            >>> counter.add_counts(np.array([[5]], np.uint8), np.array([2**40], np.uint64))
            >>> counter.n_states, counter.fired()
            (1099511627776, array([1099511627776,             0, 1099511627776], dtype=uint64))
        """
        rows = checked_rows(rows, self._n_neurons)
        self._engine.add_rows(rows, checked_counts(counts, len(rows)))

    def merge(self, other: StateCounter) -> None:
        """Add all that `other` has counted; `other` stays as it is.

        Raises:
            TypeError: if `other` is not a StateCounter.
            ValueError: if it counts states of another number of neurons.
            OverflowError: if the counter would hold more than 2**64 - 1 states.
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
        """How often each distinct state was seen: (n_distinct,) uint64, in step with states()."""
        return self.snapshot()[1]

    def states(self) -> NDArray[np.uint8]:
        """The distinct states: (n_distinct, ceil(n_neurons / 8)) uint8, sorted by their bytes."""
        return self.snapshot()[0]

    def snapshot(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """states() and counts() of one moment, for half the work of both."""
        return self._engine.snapshot()

    def spectrum(self) -> Spectrum:
        """How many distinct states were seen once, twice, ...: all that an entropy depends on.

        Example:
            >>> import numpy as np
            >>> counter = StateCounter(8)
            >>> counter.update_packed(np.array([[1], [2], [2], [3], [3]], np.uint8))
            >>> tuple(counter.spectrum())
            (array([1, 2], dtype=uint64), array([1, 2], dtype=uint64))
        """
        return Spectrum(*self._engine.spectrum())

    def moments(self, alphas: Sequence[float]) -> NDArray[np.float64]:
        """Sums over the counts c of the distinct states, one for each order α.

        Args:
            alphas: orders, each at least 0; infinity is allowed.

        Returns:
            (len(alphas),) float64: Σ c log2 c for α = 1, max c for α = ∞, else Σ c**α. Zeros
            where nothing was counted. Sums are rounded once, so they do not depend on an order.

        Raises:
            ValueError: if an order is negative or NaN.

        Example:
            >>> import numpy as np
            >>> counter = StateCounter(8)
            >>> counter.update_packed(np.array([[1], [2], [2]], np.uint8))
            >>> counter.moments([0, 1, 2, np.inf])
            array([2., 2., 5., 2.])
        """
        spectrum = self.spectrum()
        return np.array([spectrum.moment(float(alpha)) for alpha in alphas], np.float64)

    def fired(self) -> NDArray[np.uint64]:
        """In how many states each neuron fired: (n_neurons,) uint64."""
        return self._engine.fired()

    def reset(self) -> None:
        """Forget everything counted, and give the tables' memory back.

        The next counter of the process finds up to 64 MiB of it ready; the rest goes back to the
        system.
        """
        self._engine.reset()

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

"""Feed a counter with activations or packed states."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorstate_callbacks._native import RowsEngine
from tensorstate_callbacks._native.arguments import (
    checked_counts,
    checked_rows,
    checked_width,
    plain_array,
)
from tensorstate_callbacks._native.layout import LastLayout, Memory


class RowCounter:
    """What the counters of states and of groups have in common: what they are fed with.

    Several threads may feed one counter. A call that raises leaves the counter as it was.
    """

    _engine: RowsEngine
    _kernel: str

    def __init__(self, n_neurons: int) -> None:
        self._n_neurons = checked_width(n_neurons)
        self._last_layout = LastLayout(self._n_neurons)

    @property
    def n_neurons(self) -> int:
        """Number of neurons, the bits per state."""
        return self._n_neurons

    @property
    def n_states(self) -> int:
        """Number of states counted so far, repeats included."""
        return self._engine.n_states

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the counter's tables take."""
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
        """Count the states of activations: one for each position of all axes but `channel_axis`.

        The array is read in place, whatever its strides, and never written to. NaN, values equal to
        the threshold, and -0.0 at threshold 0 don't fire; +inf does. The comparison is exact: a
        float32 0.1 is greater than the double 0.1, so it fires at that threshold.

        Args:
            activations: For example `(N, C, H, W)` or `(N, H, W, C)` float32. At least one axis, of
                float16, float32, float64, bfloat16 (of ml_dtypes), integers or bool. A `Memory`
                gives the address instead; the caller keeps the data there.
            channel_axis: The axis of the neurons; may be negative.
            threshold: A finite number; a neuron fires where its activation is greater.
            bfloat16: Whether int16 or uint16 `activations` are the bits of bfloat16 numbers.

        Raises:
            TypeError: The dtype is not supported, the array is a masked one, or an argument is not
                a number.
            ValueError: There is no such channel axis, it doesn't have `n_neurons` entries, or the
                threshold is not finite.
        """
        given = memory_or_array(activations)
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
            rows: Shape `(m, ceil(n_neurons / 8))`, uint8. Neuron 0 is bit 0 of byte 0, as
                `compress_states` and `np.packbits(..., bitorder="little")` give it.

        Raises:
            TypeError: `rows` is not uint8.
            ValueError: The shape is wrong, or a bit beyond `n_neurons` is set.

        Examples:
            >>> import numpy as np
            >>> from tensorstate_callbacks import StateCounter
            >>> counter = StateCounter(10)
            >>> counter.update_packed(np.array([[255, 3], [255, 3], [1, 0]], np.uint8))
            >>> counter.counts()
            array([1, 2], dtype=uint64)
        """
        self._engine.add_rows(checked_rows(rows, self._n_neurons), None)

    def add_counts(self, rows: NDArray[np.uint8], counts: NDArray[np.uint64]) -> None:
        """Add states that were counted elsewhere: another process, device or file.

        Args:
            rows: Shape `(m, ceil(n_neurons / 8))`, uint8, as in `update_packed`. Several rows may
                hold the same state.
            counts: How often each row was seen, shape `(m,)`, uint64.

        Raises:
            TypeError: `rows` is not uint8, or `counts` is not uint64.
            ValueError: A shape is wrong, or a bit beyond `n_neurons` is set.
            OverflowError: The counter would hold more than 2**64 - 1 states.

        Examples:
            >>> import numpy as np
            >>> from tensorstate_callbacks import StateCounter
            >>> counter = StateCounter(3)
            >>> counter.add_counts(np.array([[5]], np.uint8), np.array([2**40], np.uint64))
            >>> counter.n_states, counter.fired()
            (1099511627776, array([1099511627776,             0, 1099511627776], dtype=uint64))
        """
        rows = checked_rows(rows, self._n_neurons)
        self._engine.add_rows(rows, checked_counts(counts, len(rows)))

    def reset(self) -> None:
        """Forget everything counted, and give the memory back.

        Up to 64 MiB of it are kept for the next counter of the process.
        """
        self._engine.reset()


def memory_or_array(given: ArrayLike | Memory) -> NDArray[Any] | Memory:
    """Return activations as a plain array, unless they are a `Memory`."""
    return given if isinstance(given, Memory) else plain_array(given, "activations")

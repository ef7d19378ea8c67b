"""Find out how the memory of a layer's activations is to be read."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks._native.arguments import checked_axis, checked_threshold
from tensorstate_callbacks._native.firing import Firing, firing_range


class Memory(NamedTuple):
    """Activations of which no array is made: where they lie, as long as their owner is there.

    Attributes:
        address: of the first one.
        shape: one number for each axis.
        strides: from one entry of an axis to the next, in bytes; at least 0.
        dtype: a number type in the machine's byte order.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def array(self) -> NDArray[Any]:
        """An array over the same memory, which it doesn't own.

        Raises:
            ValueError: if there is no memory, of other than no activations.
        """
        ends = (stride * (size - 1) for stride, size in zip(self.strides, self.shape, strict=True))
        n_bytes = self.dtype.itemsize + sum(ends) if math.prod(self.shape) else 0
        if n_bytes and not self.address:
            raise ValueError("the activations have no memory: it was freed")
        memory = (ctypes.c_char * n_bytes).from_address(self.address)
        return np.ndarray(self.shape, self.dtype, memoryview(memory), strides=self.strides)


class Layout(NamedTuple):
    """How to read the activations of a layer, whose batches are all of one kind.

    Attributes:
        dtype: that they are turned into first, where they are not in the machine's byte order.
        unsigned: of the same width.
        order: their axes, the channel axis last.
        folded: see `Firing`.
        first: see `Firing`.
        span: see `Firing`.
    """

    dtype: np.dtype[Any] | None
    unsigned: np.dtype[Any]
    order: tuple[int, ...]
    folded: bool
    first: int
    span: int

    @property
    def always_alike(self) -> bool:
        """See `Firing`."""
        return self.span in (0, 1 << (8 * self.unsigned.itemsize))

    def firing(self, activations: NDArray[Any]) -> Firing:
        """Say which bits fire, of activations of the kind that `layout_of` was asked for."""
        if self.dtype is not None:
            activations = activations.astype(self.dtype)
        bits = activations.view(self.unsigned).transpose(self.order)
        return Firing(bits, self.folded, self.first, self.span)


def layout_of(
    dtype: np.dtype[Any], n_axes: int, channel_axis: int, threshold: float, bfloat16: bool
) -> Layout:
    """Say how to read activations.

    Args:
        dtype: of the activations, any supported one.
        n_axes: at least one.
        channel_axis: the axis of the neurons, 0 <= channel_axis < n_axes.
        threshold: finite; an element fires if it is greater, exactly.
        bfloat16: whether int16 or uint16 elements are the bits of bfloat16 numbers.

    Raises:
        TypeError: if the dtype is not supported.
    """
    native = None if dtype.isnative else dtype.newbyteorder("=")
    folded, first, span = firing_range(native or dtype, threshold, bfloat16)
    order = (*(axis for axis in range(n_axes) if axis != channel_axis), channel_axis)
    return Layout(native, np.dtype(f"u{dtype.itemsize}"), order, folded, first, span)


class LastLayout:
    """Finds out how to read a batch, and remembers it for the next one, which is of its kind.

    To find out anew would take longer than to count a small batch.

    Args:
        n_neurons: entries of the channel axis.
    """

    def __init__(self, n_neurons: int) -> None:
        self._n_neurons = n_neurons
        self._known: tuple[tuple[Any, ...], Layout] | None = None

    def of(
        self, given: NDArray[Any] | Memory, channel_axis: int, threshold: float, bfloat16: bool
    ) -> Layout:
        """Say how to read a batch.

        Raises:
            TypeError: if an argument is no number, or the dtype is not supported.
            ValueError: if the axis isn't there or has other than `n_neurons` entries, or the
                threshold isn't finite.
        """
        # Types come before their numbers, which may be of a kind that can't be compared.
        asked = (
            *(given.dtype, given.ndim, bfloat16, type(channel_axis), channel_axis),
            *(type(threshold), threshold),
        )
        known = self._known
        if known is not None and known[0] == asked:
            layout = known[1]
            if given.shape[layout.order[-1]] == self._n_neurons:
                return layout
        axis = checked_axis(given.shape, channel_axis, self._n_neurons)
        threshold = checked_threshold(threshold)
        layout = layout_of(given.dtype, given.ndim, axis, threshold, bfloat16)
        self._known = asked, layout
        return layout

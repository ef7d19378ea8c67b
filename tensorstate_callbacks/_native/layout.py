"""Find out how the memory of a layer's activations is to be read, and which bits of it fire.

Every supported number type turns into unsigned integers of its own width, so that `value >
threshold` becomes `(key - first) mod 2**bits < span`: exact, without a copy, and not moved by
a process that flushes denormals to zero. `key` is the bits themselves; where `folded` is set
(a float type and a threshold below zero), negative floats are first turned into the
two's complement of their magnitude, which puts all floats into their numeric order.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tensorstate_callbacks._native.arguments import checked_axis, checked_threshold

SUPPORTED = "float16, float32, float64, bfloat16, int8 to int64, uint8 to uint64 and bool"
_INFINITY = {2: 0x7C00, 4: 0x7F80_0000, 8: 0x7FF0_0000_0000_0000}
_BFLOAT16_INFINITY = 0x7F80


class Firing(NamedTuple):
    """Element `key` fires where `(key - first) mod 2**bits < span`.

    Attributes:
        bits: the activations' own memory as unsigned integers, channel axis last.
        folded: whether sign and magnitude are folded into one ordered key first.
        first: the smallest key that fires, modulo `2**bits`.
        span: how many keys fire; 0 is nothing, `2**bits` everything.
    """

    bits: NDArray[np.unsignedinteger[Any]]
    folded: bool
    first: int
    span: int

    @property
    def always_alike(self) -> bool:
        """Whether the threshold lies outside the type's range, so that all elements agree."""
        return self.span in (0, 1 << (8 * self.bits.itemsize))


# Batches of all layers ask the same; finding out costs more than counting a small one.
@lru_cache(maxsize=256)
def firing_range(dtype: np.dtype[Any], threshold: float, bfloat16: bool) -> tuple[bool, int, int]:
    """Whether keys are folded, the first that fires and how many do; see `Firing`.

    Args:
        dtype: of the activations, in the machine's byte order.
        threshold: finite; an element fires if it is greater, exactly.
        bfloat16: whether int16 or uint16 elements are the bits of bfloat16 numbers.

    Raises:
        TypeError: if the dtype is not supported.
    """
    size = dtype.itemsize
    if dtype.name == "bfloat16" or (bfloat16 and dtype.kind in "iu" and size == 2):
        folded, first, span = _bfloat16_range(threshold)
    elif bfloat16:
        raise TypeError(
            f"bfloat16=True takes int16 or uint16 elements, the bits of bfloat16 numbers,"
            f" not {dtype.name}"
        )
    elif dtype.kind == "f" and size in _INFINITY:
        folded, first, span = _float_range(_float_key(threshold, size), _INFINITY[size])
    elif dtype.kind in "iu":
        folded, first, span = _integer_range(np.iinfo(dtype), threshold)
    elif dtype.kind == "b":
        folded, first, span = _bool_range(threshold)
    else:
        raise TypeError(f"activations of dtype {dtype.name} cannot be counted; use {SUPPORTED}")
    return folded, first % (1 << 8 * size), span


def _float_key(threshold: float, size: int) -> int:
    """The ordered key of the largest float of `size` bytes that is <= threshold."""
    kind: type[np.floating[Any]] = np.dtype(f"f{size}").type
    with np.errstate(over="ignore", under="ignore"):
        try:
            value = kind(float(threshold))
        except OverflowError:  # an integer too large for any float
            value = kind(math.inf if threshold > 0 else -math.inf)
        if float(value) > threshold:
            value = np.nextafter(value, kind(-math.inf))
    magnitude = int(np.abs(value).view(f"u{size}"))
    return -magnitude if value < 0 else magnitude


def _float_range(threshold_key: int, infinity: int) -> tuple[bool, int, int]:
    return threshold_key < 0, threshold_key + 1, infinity - threshold_key


def _bfloat16_range(threshold: float) -> tuple[bool, int, int]:
    # bfloat16 is the upper half of float32: shifting the ordered key rounds toward -inf.
    return _float_range(_float_key(threshold, 4) >> 16, _BFLOAT16_INFINITY)


def _integer_range(limits: np.iinfo[Any], threshold: float) -> tuple[bool, int, int]:
    below = min(max(math.floor(threshold), int(limits.min) - 1), int(limits.max))
    return False, below + 1, int(limits.max) - below


def _bool_range(threshold: float) -> tuple[bool, int, int]:
    if 0 <= threshold < 1:
        return False, 1, 255  # every byte but 0 is true
    return False, 0, 0 if threshold >= 1 else 256


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
        bits = self.unsigned_array(activations).transpose(self.order)
        return Firing(bits, self.folded, self.first, self.span)

    def unsigned_array(self, activations: NDArray[Any]) -> NDArray[np.unsignedinteger[Any]]:
        """The activations as unsigned integers: their own memory, in the machine's byte order."""
        if self.dtype is not None:
            activations = activations.astype(self.dtype)
        return activations.view(self.unsigned)


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

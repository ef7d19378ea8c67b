"""A number type and a threshold in; out comes the range of bits that fires.

Every supported number type turns into unsigned integers of its own width, so that `value >
threshold` becomes `(key - first) mod 2**bits < span`: exact, without a copy, and not moved by
a process that flushes denormals to zero. `key` is the bits themselves; where `folded` is set
(a float type and a threshold below zero), negative floats are first turned into the
two's complement of their magnitude, which puts all floats into their numeric order.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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

"""Activations in, the packed state of each position out, in their order and uncounted."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorstate_callbacks._native.arguments import checked_axis, checked_threshold, plain_array
from tensorstate_callbacks._native.fallback import pack_firing
from tensorstate_callbacks._native.layout import layout_of


def pack_states(
    activations: ArrayLike, channel_axis: int, threshold: float = 0.0, *, bfloat16: bool = False
) -> NDArray[np.uint8]:
    """The states of all positions, packed: what `StateCounter.update` counts, as rows.

    Args:
        activations: see `StateCounter.update`.
        channel_axis: the axis of the neurons; may be negative.
        threshold: a finite number; a neuron fires where its activation is greater.
        bfloat16: int16 or uint16 `activations` are the bits of bfloat16 numbers.

    Returns:
        (m, ceil(n_neurons / 8)) uint8, one row per position in C order of the other axes; neuron
        0 is bit 0 of byte 0.

    Raises:
        TypeError: if the dtype is not supported or an argument is not a number.
        ValueError: if the channel axis is not there, or the threshold is not finite.

    Example:
        >>> import numpy as np
        >>> pack_states(np.array([[1.0, -1.0, 2.0], [0.0, 3.0, 0.0]]), channel_axis=1)
        array([[5],
               [2]], dtype=uint8)
    """
    array = plain_array(activations, "activations")
    axis = checked_axis(array.shape, channel_axis)
    layout = layout_of(array.dtype, array.ndim, axis, checked_threshold(threshold), bfloat16)
    return pack_firing(layout.firing(array))

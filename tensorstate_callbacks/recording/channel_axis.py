"""Check the argument `channel_axis`, look up a layer's axis in it, fold several axes into one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from tensorstate_callbacks.recording.selection import Pattern, inventory, matches

# One axis, or several that are one unit of neurons together; negative ones count from the end.
Axis: TypeAlias = int | tuple[int, ...]
ChannelAxis: TypeAlias = (
    Axis | Mapping[Pattern, Axis] | Callable[[str, Any, Any], Axis | None] | None
)


def is_axis(value: Any) -> bool:
    """Tell whether a value is an axis, or a sequence of different ones."""
    if isinstance(value, (tuple, list)):
        return bool(value) and all(map(_is_whole, value)) and len(set(value)) == len(value)
    return _is_whole(value)


def check_channel_axis(given: ChannelAxis) -> ChannelAxis:
    """Return the argument `channel_axis`, or say what is wrong with it.

    Raises:
        TypeError: It is no axis, no several, no mapping to axes and no callable.
    """
    if isinstance(given, Mapping):
        for key, axis in given.items():
            if not is_axis(axis):
                raise TypeError(f"channel_axis: {axis!r}, given for {key!r}, is no axis")
    elif not (given is None or callable(given) or is_axis(given)):
        raise TypeError(
            "channel_axis takes an axis, a tuple of axes that are one unit together, a mapping of "
            "layer names to these, a callable (name, layer, tensor) -> axis, or None; got "
            f"{given!r}"
        )
    return given


def check_keys(given: ChannelAxis, layers: Mapping[str, Any]) -> None:
    """Raise `ValueError` if a key of the mapping matches none of the probed layers."""
    for key in given if isinstance(given, Mapping) else ():
        if not any(matches(key, name, layer) for name, layer in layers.items()):
            raise ValueError(
                f"channel_axis: {key!r} matches no layer that is probed. {inventory(layers)}"
            )


def given_axis(given: ChannelAxis, name: str, layer: Any, tensor: Any) -> Axis | None:
    """Return the axis that the user gave for a layer's tensor; None leaves it to the rules.

    Raises:
        TypeError: The callable returned something else than an axis or None.
    """
    if isinstance(given, Mapping):
        axis = next((axis for key, axis in given.items() if matches(key, name, layer)), None)
    else:
        axis = given(name, layer, tensor) if callable(given) else given
    if not (axis is None or is_axis(axis)):
        raise TypeError(f"channel_axis gave {axis!r}, which is no axis")
    # A configuration file has lists.
    return tuple(axis) if isinstance(axis, list) else axis


def normal_axes(axis: Axis | Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes counted from the front.

    Raises:
        ValueError: The shape doesn't have them, or one is named twice.

    Examples:
        >>> normal_axes((-2, -1), (8, 5, 2, 4))
        (2, 3)
    """
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    for each in axes:
        if not -len(shape) <= each < len(shape):
            raise ValueError(f"shape {tuple(shape)} has no axis {each}")
    found = tuple(each % len(shape) for each in axes)
    if len(set(found)) < len(found):
        raise ValueError(f"channel_axis {axis} names an axis of shape {tuple(shape)} twice")
    return found


def n_neurons(axis: Axis, shape: Sequence[int]) -> int:
    """Return the number of neurons on one axis, or on several together."""
    return math.prod(shape[each] for each in normal_axes(axis, shape))


def folded(activations: Any, axis: Axis) -> tuple[Any, int]:
    """Return activations whose neurons lie on one axis, and that axis.

    Args:
        activations: A NumPy array or a tensor with `permute`; moved only if there are several axes.
        axis: One axis, which is returned as it is, or several, put last as one.

    Raises:
        ValueError: The shape doesn't have one of several axes.

    Examples:
        >>> import numpy as np
        >>> array, axis = folded(np.zeros((8, 5, 2, 4)), (-2, -1))
        >>> array.shape, axis
        ((8, 5, 8), -1)
    """
    if isinstance(axis, int):
        return activations, axis
    shape = tuple(activations.shape)
    axes = normal_axes(axis, shape)
    rest = [each for each in range(len(shape)) if each not in axes]
    move = getattr(activations, "permute", activations.transpose)
    moved = move(*rest, *axes)
    return moved.reshape(*(shape[each] for each in rest), n_neurons(axis, shape)), -1


def folded_sample_axis(sample_axis: int | None, axis: Axis, shape: Sequence[int]) -> int | None:
    """Return where `folded` puts the axis of the samples; None where there is none.

    Examples:
        >>> folded_sample_axis(1, (0, 3), (8, 5, 2, 4)), folded_sample_axis(0, 0, (8, 5))
        (0, None)
    """
    if sample_axis is None:
        return None
    axes, samples = normal_axes(axis, shape), sample_axis % len(shape)
    if samples in axes:
        return None
    return samples if isinstance(axis, int) else samples - sum(each < samples for each in axes)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

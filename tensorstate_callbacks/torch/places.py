"""Say where the neurons of tensors lie, and note it while a model runs."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tensorstate_callbacks.recording.channel_axis import Axis

# Shapes remembered for tensors of unknown origin; more are forgotten, oldest first.
_MOST_SHAPES = 4096


class Part(NamedTuple):
    """Neurons on one axis, or on a factor of it.

    Of an axis that was made by merging several, the neurons may be one factor: heads in an axis of
    samples times heads. The neuron is then `(index // inner) % extent`.

    Attributes:
        axis: Counted from the front.
        inner: Size of what varies faster than the neurons on this axis.
        extent: Number of neurons.
    """

    axis: int
    inner: int
    extent: int


# Several parts are the neurons together: heads and what each has. None at all: one neuron.
Parts: TypeAlias = tuple[Part, ...]

Shape: TypeAlias = tuple[int, ...]


class Place(NamedTuple):
    """Where the neurons of a tensor that stems from the data lie.

    Attributes:
        shape: Of the tensor.
        parts: Where; None: that isn't known.
    """

    shape: Shape
    parts: Parts | None


def whole(axis: int, shape: Sequence[int]) -> Part:
    """Return the part that is all of an axis."""
    return Part(axis, 1, shape[axis])


class Places:
    """Where the neurons lie in the tensors of a forward pass.

    A tensor that is not in it has nothing to do with the data: a weight, a mask, a constant. One
    that is there without a place stems from the data, but where its neurons lie isn't known.
    """

    def __init__(self) -> None:
        self._places: Any = WeakTensorKeyDictionary()
        self._by_shape: dict[tuple[int, ...], Parts] = {}

    def get(self, tensor: torch.Tensor) -> Place | None:
        """Return a tensor's place; None where it has nothing to do with the data."""
        found: Place | None = self._places.get(tensor)
        return found

    def set(self, tensor: torch.Tensor, parts: Parts | None) -> None:
        """Note where a tensor's neurons lie; None: that it stems from the data."""
        shape = shape_of(tensor)
        self._places[tensor] = Place(shape, parts)
        if parts is not None:
            self._by_shape.pop(shape, None)
            self._by_shape[shape] = parts
            if len(self._by_shape) > _MOST_SHAPES:
                del self._by_shape[next(iter(self._by_shape))]

    def set_axis(self, tensor: torch.Tensor, axis: Axis) -> None:
        """Note that a tensor's neurons lie on an axis, or on several."""
        shape = shape_of(tensor)
        axes = (axis,) if isinstance(axis, int) else axis
        if all(-len(shape) <= each < len(shape) for each in axes):
            self.set(tensor, tuple(whole(each % len(shape), shape) for each in axes))

    def begin(self, tensors: Iterator[torch.Tensor]) -> None:
        """Take tensors for the data that a model is given."""
        for tensor in tensors:
            if tensor not in self._places:
                self.set(tensor, self.of_shape(tensor))

    def of_shape(self, tensor: torch.Tensor) -> Parts | None:
        """Return the place of the latest tensor of that shape whose place was known."""
        return self._by_shape.get(shape_of(tensor))


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; of a nested one, which may have none, zeros."""
    return (0,) * tensor.ndim if tensor.is_nested else tuple(tensor.shape)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def resolve(parts: Sequence[Any], shape: tuple[int, ...]) -> Axis | None:
    """Return the axes that a place stands for, counted from the end.

    Args:
        parts: Of the place.
        shape: Of the tensor.

    Returns:
        One axis; several, that are the neurons together; () where a position has one neuron, which
        has no axis; None where the neurons' axis holds the samples too.
    """
    whole_axes = [p.axis for p in parts if p.inner == 1 and p.extent == shape[p.axis]]
    mixed = [p.axis for p in parts if p.axis not in whole_axes]
    if len(whole_axes) > 1:
        # Where samples passed for groups of channels, as in convolutions with weights of their own.
        whole_axes = [axis for axis in whole_axes if axis]
    # Features that were flattened together are neurons together, samples aren't.
    axes = whole_axes or list(dict.fromkeys(axis for axis in mixed if axis))
    if not axes and mixed:
        return None
    found = tuple(sorted(axis - len(shape) for axis in axes))
    return found[0] if len(found) == 1 else found

"""Take plain tensors out of `torch.func` transforms (vmap, grad, jvp)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tensorstate_callbacks.recording.channel_axis import Axis, normal_axes

_functorch = torch._C._functorch


def under_transform() -> bool:
    """Tell whether a transform is running."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def plain(tensor: torch.Tensor, channel_axis: Axis) -> Iterator[tuple[torch.Tensor, Axis]]:
    """Give the tensor that transforms wrap, and the axis in it, while the block is open.

    What vmap runs over at once becomes the first axis, so its samples are counted like any others.
    A tensor that isn't wrapped stays as it is, but what is done with it isn't transformed.

    Args:
        tensor: Any tensor.
        channel_axis: An axis of it, or several; may be negative.

    Raises:
        ValueError: It has no such axis.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    # Otherwise whatever is done with the tensor would be transformed too.
    with temporarily_clear_interpreter_stack():
        while _functorch.is_functorch_wrapped_tensor(tensor):
            axes = normal_axes(channel_axis, tensor.shape)
            from_end = tuple(axis - tensor.ndim for axis in axes)
            channel_axis = from_end[0] if isinstance(channel_axis, int) else from_end
            mapped = _functorch.maybe_get_bdim(tensor)
            tensor = _functorch.get_unwrapped(tensor)
            if mapped >= 0:
                tensor = tensor.movedim(mapped, 0)
        yield tensor, channel_axis

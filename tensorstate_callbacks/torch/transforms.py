"""A tensor inside `torch.func` transforms (vmap, grad, jvp) in; its numbers as plain memory out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_functorch = torch._C._functorch


def under_transform() -> bool:
    """Tell whether a transform is running."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def plain(tensor: torch.Tensor, channel_axis: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Give the tensor that transforms wrap, and the axis in it, while the block is open.

    What vmap runs over at once becomes the first axis, so its samples are counted like any others.
    A tensor that isn't wrapped stays as it is, but what is done with it isn't transformed.

    Args:
        tensor: Any tensor.
        channel_axis: An axis of it; may be negative.
    """
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    # Otherwise whatever is done with the tensor would be transformed too.
    with temporarily_clear_interpreter_stack():
        while _functorch.is_functorch_wrapped_tensor(tensor):
            if not -tensor.ndim <= channel_axis < tensor.ndim:
                raise RuntimeError(f"{tensor.ndim} axes have no axis {channel_axis}")
            channel_axis = channel_axis % tensor.ndim - tensor.ndim
            mapped = _functorch.maybe_get_bdim(tensor)
            tensor = _functorch.get_unwrapped(tensor)
            if mapped >= 0:
                tensor = tensor.movedim(mapped, 0)
        yield tensor, channel_axis

"""Find the activations in a module's call, and make plain memory of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.recording.channel_axis import Axis, folded, normal_axes
from tensorstate_callbacks.states.counter import Memory

# As NumPy names them; of bfloat16 the bits.
_FLOATS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.int16),
}

_functorch = torch._C._functorch

OutputFn: TypeAlias = Callable[[str, Any], torch.Tensor | None]


class HostArray(NamedTuple):
    """Activations as `StateCounter.update` takes them.

    Attributes:
        values: The activations, where possible the tensor's own memory.
        bfloat16: `values` are the bits of bfloat16 numbers, int16.
    """

    values: npt.NDArray[Any]
    bfloat16: bool = False


def find_tensor(value: Any) -> torch.Tensor | None:
    """Return the tensor that holds the activations, or None.

    That is the tensor itself, `last_hidden_state` of a dict or object that has one, else the first
    tensor of a tuple, list or dict; so `.data` of a PackedSequence, whose first part it is.
    """
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Mapping):
        if "last_hidden_state" in value:
            return find_tensor(value["last_hidden_state"])
        value = tuple(value.values())
    elif not isinstance(value, (tuple, list)):
        return find_tensor(getattr(value, "last_hidden_state", ()))
    return next((found for part in value if (found := find_tensor(part)) is not None), None)


def input_tensor(args: Any, kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the first tensor among a call's arguments, or None."""
    return find_tensor((args, dict(kwargs)))


def count_samples(args: Any, kwargs: Mapping[str, Any]) -> int | None:
    """Return how many samples a call is given: the length of its first tensor; None without one."""
    tensor = input_tensor(args, kwargs)
    return tensor.size(0) if tensor is not None and tensor.dim() else None


def output_tensor(name: str, output: Any, output_fn: OutputFn | None) -> torch.Tensor | None:
    """Return the tensor that holds the activations in what a module gave, or None.

    Args:
        name: The layer.
        output: What it gave.
        output_fn: `(name, output)` to the tensor, or None to leave it to `find_tensor`.
    """
    tensor = None if output_fn is None else output_fn(name, output)
    return find_tensor(output) if tensor is None else tensor


def no_tensor_error(name: str, output: Any) -> ProbeError:
    """Return the error that a layer gave nothing to count."""
    return ProbeError(
        f"layer {name!r} gave a {type(output).__name__} without a tensor in it: exclude it, or "
        "give output_fn=(name, output) -> tensor"
    )


def is_symbolic(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor has a shape but no numbers: on `meta`, or while a graph is exported."""
    # By its name: its module is no public one, and not always loaded.
    return tensor.is_meta or type(tensor).__name__ == "FakeTensor"


def is_ordinary(value: Any) -> bool:
    """Tell whether a value is a tensor of plain memory on the host, which no transform wraps."""
    return (
        type(value) is torch.Tensor
        and value.is_cpu
        and value.layout is torch.strided
        and not value.is_nested
        and _functorch.peek_interpreter_stack() is None
    )


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


def on_one_axis(tensor: torch.Tensor, axis: Axis) -> tuple[torch.Tensor, int]:
    """Return activations whose neurons lie on one axis, and that axis.

    Args:
        tensor: Of any shape. Of a nested tensor the positions of all components become one axis.
        axis: The axis of the neurons, or several that are one unit; may be negative.

    Raises:
        ValueError: There is no such axis, or it is the one of a nested tensor's components.
    """
    if not tensor.is_nested:
        return folded(tensor, axis)
    axes = normal_axes(axis, (0,) * tensor.ndim)
    if 0 in axes:
        raise ValueError("axis 0 of a nested tensor counts its components and can't hold neurons")
    parts = [folded(part, tuple(each - 1 for each in axes))[0] for part in tensor.unbind()]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]), -1


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """Return the activations as a tensor of plain memory, without gradient.

    Args:
        tensor: Real numbers of any shape, layout and device, but not nested: see `on_one_axis`.

    Raises:
        TypeError: They are complex, or the tensor is one process's part of a larger one.
    """
    if _is_plain(tensor):
        return tensor.detach() if tensor.requires_grad else tensor
    if tensor.is_complex():
        raise TypeError(
            f"its activations are complex ({tensor.dtype}), for which firing, being greater than "
            "the threshold, has no meaning; exclude it, or give an output_fn that takes the real "
            "part or the magnitude"
        )
    if hasattr(tensor, "full_tensor"):
        raise TypeError(
            "its activations are a DTensor, of which this process has a part of the neurons only; "
            "exclude layers that are split over processes"
        )
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def to_host(tensor: torch.Tensor) -> HostArray:
    """Return the activations as an array, in place where the tensor lies in host memory.

    Args:
        tensor: Any tensor that `strided` takes.

    Raises:
        TypeError: See `strided`.
    """
    return host_array(strided(tensor).cpu())


def host_array(tensor: torch.Tensor) -> HostArray:
    """Return a strided tensor in host memory as an array, in place."""
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    dtype = tensor.dtype
    if dtype is torch.bfloat16:
        return HostArray(tensor.view(torch.int16).numpy(), bfloat16=True)
    if dtype not in _FLOATS and dtype.is_floating_point and dtype.itemsize == 1:
        # NumPy has no 8-bit floats; every one of them is a float32.
        tensor = tensor.float()
    return HostArray(tensor.numpy())


def host_memory(tensor: torch.Tensor) -> tuple[npt.NDArray[Any] | Memory, bool]:
    """Return where a strided tensor in host memory lies, and whether it holds bits of bfloat16.

    An array is made only of what isn't plain: making one of every activation takes longer than
    counting a small layer's.
    """
    dtype = _FLOATS.get(tensor.dtype)
    if dtype is None or type(tensor) is not torch.Tensor or tensor.is_neg():
        array = host_array(tensor)
        return array.values, array.bfloat16
    item = dtype.itemsize
    strides = tuple([item * stride for stride in tensor.stride()])
    bfloat16 = tensor.dtype is torch.bfloat16
    return Memory(tensor.data_ptr(), tensor.shape, strides, dtype), bfloat16


def _is_plain(tensor: torch.Tensor) -> bool:
    # What nearly all layers give. To ask about the rest takes a share of a small network's pass.
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype in _FLOATS
        and tensor.layout == torch.strided
        and not tensor.is_nested
    )

"""PyTorch as Keras's backend: how activations leave the test step, which runs uncompiled."""

from collections.abc import Callable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.keras.backends import make_uncompiled
from tensorstate_callbacks.torch.activations import to_host
from tensorstate_callbacks.torch.helping_threads import helping_threads
from tensorstate_callbacks.torch.hooks import forced_eager
from tensorstate_callbacks.torch.module_axis import rule_axis

__all__ = ["build_test_function", "helping_threads", "module_axes", "tap", "tap_layer"]


class _OnHost:
    """A tensor as an array that is made when it is counted: where it fails, the layer is known."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if self._tensor.is_complex():
            # The counter refuses it, in words that hold for every backend.
            return np.asarray(self._tensor.numpy(force=True))
        values, bfloat16 = to_host(self._tensor)
        return values.view(ml_dtypes.bfloat16) if bfloat16 else values


def tap(tensor: torch.Tensor, observe: Callable[[npt.ArrayLike], None]) -> None:
    """Give a tensor's values to `observe` at once: what follows may overwrite them in place."""
    # Keras finds out shapes by calling layers with tensors that hold none.
    if not tensor.is_meta:
        observe(_OnHost(tensor))


def module_axes(module: torch.nn.Module, shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return the axis of the neurons in what a module of PyTorch's own takes or gives.

    Args:
        module: What a `TorchModuleWrapper` runs. Of several modules in it the last one speaks
            whose class tells.
        shape: Of the tensor; None where a size is not known.

    Returns:
        The axis, counted from the end; None where no class tells.
    """
    sizes = tuple(size or 0 for size in shape)
    axes = (rule_axis(part, sizes) for part in reversed(list(module.modules())))
    found = next((axis for axis in axes if axis is not None), None)
    return None if found is None else (found,)


def tap_layer(tensor: Any, observe: Callable[[npt.ArrayLike], None]) -> Any:
    """Return the tensor as it is, and have `observe` see its values, compiled or not."""
    tap(tensor, lambda values: observe(np.asarray(values)))
    return tensor


def build_test_function(model: keras.Model) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    It is built without `torch.compile`, and what the model itself compiled runs as plain Python
    in it: probes in compiled code would be skipped, or stay in it. Training isn't touched.
    """
    function = make_uncompiled(model)

    def run(*args: Any) -> Any:
        block = forced_eager()
        # Twice: an interrupt may arrive as the first ends.
        with block, block:
            return function(*args)

    return run

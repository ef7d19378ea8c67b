"""PyTorch as Keras's backend: how activations leave the test step, which runs uncompiled."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from tensorstate_callbacks.errors import ProbeError
from tensorstate_callbacks.keras.backends import make_uncompiled, wants_device
from tensorstate_callbacks.recording.budget import Sampling
from tensorstate_callbacks.recording.channel_axis import Axis
from tensorstate_callbacks.recording.class_counts import Samples
from tensorstate_callbacks.torch.activations import to_host
from tensorstate_callbacks.torch.hooks import forced_eager, is_first_run
from tensorstate_callbacks.torch.module_axis import rule_axis
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder
from tensorstate_callbacks.torch.untouched import Untouched

TAPS_END_XLA = False
RECOMPUTES_UNSEEN = False


def makes_states() -> bool:
    """Tell that states aren't made by the step: its recorder makes them, wherever tensors lie."""
    return False


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


class _StepRecorder(TensorRecorder):
    """A recorder that also takes the tensors of an accelerator."""

    def observe_later(
        self,
        name: str,
        activations: Any,
        channel_axis: Axis,
        sample_axis: int | None = 0,
        samples: Samples = None,
        labels: npt.NDArray[Any] | None = None,
    ) -> None:
        """Count the states of one batch; keep an error for the report."""
        if not isinstance(activations, torch.Tensor):
            super().observe_later(name, activations, channel_axis, sample_axis, samples, labels)
            return
        try:
            self.observe_tensor(name, activations, channel_axis, sample_axis, samples, labels)
        except ProbeError as error:
            self.error = self.error or error


def new_recorder(names: Iterable[str], threshold: float, sampling: Sampling) -> TensorRecorder:
    """Return what records the tensors that taps give, on as many threads as compute them."""
    return _StepRecorder(names, threshold=threshold, sampling=sampling)


def find_ranks() -> None:
    """Return the processes that share the model's evaluations: there are none."""


def tap(tensor: torch.Tensor, observe: Callable[..., None], *others: torch.Tensor) -> None:
    """Give a tensor to `observe` at once, and others: what follows may overwrite it in place."""
    # Keras finds out shapes by calling layers with tensors that hold none.
    if not tensor.is_meta:
        arrays = [other.numpy(force=True) for other in others]
        # A training step's tensors belong to what its gradients are made from.
        tensor = tensor.detach()
        observe(tensor if wants_device(not tensor.is_cpu) else _OnHost(tensor), *arrays)


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
    if not tensor.is_meta:
        observe(np.asarray(_OnHost(tensor)))
    return tensor


def build_test_function(model: keras.Model, *, has_taps: bool) -> Callable[..., Any]:
    """Build a test function of the model's own test step, leaving the model's as it was.

    It is built without `torch.compile`, and what the model itself compiled runs as plain Python
    in it: probes in compiled code would be skipped, or stay in it. Training isn't touched.
    """
    return _run_eagerly(make_uncompiled(model, "test"))


def build_train_function(model: keras.Model) -> Callable[..., Any]:
    """Build a train function of the model's own train step, leaving the model's as it was.

    It runs uncompiled, as the test function does, also where the model's own is compiled.
    """
    return _run_eagerly(make_uncompiled(model, "train"))


def is_recomputing() -> bool:
    """Tell whether a layer is called within a backward pass, by a checkpoint."""
    return not is_first_run()


def run_aside(model: keras.Model, function: Callable[[], object]) -> None:
    """Call a function that runs the model outside of its steps, and have its taps observed."""
    # Also what torch's own modules have, that layers may hold.
    untouched = Untouched(model)
    with untouched, untouched:
        untouched.begin()
        _run_eagerly(function)()


def keep_values(model: keras.Model, variables: list[Any]) -> Callable[[], None]:
    """Return what puts back the values of variables."""
    kept = [(variable, variable.value.detach().clone()) for variable in variables]

    def put_back() -> None:
        with torch.no_grad():
            for variable, value in kept:
                if not torch.equal(variable.value, value):
                    variable.assign(value)

    return put_back


def keep_state(model: keras.Model, outputs: Any) -> None:
    """Do nothing: a step changes the model's variables in place."""


def _run_eagerly(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        block = forced_eager()
        # Twice: an interrupt may arrive as the first ends.
        with block, block:
            return function(*args)

    return run

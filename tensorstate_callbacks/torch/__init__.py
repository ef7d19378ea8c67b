"""PyTorch: record the states of any `torch.nn.Module` while it runs in a loop of one's own."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.errors import require

require("torch", extra="lightning", purpose="tensorstate_callbacks.torch")

from tensorstate_callbacks.torch.distributed.own_samples import own_samples  # noqa: E402
from tensorstate_callbacks.torch.probe_set import ProbeSet  # noqa: E402
from tensorstate_callbacks.torch.record import Recording, record  # noqa: E402
from tensorstate_callbacks.torch.record_training import (  # noqa: E402
    TrainingRecording,
    record_training,
)

if TYPE_CHECKING:
    from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook

__all__ = [
    "ProbeSet",
    "Recording",
    "StateCaptureHook",
    "TrainingRecording",
    "own_samples",
    "record",
    "record_training",
]


def __getattr__(name: str) -> Any:
    # It stands above, in TensorState's own interface.
    if name == "StateCaptureHook":
        return import_module("tensorstate_callbacks.tensorstate.torch_hook").StateCaptureHook
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

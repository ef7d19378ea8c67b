"""TensorState's interface: what scripts for TensorState 0.1 to 0.4 import as `ts`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.metrics.efficiency import efficiency
from tensorstate_callbacks.metrics.entropy import entropy
from tensorstate_callbacks.states.packed_states import (
    compress_states,
    decompress_states,
    sort_states,
)
from tensorstate_callbacks.tensorstate.interface import (
    aIQ,
    build_efficiency_model,
    efficiency_layers,
    network_efficiency,
    remove_state_layers,
    reset_efficiency_model,
)

if TYPE_CHECKING:
    from tensorstate_callbacks.tensorstate.keras_layer import StateCapture as StateCapture
    from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook as StateCaptureHook

# What needs a framework: reached as an attribute, and not bound by `import *`.
_LAZY_NAMES = {"StateCapture": "keras_layer", "StateCaptureHook": "torch_hook"}

__all__ = [
    "aIQ",
    "build_efficiency_model",
    "compress_states",
    "decompress_states",
    "efficiency",
    "efficiency_layers",
    "entropy",
    "network_efficiency",
    "remove_state_layers",
    "reset_efficiency_model",
    "sort_states",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        return getattr(import_module(f"{__name__}.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Follow a network's efficiency and aIQ over training, with Keras, Lightning or PyTorch.

Importing this package loads no framework: `keras`, `lightning`, `torch` and `plots` are loaded when
they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.counter import StateCounter
from tensorstate_callbacks.efficiency_model import (
    build_efficiency_model,
    remove_state_layers,
    reset_efficiency_model,
)
from tensorstate_callbacks.entropy import entropy
from tensorstate_callbacks.errors import (
    MissingExtraError,
    NoLayerMatchedError,
    ProbeError,
    RankError,
    StatesNotAvailableError,
    TensorStateError,
    TensorStateWarning,
)
from tensorstate_callbacks.history import History
from tensorstate_callbacks.layer_report import LayerReport
from tensorstate_callbacks.metrics import aIQ, efficiency, network_efficiency
from tensorstate_callbacks.packed_states import compress_states, decompress_states, sort_states
from tensorstate_callbacks.report import EfficiencyReport

if TYPE_CHECKING:
    from tensorstate_callbacks import keras, lightning, plots, torch
    from tensorstate_callbacks.keras import StateCapture
    from tensorstate_callbacks.torch import StateCaptureHook

__version__ = "0.1.0"

_LAZY_MODULES = ("keras", "lightning", "plots", "torch")
_LAZY_NAMES = {"StateCapture": "keras", "StateCaptureHook": "torch"}

__all__ = [
    "EfficiencyReport",
    "History",
    "LayerReport",
    "MissingExtraError",
    "NoLayerMatchedError",
    "ProbeError",
    "RankError",
    "StateCapture",
    "StateCaptureHook",
    "StateCounter",
    "StatesNotAvailableError",
    "TensorStateError",
    "TensorStateWarning",
    "aIQ",
    "build_efficiency_model",
    "compress_states",
    "decompress_states",
    "efficiency",
    "entropy",
    "keras",
    "lightning",
    "network_efficiency",
    "plots",
    "remove_state_layers",
    "reset_efficiency_model",
    "sort_states",
    "torch",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _LAZY_NAMES:
        return getattr(import_module(f"{__name__}.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

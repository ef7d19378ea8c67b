"""Follow a network's efficiency and aIQ over training, with Keras, Lightning or PyTorch.

Importing this package loads no framework: `keras`, `lightning`, `torch` and `plots` are loaded when
they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks._version import __version__ as __version__
from tensorstate_callbacks.display.page import write_page
from tensorstate_callbacks.display.plots import (
    plot_heat_map,
    plot_history,
    plot_layers,
    plot_states,
)
from tensorstate_callbacks.errors import (
    MissingExtraError,
    NoLayerMatchedError,
    ProbeError,
    RankError,
    StatesNotAvailableError,
    TensorStateError,
    TensorStateWarning,
)
from tensorstate_callbacks.metrics.efficiency import aIQ, efficiency, network_efficiency
from tensorstate_callbacks.metrics.entropy import entropy
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.packed_states import (
    compress_states,
    decompress_states,
    sort_states,
)
from tensorstate_callbacks.tensorstate import (
    build_efficiency_model,
    remove_state_layers,
    reset_efficiency_model,
)

if TYPE_CHECKING:
    from tensorstate_callbacks import keras, lightning, torch
    from tensorstate_callbacks.display import plots
    from tensorstate_callbacks.tensorstate.keras_layer import StateCapture
    from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook


_LAZY_MODULES = {
    "keras": "keras",
    "lightning": "lightning",
    "plots": "display.plots",
    "torch": "torch",
}
_LAZY_NAMES = {
    "StateCapture": "tensorstate.keras_layer",
    "StateCaptureHook": "tensorstate.torch_hook",
}

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
    "plot_heat_map",
    "plot_history",
    "plot_layers",
    "plot_states",
    "plots",
    "remove_state_layers",
    "reset_efficiency_model",
    "sort_states",
    "torch",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"{__name__}.{_LAZY_MODULES[name]}")
    if name in _LAZY_NAMES:
        return getattr(import_module(f"{__name__}.{_LAZY_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

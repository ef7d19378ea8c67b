"""Follow a network's efficiency and aIQ over training, with Keras, Lightning or PyTorch.

Importing this package loads no framework: `keras`, `lightning` and `torch` are loaded when they are
first used. `from tensorstate_callbacks import *` binds none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks._version import __version__ as __version__
from tensorstate_callbacks.display.page import write_page
from tensorstate_callbacks.display.plots import (
    plot_classes,
    plot_heat_map,
    plot_history,
    plot_layers,
    plot_neurons,
    plot_states,
)
from tensorstate_callbacks.errors import (
    MissingExtraError,
    NoLayerMatchedError,
    ProbeError,
    RankError,
    RunError,
    StatesNotAvailableError,
    TensorStateError,
    TensorStateWarning,
)
from tensorstate_callbacks.metrics.efficiency import aIQ, efficiency, network_efficiency
from tensorstate_callbacks.metrics.entropy import entropy, estimate_entropy
from tensorstate_callbacks.metrics.intervals import Interval
from tensorstate_callbacks.metrics.lifelines import Lifelines
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport, History
from tensorstate_callbacks.states.counter import StateCounter, available_kernels, use_kernel
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.packed_states import (
    compress_states,
    decompress_states,
    sort_states,
)
from tensorstate_callbacks.states.spectrum import Spectrum
from tensorstate_callbacks.tensorstate.interface import (
    build_efficiency_model,
    remove_state_layers,
    reset_efficiency_model,
)

if TYPE_CHECKING:
    from tensorstate_callbacks import huggingface as huggingface
    from tensorstate_callbacks import keras as keras
    from tensorstate_callbacks import lightning as lightning
    from tensorstate_callbacks import torch as torch
    from tensorstate_callbacks.tensorstate.keras_layer import StateCapture as StateCapture
    from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook as StateCaptureHook

# Reached as attributes, and not bound by `import *`: modules, and what needs a framework.
_LAZY_MODULES = {
    "huggingface": "huggingface",
    "keras": "keras",
    "lightning": "lightning",
    "plots": "display.plots",
    "torch": "torch",
}
_LAZY_NAMES = ("StateCapture", "StateCaptureHook")

__all__ = [
    "EfficiencyReport",
    "GroupCounter",
    "History",
    "Interval",
    "LayerReport",
    "Lifelines",
    "MissingExtraError",
    "NoLayerMatchedError",
    "ProbeChange",
    "ProbeError",
    "RankError",
    "RunError",
    "Spectrum",
    "StateCounter",
    "StatesNotAvailableError",
    "TensorStateError",
    "TensorStateWarning",
    "aIQ",
    "available_kernels",
    "build_efficiency_model",
    "compress_states",
    "decompress_states",
    "efficiency",
    "entropy",
    "estimate_entropy",
    "network_efficiency",
    "plot_classes",
    "plot_heat_map",
    "plot_history",
    "plot_layers",
    "plot_neurons",
    "plot_states",
    "remove_state_layers",
    "reset_efficiency_model",
    "sort_states",
    "use_kernel",
    "write_page",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY_MODULES:
        return import_module(f"{__name__}.{_LAZY_MODULES[name]}")
    if name in _LAZY_NAMES:
        return getattr(import_module(f"{__name__}.tensorstate"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY_MODULES, *_LAZY_NAMES})

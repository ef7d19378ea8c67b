"""Follow a network's efficiency and aIQ over training, with Keras, Lightning or PyTorch.

Importing this package loads no framework: `keras`, `lightning`, `torch` and `plots` are loaded when
they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.counter import StateCounter
from tensorstate_callbacks.entropy import entropy
from tensorstate_callbacks.errors import (
    MissingExtraError,
    NoLayerMatchedError,
    ProbeError,
    TensorStateError,
    TensorStateWarning,
)
from tensorstate_callbacks.metrics import aIQ, efficiency, network_efficiency
from tensorstate_callbacks.report import EfficiencyReport, LayerReport

if TYPE_CHECKING:
    from tensorstate_callbacks import keras, lightning, plots, torch

__version__ = "0.1.0"

_LAZY = ("keras", "lightning", "plots", "torch")

__all__ = [
    "EfficiencyReport",
    "LayerReport",
    "MissingExtraError",
    "NoLayerMatchedError",
    "ProbeError",
    "StateCounter",
    "TensorStateError",
    "TensorStateWarning",
    "aIQ",
    "efficiency",
    "entropy",
    "keras",
    "lightning",
    "network_efficiency",
    "plots",
    "torch",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

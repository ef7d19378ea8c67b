"""Keras: a callback that follows efficiency and aIQ over training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.errors import require

_keras = require("keras", extra="keras", purpose="tensorstate_callbacks.keras")
if tuple(int(part) for part in _keras.__version__.split(".")[:2]) < (3, 3):
    raise ImportError(
        f"tensorstate_callbacks.keras needs Keras 3.3 or later; Keras {_keras.__version__} is "
        "installed. Upgrade it with: pip install --upgrade keras"
    )

from tensorstate_callbacks.keras.callback import EfficiencyCallback  # noqa: E402

if TYPE_CHECKING:
    from tensorstate_callbacks.tensorstate.keras_layer import StateCapture

__all__ = ["EfficiencyCallback", "StateCapture"]


def __getattr__(name: str) -> Any:
    # It stands above, in TensorState's own interface.
    if name == "StateCapture":
        return import_module("tensorstate_callbacks.tensorstate.keras_layer").StateCapture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

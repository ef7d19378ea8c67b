"""Keras: a callback that follows efficiency and aIQ over training."""

from tensorstate_callbacks._optional import require

_keras = require("keras", extra="keras", purpose="tensorstate_callbacks.keras")
if tuple(int(part) for part in _keras.__version__.split(".")[:2]) < (3, 3):
    raise ImportError(
        f"tensorstate_callbacks.keras needs Keras 3.3 or later; Keras {_keras.__version__} is "
        "installed. Upgrade it with: pip install --upgrade keras"
    )

from tensorstate_callbacks.keras.callback import EfficiencyCallback  # noqa: E402
from tensorstate_callbacks.keras.state_capture import StateCapture  # noqa: E402

__all__ = ["EfficiencyCallback", "StateCapture"]

"""Lightning: a callback that follows efficiency and aIQ over training.

`EfficiencyCallback` is the one for the namespace in use: `pytorch_lightning` or `lightning`, which
are the same library under two names whose classes don't mix. Neither is imported here to find out.
Where both are loaded, import it from `tensorstate_callbacks.lightning.pytorch_lightning_callback`
or `tensorstate_callbacks.lightning.lightning_callback`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.lightning.namespace import find_namespace

if TYPE_CHECKING:
    from tensorstate_callbacks.lightning.pytorch_lightning_callback import EfficiencyCallback

__all__ = ["EfficiencyCallback"]


def __getattr__(name: str) -> Any:
    # Resolved anew each time: the user may import Lightning after this package.
    if name == "EfficiencyCallback":
        return getattr(import_module(find_namespace().callback_module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Lightning: a callback that follows efficiency and aIQ over training.

`EfficiencyCallback` is the one for the namespace in use: `pytorch_lightning` or `lightning`, which
are the same library under two names whose classes don't mix. Neither is imported here to find out.
Where both are loaded, import it from `tensorstate_callbacks.lightning.pytorch_lightning_callback`
or `tensorstate_callbacks.lightning.lightning_callback`.
"""

import importlib.util
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from tensorstate_callbacks.lightning.pytorch_lightning_callback import EfficiencyCallback

__all__ = ["EfficiencyCallback"]


class Namespace(NamedTuple):
    """One of the names under which Lightning is imported.

    Attributes:
        module: The module that has `Trainer` and `Callback`.
        distribution: The package that brings it.
        callback_module: Our module with the callback for it.
    """

    module: str
    distribution: str
    callback_module: str


PYTORCH_LIGHTNING = Namespace(
    "pytorch_lightning",
    "pytorch_lightning",
    "tensorstate_callbacks.lightning.pytorch_lightning_callback",
)
LIGHTNING = Namespace(
    "lightning.pytorch", "lightning", "tensorstate_callbacks.lightning.lightning_callback"
)
_NAMESPACES = (PYTORCH_LIGHTNING, LIGHTNING)


def find_namespace() -> Namespace:
    """Return the namespace that is loaded, else the one that is installed.

    Where that doesn't decide, it is `pytorch_lightning`, the one that the extra installs.
    """
    loaded = [namespace for namespace in _NAMESPACES if namespace.module in sys.modules]
    if loaded:
        return loaded[0]
    installed = [n for n in _NAMESPACES if importlib.util.find_spec(n.distribution) is not None]
    return installed[0] if installed else PYTORCH_LIGHTNING


def check_trainer(trainer: "pl.Trainer", namespace: Namespace) -> None:
    """Raise an error if the trainer is of the other namespace.

    Raises:
        TypeError: It is; the message says how to import the right callback.
    """
    modules = [base.__module__ for base in type(trainer).__mro__]
    for other in _NAMESPACES:
        if other != namespace and any(f"{m}.".startswith(f"{other.module}.") for m in modules):
            raise TypeError(
                f"this EfficiencyCallback is made for {namespace.module}, but the Trainer is of "
                f"{other.module}. Import the one for it: "
                f"from {other.callback_module} import EfficiencyCallback"
            )


def __getattr__(name: str) -> Any:
    # Resolved anew each time: the user may import Lightning after this package.
    if name == "EfficiencyCallback":
        return getattr(import_module(find_namespace().callback_module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

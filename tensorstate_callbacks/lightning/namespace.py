"""What is imported and installed in; which of Lightning's two names to use out."""

import importlib.util
import sys
from typing import Any, NamedTuple


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


def check_trainer(trainer: Any, namespace: Namespace) -> None:
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

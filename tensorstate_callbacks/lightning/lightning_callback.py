"""The callback for `import lightning`."""

from importlib import import_module
from typing import Any

from tensorstate_callbacks.errors import MissingExtraError
from tensorstate_callbacks.lightning import LIGHTNING
from tensorstate_callbacks.lightning.callback import EfficiencyHooks

try:
    Callback: Any = import_module(LIGHTNING.module).Callback
except ModuleNotFoundError as error:
    if error.name not in ("lightning", LIGHTNING.module):
        raise
    # Not `require`: the extra brings pytorch_lightning.
    raise MissingExtraError(
        f"{__name__} needs the package 'lightning', which is not installed. Install it with: pip "
        "install lightning; or, to use pytorch_lightning: "
        "pip install 'tensorstate_callbacks[lightning]'",
        name="lightning",
    ) from error


class EfficiencyCallback(EfficiencyHooks, Callback):  # type: ignore[misc]
    """Logs the network's efficiency and aIQ with each evaluation; see `EfficiencyHooks`."""

    namespace = LIGHTNING

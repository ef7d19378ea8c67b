"""The callback for `import pytorch_lightning`."""

from typing import TYPE_CHECKING

from tensorstate_callbacks.errors import require
from tensorstate_callbacks.lightning import PYTORCH_LIGHTNING
from tensorstate_callbacks.lightning.callback import EfficiencyHooks

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    Callback = require(
        PYTORCH_LIGHTNING.module, extra="lightning", purpose="tensorstate_callbacks.lightning"
    ).Callback


class EfficiencyCallback(EfficiencyHooks, Callback):
    """Logs the network's efficiency and aIQ with each evaluation; see `EfficiencyHooks`."""

    namespace = PYTORCH_LIGHTNING

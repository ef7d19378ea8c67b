"""Hooks of one model as they are first called in; the list of them in forward order out."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.state_capture import StateCaptureHook

_lock = threading.Lock()


class EfficiencyLayers(list[StateCaptureHook]):
    """The hooks of one model, in the order of the forward pass as soon as it has run.

    Attributes:
        options: What all of them were made with: threshold, raw states, folder.
        handles: Take them off the model again.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.handles: list[RemovableHandle] = []
        self._n_reached = 0

    def reach(self, hook: "PlacedHook") -> None:
        """Put a hook that captured its first states behind those that did before."""
        with _lock:
            if not hook.reached:
                hook.reached = True
                place = next(i for i, other in enumerate(self) if other is hook)
                self.insert(self._n_reached, self.pop(place))
                self._n_reached += 1


class PlacedHook(StateCaptureHook):
    """A hook that knows its place among the others."""

    def __init__(self, name: str, layers: EfficiencyLayers, axes: ChannelAxes, **options: Any):
        super().__init__(name, **options)
        self._layers = layers
        self._axes = axes
        self.reached = False

    def record(self, activations: ArrayLike, channel_axis: int, *, bfloat16: bool = False) -> None:
        """Count a batch as `CapturedStates` does, and take the place among the others."""
        super().record(activations, channel_axis, bfloat16=bfloat16)
        if not self.reached:
            self._layers.reach(self)


class PersistentHook:
    """A hook that stays on the model, and that copies of the model take along."""

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        self._see(*args)

"""List the hooks of one model in the order of its forward pass."""

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch.utils.hooks import RemovableHandle

from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook
from tensorstate_callbacks.torch.channel_axis import ChannelAxes

_lock = threading.Lock()


class EfficiencyLayers(list[StateCaptureHook]):
    """The hooks of one model, in the order of the forward pass as soon as it has run.

    Where all layers were asked for but the one that makes the output, that is the one defined last
    until the first run has told which is called last.

    Attributes:
        options: What all of them were made with: threshold, raw states, folder.
        handles: Take them off the model again.
        output: Hooks of the layer that may make the output, which are none of the list.
        left_out: The layer that makes the output, once a run has told.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.handles: list[RemovableHandle] = []
        self.output: list[PlacedHook] = []
        self.left_out: set[str] = set()
        self._reached: list[PlacedHook] = []
        self._last: str | None = None

    def reach(self, hook: "PlacedHook") -> None:
        """Put a hook that captures states behind those that did before."""
        self._last = hook.layer
        with _lock:
            if not hook.reached:
                hook.reached = True
                self._reached.append(hook)
                self._arrange(self)

    def find_output(self, *_: Any) -> None:
        """Leave out the layer that was called last, as the model's first run ends."""
        if not self.output or self._last is None:
            return
        with _lock:
            every = [*self, *self.output]
            output = [h for h in self._reached if h.layer == self._last]
            self._arrange([hook for hook in every if hook not in output])
            self.output, self.left_out = [], {self._last}
        for hook in output:
            hook.capture_on = False
            hook.reset_states()

    def _arrange(self, hooks: Iterable[StateCaptureHook]) -> None:
        hooks = list(hooks)
        first = [hook for hook in self._reached if hook in hooks]
        self[:] = [*first, *(hook for hook in hooks if hook not in first)]


class PlacedHook(StateCaptureHook):
    """A hook that knows its place among the others.

    Attributes:
        layer: Name of the layer that it hangs on.
    """

    def __init__(
        self, name: str, layer: str, layers: EfficiencyLayers, axes: ChannelAxes, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.layer = layer
        self._layers = layers
        self._axes = axes
        self.reached = False

    def record(self, activations: ArrayLike, channel_axis: int, *, bfloat16: bool = False) -> None:
        """Count a batch as `CapturedStates` does, and take the place among the others."""
        super().record(activations, channel_axis, bfloat16=bfloat16)
        if not self.reached or self._layers.output:
            self._layers.reach(self)


class PersistentHook:
    """A hook that stays on the model, and that copies of the model take along."""

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        self._see(*args)

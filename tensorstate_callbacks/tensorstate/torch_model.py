"""Put hooks on some layers of a PyTorch module that capture their states."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import nn

from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.following import Follower
from tensorstate_callbacks.torch.hooks import takes_hooks, unhook, warn_if_compiled
from tensorstate_callbacks.torch.layers import looks_dense, unwrap
from tensorstate_callbacks.torch.picking import PickedLayers, pick_layers

_lock = threading.RLock()


class EfficiencyLayers(list["PlacedHook"]):
    """The hooks of one model, in the order of the forward pass as soon as it has run.

    Where all layers were asked for but the one that makes the output, that is the one defined last
    until the first run has shown which is called last.

    Attributes:
        options: What all of them were made with: threshold, raw states, folder.
        build: Number of the latest `build`.
        done: Those that came to their end: the hooks of others do nothing, and are removed by the
            next.
        output: Hooks of the layer that may make the output, which are none of the list.
        left_out: The layer that makes the output, once a run has shown it.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options = dict(options)
        self.build, self.done = 0, set[int]()
        self.output: list[PlacedHook] = []
        self.left_out: set[str] = set()
        self._reached: list[PlacedHook] = []
        self._last: str | None = None

    def reach(self, hook: "PlacedHook") -> None:
        """Put a hook that captures states behind those that did before."""
        self._last = hook.layer
        with _lock:
            if not hook.reached:
                if hook not in self._reached:
                    self._reached.append(hook)
                self._arrange(self)
                # Last, so that what an interrupt leaves undone is done the next time.
                hook.reached = True

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

    def _arrange(self, hooks: Iterable["PlacedHook"]) -> None:
        hooks = list(hooks)
        first = [hook for hook in self._reached if hook in hooks]
        self[:] = [*first, *(hook for hook in hooks if hook not in first)]


class PlacedHook(StateCaptureHook):
    """A hook that knows its place among the others.

    Attributes:
        layer: Name of the hooked layer.
        layers: All hooks.
        build: The `build` that it is of.
    """

    def __init__(
        self, name: str, layer: str, layers: EfficiencyLayers, axes: ChannelAxes, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self.layer = layer
        self.layers, self.build = layers, layers.build
        self._axes = axes
        self.reached = False

    def _see(self, module: nn.Module, args: Any, rest: tuple[Any, ...]) -> None:
        if self.build in self.layers.done and self.layer not in self.layers.left_out:
            super()._see(module, args, rest)

    def record(self, activations: ArrayLike, channel_axis: int, *, bfloat16: bool = False) -> None:
        """Count a batch as `CapturedStates` does, and take the place among the others."""
        super().record(activations, channel_axis, bfloat16=bfloat16)
        if not self.reached or self.layers.output:
            self.layers.reach(self)


class PersistentHook:
    """A hook that stays on the model, and that copies of the model take along."""

    def __init__(self, layers: EfficiencyLayers, see: Callable[..., None]) -> None:
        self.layers, self.build, self._see = layers, layers.build, see

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def __call__(self, *args: Any) -> None:
        """Look at a module's call; the return value None leaves the call as it is."""
        if self.build in self.layers.done:
            self._see(*args)


_ATTRIBUTE = "efficiency_layers"


def build(
    model: nn.Module,
    settings: Settings,
    channel_axis: ChannelAxis,
    *,
    keep_raw: bool,
    storage_path: str | os.PathLike[str] | None,
    resume: bool,
) -> nn.Module:
    """Put hooks on some of a module's layers; see `build_efficiency_model`."""
    picked = pick_layers(model, settings.attach_to, settings.exclude)
    for name, layer in picked.items():
        if not takes_hooks(layer):
            raise ValueError(f"the layer {name!r} is TorchScript, which calls no hooks: exclude it")
    warn_if_compiled(model)
    options = {
        "threshold": settings.threshold,
        "keep_raw": keep_raw,
        "storage_path": storage_path,
    }
    layers = _present(model, options)
    if layers is None:
        layers = EfficiencyLayers(options)
    # What an interrupt has left of an earlier one.
    _remove_hooks(model, lambda hook: hook.build not in hook.layers.done)
    layers.build += 1
    axes = ChannelAxes(channel_axis, picked)
    placed = [hook for hook in layers if hook.build in layers.done]
    may_be_output = [hook for hook in layers.output if hook.build in layers.done]
    there = {hook.name for hook in (*placed, *may_be_output)}
    output = _tentative_output(picked, layers, is_stored=storage_path is not None)
    # All are made before the first is registered: a folder may be refused.
    wanted: list[tuple[nn.Module, PlacedHook, bool]] = []
    for name, layer in picked.items():
        before, after = settings.probe_names(name)
        for probe, is_input in ((before, True), (after, False)):
            hook_name = f"{name}_{'pre' if is_input else 'post'}_states"
            if probe is not None and hook_name not in there:
                hook = PlacedHook(hook_name, name, layers, axes, resume=resume, **options)
                wanted.append((layer, hook, is_input))
    persistent = partial(PersistentHook, layers)
    try:
        for layer, hook, is_input in wanted:
            if is_input:
                layer.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                layer.register_forward_hook(hook, with_kwargs=True)
        if wanted and axes.need_following(picked.values()):
            axes.awaited = {hook.name for _, hook, _ in wanted}
            axes.follower = Follower(axes)
            axes.follower.add_hooks(model, persistent)
        if output and takes_hooks(model):
            unwrap(model).register_forward_hook(persistent(layers.find_output))
        setattr(_home(model), _ATTRIBUTE, layers)
        hooks = [hook for _, hook, _ in wanted]
        layers[:] = [*placed, *(hook for hook in hooks if hook.layer not in output)]
        layers.output = [*may_be_output, *(hook for hook in hooks if hook.layer in output)]
    except BaseException:
        _remove_hooks(model, lambda hook: hook.build not in hook.layers.done)
        raise
    # With this all of them begin to act.
    layers.done.add(layers.build)
    return model


def efficiency_layers(model: nn.Module) -> EfficiencyLayers:
    """Return the hooks that `build` registered on the model.

    Raises:
        ValueError: There are none.
    """
    layers = getattr(model, _ATTRIBUTE, None)
    if not isinstance(layers, EfficiencyLayers):
        raise ValueError(
            f"this {type(model).__name__} has no state layers: build_efficiency_model(model, "
            "attach_to=...) adds them"
        )
    return layers


def reset(model: nn.Module) -> None:
    """Forget the states that the model's hooks have captured.

    Raises:
        ValueError: The model has no hooks of `build`.
    """
    for hook in efficiency_layers(model):
        hook.reset_states()


def remove(model: nn.Module) -> nn.Module:
    """Remove what `build` added to the model, and return it; the user's own hooks stay."""
    layers = getattr(model, _ATTRIBUTE, None)
    if isinstance(layers, EfficiencyLayers):
        _remove_hooks(model, lambda hook: hook.layers is layers)
        delattr(_home(model), _ATTRIBUTE)
    return model


def _remove_hooks(
    model: nn.Module, are_meant: Callable[["PlacedHook | PersistentHook"], bool]
) -> None:
    for module in model.modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, PlacedHook | PersistentHook) and are_meant(hook):
                unhook(module, hook)


def _tentative_output(
    picked: PickedLayers, layers: EfficiencyLayers, *, is_stored: bool
) -> set[str]:
    """Return the layer that may make the output until a run shows it; leave out what is known."""
    if not picked.is_default:
        return set()
    # Nothing is verified at the first call here: what it captures stays.
    for name in [name for name in picked.tentative if not looks_dense(picked[name])]:
        picked.leave_out(name)
    expected = picked.expected()
    output = layers.left_out or {name for name in picked if name not in expected}
    # What is stored can't be taken back: then the layer defined last has no hook at all.
    if not (layers.left_out or is_stored):
        return output
    for name in output:
        picked.leave_out(name)
    return set()


def _present(model: nn.Module, options: Mapping[str, Any]) -> EfficiencyLayers | None:
    layers = getattr(model, _ATTRIBUTE, None)
    if layers is None:
        return None
    if not isinstance(layers, EfficiencyLayers):
        raise ValueError(
            f"this {type(model).__name__} has an attribute {_ATTRIBUTE!r} of its own: rename it"
        )
    if layers.options != options:
        raise ValueError(
            f"this {type(model).__name__} has state layers made with {layers.options}, which can't "
            f"be joined by some with {dict(options)}: call remove_state_layers(model) first"
        )
    return layers


def _home(model: nn.Module) -> nn.Module:
    """The module that holds the attribute: what was compiled, as its wrapper shows it too."""
    inner = getattr(model, "_orig_mod", None)
    return _home(inner) if isinstance(inner, nn.Module) else model

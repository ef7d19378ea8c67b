"""Put state capturing hooks on some layers of a PyTorch module."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from tensorstate_callbacks.recording.channel_axis import ChannelAxis
from tensorstate_callbacks.recording.selection import Patterns
from tensorstate_callbacks.recording.settings import Method, Settings
from tensorstate_callbacks.tensorstate.torch_hook import StateCaptureHook
from tensorstate_callbacks.tensorstate.torch_layers import (
    EfficiencyLayers,
    PersistentHook,
    PlacedHook,
)
from tensorstate_callbacks.torch.channel_axis import ChannelAxes
from tensorstate_callbacks.torch.default_layers import looks_dense
from tensorstate_callbacks.torch.eager import warn_if_compiled
from tensorstate_callbacks.torch.following import Follower
from tensorstate_callbacks.torch.layers import pick_layers, unwrap
from tensorstate_callbacks.torch.module_call import OutputFn, takes_hooks

_ATTRIBUTE = "efficiency_layers"


def build(
    model: nn.Module,
    attach_to: Patterns | None = None,
    exclude: Patterns = (),
    method: Method = "after",
    storage_path: str | os.PathLike[str] | None = None,
    *,
    keep_raw: bool = False,
    threshold: float = 0.0,
    resume: bool = False,
    channel_axis: ChannelAxis = None,
    output_fn: OutputFn | None = None,
) -> nn.Module:
    """Hang a `StateCaptureHook` on some of a module's layers.

    They are named `<layer>_post_states` (outputs) and `<layer>_pre_states` (inputs). A layer that
    has one already gets no second one. Without `attach_to` the layer that makes the output is left
    out: the one that the first run calls last, or with a `storage_path` the one defined last.

    Args:
        model: Any module.
        attach_to: Which layers, `exclude` which not; see `torch.record`.
        exclude: See `attach_to`.
        method: `"after"` captures outputs, `"before"` inputs, `"both"` both.
        storage_path: Folder in which all states are kept in the order of observation.
        keep_raw: Keep them in memory.
        threshold: A neuron fires where its activation is above it; finite.
        resume: Go on with what the folder holds of an earlier run.
        channel_axis: See `torch.record`.
        output_fn: See `torch.record`.

    Returns:
        The model itself, with the hooks in `model.efficiency_layers`: in the order of the forward
        pass as soon as it has run, before that in the order the model has its layers.

    Raises:
        FileExistsError: The folder holds states of an earlier run, and `resume` isn't set.
        NoLayerMatchedError: No layer matched; the message lists what the model has.
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of its range, or not that of the hooks that are there; or a
            layer is TorchScript, which calls no hooks.

    Warns:
        TensorStateWarning: The model is compiled, and may not call its hooks.
    """
    settings = Settings(attach_to=attach_to, exclude=exclude, method=method, threshold=threshold)
    picked = pick_layers(model, attach_to, exclude)
    for name, layer in picked.items():
        if not takes_hooks(layer):
            raise ValueError(f"the layer {name!r} is TorchScript, which calls no hooks: exclude it")
    warn_if_compiled(model)
    options = {"threshold": threshold, "keep_raw": keep_raw, "storage_path": storage_path}
    layers = _present(model, options) or EfficiencyLayers(options)
    axes = ChannelAxes(channel_axis, picked)
    there = {hook.name for hook in (*layers, *layers.output)}
    output = None
    if picked.is_default:
        # Nothing is verified at the first call here: what it captures stays.
        for name in [name for name in picked.tentative if not looks_dense(picked[name])]:
            picked.leave_out(name)
        expected = picked.expected()
        # What is stored can't be taken back: then the layer defined last has no hook at all.
        left_out = layers.left_out or {name for name in picked if name not in expected}
        output = None if layers.left_out or storage_path is not None else left_out
        for name in left_out if output is None else ():
            picked.leave_out(name)
    # All are made before the first is registered: a folder may be refused.
    wanted: list[tuple[nn.Module, PlacedHook, bool]] = []
    for name, layer in picked.items():
        before, after = settings.probe_names(name)
        for probe, is_input in ((before, True), (after, False)):
            hook_name = f"{name}_{'pre' if is_input else 'post'}_states"
            if probe is not None and hook_name not in there:
                hook = PlacedHook(
                    hook_name, name, layers, axes, output_fn=output_fn, resume=resume, **options
                )
                wanted.append((layer, hook, is_input))
    with ExitStack() as stack:
        handles = []
        for layer, hook, is_input in wanted:
            if is_input:
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(layer.register_forward_hook(hook, with_kwargs=True))
            stack.callback(handles[-1].remove)
        if wanted and axes.need_following(picked.values()):
            axes.awaited = {hook.name for _, hook, _ in wanted}
            axes.follower = Follower(axes)
            handles += axes.follower.add_hooks(model, PersistentHook)
        if output and takes_hooks(model):
            find = PersistentHook(layers.find_output)
            handles.append(unwrap(model).register_forward_hook(find))
        setattr(_home(model), _ATTRIBUTE, layers)
        stack.pop_all()
    layers.handles += handles
    for _, hook, _ in wanted:
        (layers.output if output and hook.layer in output else layers).append(hook)
    return model


def efficiency_layers(model: nn.Module) -> list[StateCaptureHook]:
    """Return the hooks that `build` hung on the model.

    Raises:
        ValueError: It hung none there.
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
    """Take off the model what `build` hung there, and return it; the user's own hooks stay."""
    layers = getattr(model, _ATTRIBUTE, None)
    if isinstance(layers, EfficiencyLayers):
        for handle in layers.handles:
            handle.remove()
        delattr(_home(model), _ATTRIBUTE)
    return model


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

"""A PyTorch model in, its layers under the names that users know out."""

import warnings
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tensorstate_callbacks.errors import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.selection import Patterns, matches, select_layers

# What torch.compile, FSDP, activation checkpointing and Fabric put between a module and its name.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)


def pick_layers(
    model: nn.Module, attach_to: Patterns | None, exclude: Patterns = ()
) -> dict[str, nn.Module]:
    """Return the layers of the model to probe, under their names; see `select_layers`.

    Raises:
        NoLayerMatchedError: No layer is left; the message lists what the model has.
        TypeError: The model is no module, or a pattern is of the wrong kind.

    Warns:
        TensorStateWarning: A layer was left out, since its module uses its weights without calling
            it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module; got {type(model).__name__}")
    layers = named_layers(model)
    picked = select_layers(layers, attach_to, exclude, default=default_names(layers))
    return _without_bypassed(model, picked)


def _without_bypassed(model: nn.Module, picked: dict[str, nn.Module]) -> dict[str, nn.Module]:
    bypassed = {
        id(module.out_proj)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
    }
    left_out = [name for name, layer in picked.items() if id(layer) in bypassed]
    if not left_out:
        return picked
    text = (
        f"{', '.join(left_out)}: MultiheadAttention uses the weights of this layer without calling "
        "it. Attach to the MultiheadAttention itself, whose output is the same, and exclude "
        "'*.out_proj'"
    )
    if len(left_out) == len(picked):
        raise NoLayerMatchedError(text)
    warnings.warn(f"left out {text}", TensorStateWarning, stacklevel=3)
    return {name: layer for name, layer in picked.items() if name not in left_out}


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module inside the model, in the model's order; each one once.

    Names are those of `named_modules`, without what `torch.compile`, FSDP, activation
    checkpointing, data parallelism and Fabric add. A model without modules inside is its own only
    layer, named by its class.
    """
    model = _unwrap(model)
    layers: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        parts = [part for part in path.split(".") if part not in _WRAPPERS]
        # These compute weights, not activations.
        if "parametrizations" not in parts:
            # A wrapper comes first, and what it wraps takes its place.
            layers[".".join(parts)] = module
    root = layers.pop("")
    return layers or {type(root).__name__: root}


def default_names(layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of all convolution and linear layers but the one of the model's output.

    Which one that is can't be seen without running the model: the last one defined is taken.
    """
    return [name for name, layer in layers.items() if _has_neurons(name, layer)][:-1]


def _has_neurons(name: str, layer: nn.Module) -> bool:
    # MultiheadAttention has a linear layer inside that it never calls.
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return False
    return matches("_ConvNd", name, layer) or matches("Linear", name, layer)


def _unwrap(model: nn.Module) -> nn.Module:
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """What a module runs that only wraps another, or None."""
    # By what it holds: Fabric's wrapper gives the attributes of its module for its own.
    held = model._modules
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return held["module"]
    if "_original_module" in held and "_forward_module" in held:
        return held["_forward_module"]
    return held.get("_orig_mod")

"""Name a PyTorch model's layers as users know them, and pick those to probe."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tensorstate_callbacks.errors import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.recording.selection import (
    Pattern,
    Patterns,
    check_patterns,
    select_layers,
)
from tensorstate_callbacks.torch.default_layers import NO_LAYERS, find_default, own_weights

# What torch.compile, FSDP, activation checkpointing and Fabric put between a module and its name.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)


class PickedLayers(dict[str, nn.Module]):
    """The layers to probe under their names, and what the first pass has still to tell of them.

    Attributes:
        is_default: Nothing was asked for: these are all layers that may be meant, and the one that
            makes the output among them.
        output: The layer that makes the output, as soon as a pass has told.
        tentative: Layers that may be dense ones; the first call tells.
        aside: Layers that were excluded, one of which may make the output.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, is_default: bool = False) -> None:
        super().__init__(layers)
        self.is_default = is_default
        self.output: str | None = None
        self.tentative: set[str] = set()
        self.aside: dict[str, nn.Module] = {}

    def expected(self) -> list[str]:
        """Return the names of the layers that a report will have, as far as can be told.

        Before a model has run, the layer defined last is taken for the one of the output.
        """
        names = list(self)
        return names[:-1] if self.is_default and self.output is None else names

    def leave_out(self, name: str) -> None:
        """Forget a layer that turned out to be none of those that are meant."""
        self.pop(name, None)
        self.tentative.discard(name)


def pick_layers(
    model: nn.Module, attach_to: Patterns | None, exclude: Patterns = ()
) -> PickedLayers:
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
    if attach_to is not None:
        layers = _with_measures(model, layers, check_patterns("attach_to", attach_to))
    certain, tentative = find_default(layers)
    default = [name for name in layers if name in certain or name in tentative]
    # The only one makes the output.
    default = default if len(default) > 1 else []
    chosen = select_layers(layers, attach_to, exclude, default=default)
    picked = PickedLayers(_without_bypassed(model, chosen), is_default=attach_to is None)
    if picked.is_default:
        picked.tentative = tentative & picked.keys()
        picked.aside = {name: layers[name] for name in default if name not in picked}
    return picked


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


def _with_measures(
    model: nn.Module, layers: dict[str, nn.Module], patterns: Iterable[Pattern]
) -> dict[str, nn.Module]:
    """Add what metrics and losses have inside, where it is asked for by name."""
    asked = {
        name: layer
        for name, layer in named_layers(model, with_measures=True).items()
        if name not in layers
        and any(isinstance(p, str) and p != "*" and fnmatchcase(name, p) for p in patterns)
    }
    return {**layers, **asked}


def named_layers(model: nn.Module, *, with_measures: bool = False) -> dict[str, nn.Module]:
    """Return every module inside the model, in the model's order; each one once.

    Names are those of `named_modules`, without what `torch.compile`, FSDP, activation
    checkpointing, data parallelism and Fabric add. A model without modules inside is its own only
    layer, named by its class.

    Args:
        model: The model.
        with_measures: Whether what metrics and losses have inside, which is no part of the model,
            is named too.
    """
    model = unwrap(model)
    layers: dict[str, nn.Module] = {}
    measures = {
        id(inner)
        for outer in model.modules()
        if outer is not model and not with_measures and _is_measure(outer)
        for inner in outer.modules()
    }
    for path, module in model.named_modules():
        if id(module) in measures:
            continue
        parts = [part for part in path.split(".") if part not in _WRAPPERS]
        # These compute weights, not activations.
        if "parametrizations" not in parts:
            # A wrapper comes first, and what it wraps takes its place.
            layers[".".join(parts)] = module
    root = layers.pop("")
    return layers or {type(root).__name__: root}


def unprobed_weights(model: nn.Module, picked: PickedLayers) -> dict[str, nn.Module]:
    """Return the modules with weights of their own that are in none of the picked layers.

    Tables (embeddings), norms and what makes the output are not among them.
    """
    inside = {
        id(inner)
        for layer in (*picked.values(), *picked.aside.values())
        for inner in layer.modules()
    }
    return {
        name: module
        for name, module in named_layers(model).items()
        if id(module) not in inside and not isinstance(module, NO_LAYERS) and own_weights(module)
    }


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that the user made, inside of what compiles or parallelizes it."""
    while (inner := _wrapped(model)) is not None:
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    """Return what a module runs that only wraps another, or None."""
    # By what it holds: Fabric's wrapper gives the attributes of its module for its own.
    held = model._modules
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        return held["module"]
    if "_original_module" in held and "_forward_module" in held:
        return held["_forward_module"]
    return held.get("_orig_mod")


def _is_measure(module: nn.Module) -> bool:
    metrics: Any = sys.modules.get("torchmetrics")
    if isinstance(module, _Loss) or (metrics and isinstance(module, metrics.Metric)):
        return True
    return type(module).__name__.endswith(("Loss", "Criterion"))

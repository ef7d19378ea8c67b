"""Name a PyTorch model's layers as users know them, and pick those to probe."""

import sys
import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tensorstate_callbacks.errors import NoLayerMatchedError, TensorStateWarning
from tensorstate_callbacks.selection import Pattern, Patterns, check_patterns, select_layers

# What torch.compile, FSDP and activation checkpointing put between a module and its name.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Tables and scales: their weights are none that make neurons out of others.
_NO_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm)


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
    certain, tentative = _find_default(layers)
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
    checkpointing and data parallelism add. A model without modules inside is its own only layer,
    named by its class.

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
        if id(module) not in inside and not isinstance(module, _NO_LAYERS) and own_weights(module)
    }


def own_weights(module: nn.Module) -> int:
    """Return the number of a module's own weights, in parameters of two axes and more."""
    return sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module that the user made, inside of what compiles or parallelizes it."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _find_default(layers: Mapping[str, nn.Module]) -> tuple[set[str], set[str]]:
    """Return the names of the convolution and dense layers, and of what may be such.

    The one that makes the output is among them. A layer inside one of these is not: the low-rank
    ones of LoRA, the original beside them.
    """
    certain: set[str] = set()
    tentative: set[str] = set()
    inside: set[int] = set()
    for name, layer in layers.items():
        if id(layer) in inside:
            continue
        if _is_conv(layer) or _is_dense(layer) or _is_adapted(layer):
            certain.add(name)
            inside.update(id(inner) for inner in layer.modules())
        elif _may_be_dense(layer):
            tentative.add(name)
    return certain, tentative


def _is_conv(layer: nn.Module) -> bool:
    """Tell convolutions, those of quantization too, which are relatives by what they say only."""
    if isinstance(layer, _ConvNd):
        return True
    says = all(isinstance(getattr(layer, n, None), int) for n in ("in_channels", "out_channels"))
    return says and hasattr(layer, "kernel_size") and _is_leaf_with_weight(layer)


def _is_dense(layer: nn.Module) -> bool:
    # MultiheadAttention has a linear layer inside that it never calls.
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return False
    return isinstance(layer, nn.Linear) or (
        _features(layer) is not None and _is_leaf_with_weight(layer)
    )


def _is_adapted(layer: nn.Module) -> bool:
    """Tell a dense layer or convolution that is wrapped together with what adapts it (LoRA)."""
    children = dict(layer.named_children())
    bases = [
        child
        for name, child in children.items()
        if not name.startswith("lora_") and (_is_dense(child) or _is_conv(child))
    ]
    if not bases:
        return False
    features = _features(layer)
    if "original_module" in children or features in [_features(b) for b in bases if features]:
        return True
    parameters = (name for name, _ in layer.named_parameters(recurse=False))
    adapts = any(name.startswith("lora_") for name in (*children, *parameters))
    return adapts and len(bases) == 1


def _may_be_dense(layer: nn.Module) -> bool:
    """Tell what may be a dense layer by another name, such as GPT-2's Conv1D."""
    known = isinstance(layer, (*_NO_LAYERS, nn.RNNBase, nn.RNNCellBase, nn.Linear))
    if known or any(layer.children()):
        return False
    return [p.ndim for p in layer.parameters(recurse=False)].count(2) == 1


def _features(layer: nn.Module) -> tuple[int, int] | None:
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def _is_leaf_with_weight(layer: nn.Module) -> bool:
    # A quantized layer packs its weight into a module, and unpacks it where asked.
    is_packed = callable(getattr(layer, "weight", None))
    return is_packed or (own_weights(layer) > 0 and not any(layer.children()))


def _is_measure(module: nn.Module) -> bool:
    metrics: Any = sys.modules.get("torchmetrics")
    if isinstance(module, _Loss) or (metrics and isinstance(module, metrics.Metric)):
        return True
    return type(module).__name__.endswith(("Loss", "Criterion"))


def is_dense_call(module: nn.Module, taken: Any, given: Any) -> bool:
    """Tell whether a module's call is that of a dense layer: its weight's sizes are the last axes'.

    Args:
        module: One of `PickedLayers.tentative`.
        taken: The tensor that it took, shape `(..., n_in)`.
        given: The tensor that it gave, shape `(..., n_out)`.
    """
    if taken is None or given is None or taken.is_nested or given.is_nested:
        return False
    weight = next(p for p in module.parameters(recurse=False) if p.ndim == 2)
    if not (taken.is_floating_point() and taken.ndim == given.ndim and taken.ndim):
        return False
    return sorted((taken.shape[-1], given.shape[-1])) == sorted(weight.shape)

"""Name a PyTorch model's layers, and find its convolution and dense ones."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DataParallel, DistributedDataParallel

# What torch.compile, FSDP, activation checkpointing and Fabric put between a module and its name.
_WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)

# Tables and scales: their weights are none that make neurons out of others.
NO_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.GroupNorm)


def named_layers(model: nn.Module, *, with_measures: bool = False) -> dict[str, nn.Module]:
    """Return every module inside the model, in the model's order; each one once.

    Names are those of `named_modules`, without what `torch.compile`, FSDP, activation
    checkpointing, data parallelism and Fabric add. A model without modules inside is its own only
    layer, named by its class.

    Args:
        model: The model.
        with_measures: Name what metrics and losses have inside too, which is no part of the model.
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


def find_default(layers: Mapping[str, nn.Module]) -> tuple[set[str], set[str]]:
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
        if not name.startswith("lora_") and _may_be_layer(child)
    ]
    if not bases:
        return False
    features = _features(layer)
    if "original_module" in children or features in [_features(b) for b in bases if features]:
        return True
    parameters = (name for name, _ in layer.named_parameters(recurse=False))
    adapts = any(name.startswith("lora_") for name in (*children, *parameters))
    return adapts and len(bases) == 1


def _may_be_layer(layer: nn.Module) -> bool:
    return _is_dense(layer) or _is_conv(layer) or _may_be_dense(layer)


def _may_be_dense(layer: nn.Module) -> bool:
    """Tell what may be a dense layer by another name, such as GPT-2's Conv1D."""
    known = isinstance(layer, (*NO_LAYERS, nn.RNNBase, nn.RNNCellBase, nn.Linear))
    if known or any(layer.children()):
        return False
    return [p.ndim for p in own_parameters(layer)].count(2) == 1


def _features(layer: nn.Module) -> tuple[int, int] | None:
    sizes = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return sizes if all(isinstance(size, int) for size in sizes) else None  # type: ignore[return-value]


def _is_leaf_with_weight(layer: nn.Module) -> bool:
    # A quantized layer packs its weight into a module, and unpacks it where asked.
    is_packed = callable(getattr(layer, "weight", None))
    return is_packed or (own_weights(layer) > 0 and not any(layer.children()))


def is_dense_call(module: nn.Module, taken: Any, given: Any) -> bool:
    """Tell whether a module's call is that of a dense layer: its weight's sizes are the last axes'.

    Args:
        module: One of `PickedLayers.tentative`.
        taken: The tensor that it took, shape `(..., n_in)`.
        given: The tensor that it gave, shape `(..., n_out)`.
    """
    if taken is None or given is None or taken.is_nested or given.is_nested:
        return False
    # Adapters may have put something else in its place for the time of the call.
    weight = next((p for p in own_parameters(module) if p.ndim == 2), None)
    if weight is None or not taken.is_floating_point() or taken.ndim != given.ndim:
        return False
    return taken.ndim > 0 and sorted((taken.shape[-1], given.shape[-1])) == sorted(weight.shape)


def own_weights(module: nn.Module) -> int:
    """Return the number of a module's own weights, in parameters of two axes and more."""
    return sum(p.numel() for p in own_parameters(module) if p.ndim > 1)


def own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield a module's own parameters, but those of lazy modules that have no shape yet."""
    return (p for p in module.parameters(recurse=False) if not nn.parameter.is_lazy(p))


def looks_dense(module: nn.Module) -> bool:
    """Tell whether what may be dense has a bias too, as long as its weight is wide."""
    shapes = [tuple(parameter.shape) for parameter in own_parameters(module)]
    wide = {size for shape in shapes if len(shape) == 2 for size in shape}
    return any(len(shape) == 1 and shape[0] in wide for shape in shapes)

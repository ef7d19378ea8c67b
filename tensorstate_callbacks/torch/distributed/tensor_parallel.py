"""A model and its layers to probe in; an error where a layer is split over processes by neurons."""

import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from tensorstate_callbacks.errors import ProbeError


def refuse_split_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Raise an error if this process has a part of some layer's neurons only.

    That is so where `parallelize_module` (tensor parallelism) split its parameters. FSDP splits
    them too, but puts them together before the layer is called.

    Raises:
        ProbeError: It is; the message names the layers.
    """
    # Without DTensors there is nothing to look for, and importing them takes a while.
    if "torch.distributed.tensor" not in sys.modules:
        return
    inside_fsdp = {
        id(inner) for outer in model.modules() if _is_fsdp(outer) for inner in outer.modules()
    }

    def is_split(layer: nn.Module) -> bool:
        allowed = int(id(layer) in inside_fsdp)
        return any(_n_splits(parameter) > allowed for parameter in layer.parameters(recurse=False))

    if not any(is_split(module) for module in model.modules()):
        return
    split = [name for name, layer in layers.items() if is_split(layer)]
    if split:
        raise ProbeError(
            f"tensor parallelism splits the parameters of {', '.join(split)}: this process sees a "
            "part of the neurons only, of which no states can be made. Exclude these layers, or "
            "evaluate the model without parallelize_module"
        )
    bare = [name for name, layer in layers.items() if not list(layer.named_parameters())]
    if bare:
        raise ProbeError(
            f"{', '.join(bare)} can't be counted: the model has layers that tensor parallelism "
            "splits, and of layers without parameters can't be told whether this process sees all "
            "of their neurons. Exclude them"
        )


def _n_splits(parameter: Any) -> int:
    return sum(placement.is_shard() for placement in getattr(parameter, "placements", ()))


def _is_fsdp(module: nn.Module) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)

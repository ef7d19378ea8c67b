"""Find the axis of neurons of real networks by running them at several sizes, and count with NumPy.

The oracle knows nothing of the package's rules. A network is run with two and with three samples,
and at another size of its input. The axes of a layer's output whose size is the same in all of
these runs are constant; the batch and the places are not. Then:

1. A layer of one of torch's own classes has its neurons where torch documents them.
2. Else, where one axis is constant, it holds the neurons.
3. Else, where several are (heads and the width of a head, a window's places and its channels), it
   is the one that is as long as a weight of one axis that the layer has; else the one that is as
   long as some layer of the network is documented to be wide, or several together that are (all
   heads). Where no single one is, any may be taken, or several that follow each other.
4. Where no axis is constant (a map of attention, of which all heads are in the batch), there are no
   neurons to agree on: only that the layer is counted without an error is asked for.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from axis_oracle import unit_states
from torch import nn

Axes = tuple[int, ...]
Inputs = tuple[Any, ...] | dict[str, Any]
LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase)
SECOND = (
    *(nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
)


class Network(NamedTuple):
    """A network of the sweep.

    Attributes:
        build: From the number of places (image side, tokens, samples of sound) to the network.
        inputs: From the numbers of samples and of places to what it takes.
        sizes: Two numbers of places.
        varying: Globs of layers whose width is of the input's size, with the reason.
        is_sized: It takes one number of places only, so that another needs another network.
    """

    build: Callable[[int], nn.Module]
    inputs: Callable[[int, int], Inputs]
    sizes: tuple[int, int]
    varying: Mapping[str, str] = MappingProxyType({})
    is_sized: bool = False


def first_tensor(value: Any) -> torch.Tensor | None:
    """The tensor that holds the activations of an output."""
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "last_hidden_state"):
        return first_tensor(value.last_hidden_state)
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, tuple, list)):
        return None
    return next((t for part in parts if (t := first_tensor(part)) is not None), None)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model without gradients."""
    with torch.no_grad():
        return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def leaves(model: nn.Module) -> dict[str, nn.Module]:
    """The modules without modules inside, but for those that compute weights."""
    return {
        name: module
        for name, module in model.named_modules()
        if name
        and not any(True for _ in module.children())
        and not isinstance(module, torch.jit.ScriptModule)
        and "parametrizations" not in name
    }


def observe(model: nn.Module, inputs: Inputs) -> tuple[Any, dict[str, list[torch.Tensor]]]:
    """What a model gives, and clones of what its leaves gave, call by call, in order."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, module in leaves(model).items():

        def keep(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.is_floating_point():
                seen.setdefault(name, []).append(tensor.detach().clone())

        handles.append(module.register_forward_hook(keep))
    output = call(model, inputs)
    for handle in handles:
        handle.remove()
    return output, seen


def known_widths(model: nn.Module) -> set[int]:
    """The numbers of neurons of the convolutions, dense layers and embeddings of a model."""
    names = ("out_channels", "out_features", "embedding_dim", "hidden_size")
    found = (getattr(module, name, None) for module in model.modules() for name in names)
    return {width for width in found if isinstance(width, int)}


def candidates(module: nn.Module, runs: Sequence[torch.Tensor], known: set[int]) -> list[Axes]:
    """The axes that may hold the neurons of one call, each counted from the front.

    Args:
        module: The layer.
        runs: What it gave with two samples, with three, and at another size.
        known: Numbers of neurons that layers of the network are documented to have.
    """
    first = runs[0]
    n_axes = first.ndim
    own = type(module).__module__.startswith("torch.nn.modules.")
    if own and isinstance(module, LAST):
        return [(n_axes - 1,)]
    if own and isinstance(module, SECOND):
        return [(1,)]
    if own and isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return [(n_axes - len(module.normalized_shape),)]
    if any(run.ndim != n_axes for run in runs):
        return []
    constant = [i for i in range(n_axes) if len({run.shape[i] for run in runs}) == 1]
    if len(constant) == 1:
        return [(constant[0],)]
    ends = itertools.combinations(range(len(constant) + 1), 2)
    ways = [tuple(constant[i:j]) for i, j in ends]
    ways += [tuple(constant)] * (tuple(constant) not in ways)
    width = {way: math.prod(first.shape[i] for i in way) for way in ways}
    weights = {p.numel() for p in module.parameters(recurse=False) if p.squeeze().ndim == 1}
    for widths in (weights, known - {1}):
        if len([way for way in ways if len(way) == 1 and width[way] in widths]) == 1:
            return [way for way in ways if width[way] in widths]
    return ways


def explains(
    module: nn.Module,
    calls: Sequence[Sequence[torch.Tensor]],
    n_counted: int,
    found: dict[int, dict[bytes, int]],
    known: set[int],
) -> bool | None:
    """Tell whether counts are those of one of the ways that the oracle leaves open.

    Args:
        module: The layer.
        calls: Of each call what it gave in each run.
        n_counted: How many of these runs were counted.
        found: Number of neurons of each probe of the layer to its states.
        known: Numbers of neurons that layers of the network are documented to have.

    Returns:
        None where the oracle has nothing to say.
    """
    ways = [tuple(candidates(module, runs, known)) for runs in calls]
    if not all(ways):
        return None
    # Calls of a kind are taken alike, so that few combinations are left.
    kinds = list(dict.fromkeys(ways))
    for choice in itertools.islice(itertools.product(*kinds), 200):
        taken = dict(zip(kinds, choice, strict=True))
        groups: dict[int, list[torch.Tensor]] = {}
        for runs, way in zip(calls, ways, strict=True):
            axes = taken[way]
            for tensor in runs[:n_counted]:
                rest = [i for i in range(tensor.ndim) if i not in axes]
                width = math.prod(tensor.shape[i] for i in axes)
                rows = tensor.permute(*rest, *axes).reshape(-1, width)
                groups.setdefault(width, []).append(rows)
        if groups.keys() == found.keys() and all(
            unit_states(rows, -1) == found[width] for width, rows in groups.items()
        ):
            return True
    return False

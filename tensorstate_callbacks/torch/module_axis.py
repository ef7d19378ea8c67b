"""Find the axis of a module's neurons by its class, or by its parameters.

All axes found here count from the end, so that they hold for batched and unbatched tensors.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from tensorstate_callbacks.torch.layers import own_parameters

_SPATIAL = {
    cls: int(name[-2])
    for name in dir(nn)
    if name.endswith(("1d", "2d", "3d")) and isinstance(cls := getattr(nn, name), type)
    # Dropout, BatchNorm and what changes the number of axes have rules of their own.
    if name.startswith(("Conv", "InstanceNorm", "LazyConv", "LazyInstanceNorm"))
    or "Pool" in name
    or "Pad" in name
    or "Unpool" in name
}
_LAST = (
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention),
    *(nn.RNNBase, nn.RNNCellBase, nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_SECOND = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
    nn.SyncBatchNorm: range(2, 6),
    nn.GroupNorm: range(2, 8),
    nn.LocalResponseNorm: range(3, 8),
    nn.CrossMapLRN2d: (4,),
}
_NORMALIZED = tuple(cls for cls in (nn.LayerNorm, getattr(nn, "RMSNorm", None)) if cls)
# Of these the channels are documented too, but they keep or follow those of what they take.
_DOCUMENTED: dict[type, tuple[int | None, Iterable[int]]] = {
    nn.PixelShuffle: (-3, range(3, 8)),
    nn.PixelUnshuffle: (-3, range(3, 8)),
    nn.Softmax2d: (-3, (3, 4)),
    nn.Unfold: (-2, (2, 3)),
    nn.Fold: (-3, (3, 4)),
    nn.ChannelShuffle: (None, range(3, 6)),
    nn.Upsample: (None, range(3, 6)),
    nn.UpsamplingNearest2d: (None, (4,)),
    nn.UpsamplingBilinear2d: (None, (4,)),
    nn.Dropout1d: (-2, (2, 3)),
    nn.Dropout2d: (-3, (3, 4)),
    nn.Dropout3d: (-4, (4, 5)),
}
# What a module says of the number of its neurons, by the base that gives it the rule.
_WIDTHS = ("out_channels", "out_features", "embedding_dim")


class _Rule(NamedTuple):
    """What the type of a module says.

    Attributes:
        base: The class of torch's that it goes by.
        own_forward: A subclass computes something of its own.
        axis: Counted from the end; None: the second of all.
        n_axes: Numbers of axes that its tensors may have; None: any.
    """

    base: type
    own_forward: bool
    axis: int | None
    n_axes: Iterable[int] | None


def _is_torchs(module_type: type) -> bool:
    """Tell whether a class of modules computes what one of torch's own does."""
    # Not getattr, which the classes of scripted modules don't stand.
    forward = next(vars(c)["forward"] for c in module_type.__mro__ if "forward" in vars(c))
    return str(getattr(forward, "__module__", "")).startswith(("torch.nn.", "torch.ao."))


def _look_up_rule(module_type: type) -> _Rule | None:
    own = not _is_torchs(module_type)
    for base in module_type.__mro__:
        if base in _SPATIAL:
            n_spatial = _SPATIAL[base]
            return _Rule(base, own, -n_spatial - 1, (n_spatial + 1, n_spatial + 2))
        if base in _LAST:
            return _Rule(base, own, -1, None)
        if base in _SECOND:
            return _Rule(base, own, None, _SECOND[base])
        if base in _NORMALIZED:
            return _Rule(base, own, 0, None)
    return None


# One is asked for with every call of every layer. (To mypy a class can't be hashed.)
_find_rule: Callable[[Any], _Rule | None] = lru_cache(maxsize=1024)(_look_up_rule)


def rule_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Return the axis that the module's type says holds its neurons, counted from the end.

    Torch's own classes are known: the axis before the spatial ones for convolution, pooling,
    padding and instance normalization; the second for batch and group normalization; the first of
    the normalized ones for layer normalization; the last for linear, embedding, recurrent,
    attention and transformer layers. Of subclasses with a forward of their own only those count
    that make neurons, and only where the axis has as many entries as they say.

    Args:
        module: Any module.
        shape: Of the tensor that it took or gave.
    """
    rule = _find_rule(type(module))
    n_axes = len(shape)
    if rule is None:
        return _described_axis(module, shape)
    if rule.own_forward and not _makes_neurons(rule):
        return None
    if rule.base in _NORMALIZED:
        return -len(module.normalized_shape)  # type: ignore[arg-type]
    if rule.n_axes is not None and n_axes not in rule.n_axes:
        return None
    axis = 1 - n_axes if rule.axis is None else rule.axis
    if rule.own_forward:
        widths = [getattr(module, name, None) for name in _WIDTHS]
        if n_axes and shape[axis] not in widths:
            return None
    return axis


def _described_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Of what is a dense layer or convolution without being torch's: quantized, wrapped, mixed."""
    out = getattr(module, "out_features", None)
    if isinstance(out, int) and isinstance(getattr(module, "in_features", None), int):
        return -1 if shape and shape[-1] == out else None
    out, kernel = getattr(module, "out_channels", None), getattr(module, "kernel_size", None)
    if isinstance(out, int) and isinstance(kernel, tuple):
        axis = -len(kernel) - 1
        return axis if len(shape) >= -axis and shape[axis] == out else None
    return None


def documented_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Return the axis of the channels that torch documents for a module which makes none.

    Args:
        module: Any module.
        shape: Of the tensor that it gave.
    """
    axis, n_axes = _DOCUMENTED.get(type(module), (None, ()))
    if len(shape) not in n_axes:
        return None
    return 1 - len(shape) if axis is None else axis


def evident_axis(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Return the axis that the module's own parameters show to hold its neurons.

    That is a parameter whose length is the size of exactly one axis, as hand-written norms have it.
    One with axes of one entry, (C, 1, 1), says itself which it is.

    Args:
        module: Any module.
        shape: Of the tensor that it took or gave.
    """
    found = set()
    for parameter in own_parameters(module):
        long = [axis for axis, size in enumerate(parameter.shape) if size > 1]
        if len(long) != 1:
            continue
        length = parameter.shape[long[0]]
        if parameter.ndim > 1:
            at = long[0] - parameter.ndim
            fits = {at} if len(shape) >= -at and shape[at] == length else set()
        else:
            fits = {axis - len(shape) for axis, size in enumerate(shape) if size == length}
        if len(fits) == 1:
            found |= fits
    return found.pop() if len(found) == 1 else None


def is_unruled(module: nn.Module) -> bool:
    """Tell whether neither a module's class nor what it says of itself tells the axis."""
    rule = _find_rule(type(module))
    if rule is not None and not rule.own_forward:
        return False
    if rule is not None and not _makes_neurons(rule):
        return True
    return not any(isinstance(getattr(module, name, None), int) for name in _WIDTHS)


def _makes_neurons(rule: _Rule) -> bool:
    return rule.base in _LAST or issubclass(rule.base, _ConvNd)

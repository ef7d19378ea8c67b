"""A module and a tensor it took or gave in, the axis that holds the neurons out.

All axes found here count from the end, so that they hold for batched and unbatched tensors.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from tensorstate_callbacks.selection import Pattern, inventory, matches

ChannelAxis: TypeAlias = (
    int | Mapping[Pattern, int] | Callable[[str, nn.Module, torch.Tensor], int | None] | None
)

# Names, not types: quantized and parametrized classes are relatives by name only.
_SPATIAL = re.compile(r"(?:Conv|ConvTranspose|InstanceNorm|\w*(?:Pool|Unpool|Pad))([123])d")
_LAST = {
    *("Linear", "Bilinear", "Embedding", "EmbeddingBag", "MultiheadAttention"),
    *("RNNBase", "RNNCellBase", "Transformer", "TransformerEncoder", "TransformerDecoder"),
    *("TransformerEncoderLayer", "TransformerDecoderLayer"),
}
_SECOND = {"_BatchNorm", "GroupNorm", "LocalResponseNorm", "CrossMapLRN2d"}
_NORMALIZED = {"LayerNorm", "RMSNorm"}


def rule_axis(module: nn.Module, n_axes: int) -> int | None:
    """Return the axis that the module's type says holds its neurons, counted from the end.

    Args:
        module: Any module.
        n_axes: Number of axes of the tensor it took or gave.

    Returns:
        The axis before the spatial ones for convolution, pooling and padding; the second for batch
        and group normalization; the first of the normalized ones for layer normalization; the last
        for linear, embedding, recurrent, attention and transformer layers; None for the others.
    """
    rule = _rule(type(module))
    if isinstance(rule, int):
        return rule
    if rule == "second":
        return 1 - n_axes
    return -len(module.normalized_shape) if rule == "normalized" else None  # type: ignore[arg-type]


def _find_rule(module_type: type) -> int | str | None:
    for base in module_type.__mro__:
        name = base.__name__
        if spatial := _SPATIAL.fullmatch(name):
            return -int(spatial[1]) - 1
        if name in _LAST:
            return -1
        if name in _SECOND:
            return "second"
        if name in _NORMALIZED:
            return "normalized"
    return None


# One is asked for with every call of every layer. (To mypy a class can't be hashed.)
_rule: Callable[[Any], int | str | None] = lru_cache(maxsize=1024)(_find_rule)


def default_axis(n_axes: int) -> int:
    """Return the axis taken where nothing is known: last of up to three axes, else the second."""
    return -1 if n_axes <= 3 else 1 - n_axes


class ChannelAxes:
    """Tells the axis of the neurons, of tensors as they go through the model.

    What the user gave comes first, then the module's type, then the axis of whatever produced the
    tensor: activations and dropout keep the axis of their input.

    Args:
        given: An axis for all layers; a mapping of layer names, globs, class names or types to
            axes; a callable `(name, module, tensor)` that returns an axis, or None to leave it to
            the rules; or None.
        layers: The probed layers under their names.

    Raises:
        TypeError: `given` is none of these.
        ValueError: A key of the mapping matches none of the layers.
    """

    def __init__(self, given: ChannelAxis, layers: Mapping[str, nn.Module]) -> None:
        self._given = _check_given(given, layers)
        self._known: Any = WeakTensorKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        # What is known of tensors is for this moment; a copy of the model begins anew.
        return {"_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._given = state["_given"]
        self._known = WeakTensorKeyDictionary()

    def need_producers(self, modules: Iterable[nn.Module]) -> bool:
        """Tell whether some of these modules' axes depend on what came before them."""
        return not _is_axis(self._given) and any(_rule(type(m)) is None for m in modules)

    def of_input(self, name: str, module: nn.Module, tensor: torch.Tensor) -> int:
        """Return the axis of the neurons in what a module takes."""
        axis = self._from_user(name, module, tensor)
        if axis is None:
            axis = rule_axis(module, tensor.ndim)
        if axis is None:
            axis = self._known.get(tensor)
        return default_axis(tensor.ndim) if axis is None else axis

    def of_output(
        self, name: str, module: nn.Module, source: torch.Tensor | None, output: torch.Tensor
    ) -> int:
        """Return the axis of the neurons in what a module gives, made from `source`."""
        axis = self._from_user(name, module, output)
        if axis is None:
            axis = self.note(module, source, output)
        else:
            self._known[output] = axis
        return default_axis(output.ndim) if axis is None else axis

    def note(
        self, module: nn.Module, source: torch.Tensor | None, output: torch.Tensor
    ) -> int | None:
        """Remember the axis of a module's output for the modules behind it, if it is known."""
        axis = rule_axis(module, output.ndim)
        if axis is None:
            axis = self._known.get(output)
        if axis is None and source is not None and _same_shape(source, output):
            axis = self._known.get(source)
        if axis is not None:
            self._known[output] = axis
        return axis

    def _from_user(self, name: str, module: nn.Module, tensor: torch.Tensor) -> int | None:
        given = self._given
        if given is None:
            return None
        if isinstance(given, Mapping):
            return next((axis for key, axis in given.items() if matches(key, name, module)), None)
        axis = given(name, module, tensor) if callable(given) else given
        if not (axis is None or _is_axis(axis)):
            raise TypeError(f"channel_axis gave {axis!r}, which is no axis")
        return axis


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    # A nested tensor has no shape to ask for.
    return not (a.is_nested or b.is_nested) and a.shape == b.shape


def _is_axis(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_given(given: ChannelAxis, layers: Mapping[str, nn.Module]) -> ChannelAxis:
    if isinstance(given, Mapping):
        for key, axis in given.items():
            if not _is_axis(axis):
                raise TypeError(f"channel_axis: {axis!r}, given for {key!r}, is no axis")
            if not any(matches(key, name, layer) for name, layer in layers.items()):
                raise ValueError(
                    f"channel_axis: {key!r} matches no layer that is probed. {inventory(layers)}"
                )
    elif not (given is None or callable(given) or _is_axis(given)):
        raise TypeError(
            "channel_axis takes an axis, a mapping of layer names to axes, a callable "
            f"(name, module, tensor) -> axis, or None; got {given!r}"
        )
    return given

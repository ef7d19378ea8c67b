"""Tell which arguments of a layer's call are masks of padding, and of which others."""

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.axis_flow import shape_of
from tensorstate_callbacks.keras.axis_rules import Shape

__all__ = ["get_keras_mask"]

try:
    from keras.src.backend.common.masking import get_keras_mask
except ImportError:  # an earlier Keras

    def get_keras_mask(x: Any) -> Any:
        """Return the mask that goes with a tensor, or None."""
        return getattr(x, "_keras_mask", None)


class Given(NamedTuple):
    """An argument of a call, or an entry of a dict that is one."""

    name: str
    value: Any


def given_to(layer: Any, arguments: Any) -> Iterator[Given]:
    """Yield what a layer is called with.

    Args:
        layer: The layer, or an operation.
        arguments: `(args, kwargs)`.
    """
    args, kwargs = arguments
    kind: Any = type(layer)
    names = _parameters(kind)
    named = [(names[at] if at < len(names) else "", value) for at, value in enumerate(args)]
    for name, value in [*named, *kwargs.items()]:
        if isinstance(value, Mapping):
            yield from (Given(str(key), entry) for key, entry in value.items())
        elif value is not None:
            yield Given(name, value)


@lru_cache(maxsize=1024)
def _parameters(kind: type) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind.call).parameters)[1:]  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError):
        return ()


def names_mask(item: Given) -> bool:
    """Tell whether an argument is a mask by its name."""
    return item.name.endswith("mask")


def concerned_by(item: Given, others: list[Given]) -> list[Any]:
    """Return the arguments that a mask is of, which its name tells."""
    prefix = item.name.removesuffix("mask").removesuffix("_")
    if not prefix:
        return [other.value for other in others[:1]]
    if not item.name.endswith("padding_mask"):
        # As Keras itself names the masks of several tensors.
        return [other.value for other in others if other.name == prefix]
    prefix = prefix.removesuffix("padding").removesuffix("_")
    named = [other.value for other in others if prefix and other.name.startswith(prefix)]
    if named or prefix.startswith("encoder"):
        return named
    return [other.value for other in others]


def is_mask(value: Any) -> bool:
    """Tell whether it may be a mask: samples and positions."""
    if not (isinstance(value, keras.KerasTensor) or keras.ops.is_tensor(value)):
        return False
    shape = shape_of(value)
    return shape is not None and len(shape) > 1


def fits(sizes: Shape | None, tensor: Any) -> bool:
    """Tell whether a mask may be one of a tensor, as far as sizes are known."""
    shape = shape_of(tensor)
    if not sizes or shape is None or len(shape) < len(sizes):
        return False
    return all(None in pair or len({*pair}) == 1 for pair in zip(sizes, shape, strict=False))


def hides_keys(mask: Any) -> bool:
    """Tell a mask of padding from one of causality: it is alike for all queries of a sample."""
    shape = shape_of(mask) if is_mask(mask) else None
    if shape is None or shape[0] == 1:
        return False
    return len(shape) == 2 or all(size == 1 for size in shape[1:-1])

"""Tell whether a part of what passes a layer is padding, by Keras's masks."""

from typing import Any

import keras

from tensorstate_callbacks.keras.axis_flow import shape_of

try:
    from keras.src.backend.common.masking import get_keras_mask
except ImportError:  # an earlier Keras

    def get_keras_mask(x: Any) -> Any:
        """Return the mask that goes with a tensor, or None."""
        return getattr(x, "_keras_mask", None)


_MASK_ARGUMENTS = ("mask", "padding_mask", "query_mask", "key_mask", "value_mask")


def is_padded(layer: Any, arguments: Any, tensor: Any) -> bool:
    """Tell whether a mask goes with a tensor that a layer takes or gives, and isn't used up.

    Args:
        layer: The layer.
        arguments: What it is called with, `(args, kwargs)`.
        tensor: What it takes or gives.
    """
    shape = shape_of(tensor)
    # Samples, steps, neurons: a tensor without steps has no padding any more.
    if shape is None or len(shape) < 3:
        return False
    if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
        return True
    args, kwargs = arguments
    if any(_is_tensor(kwargs.get(name)) for name in _MASK_ARGUMENTS):
        return True
    if _hides_keys(kwargs.get("attention_mask")):
        return True
    leaves = keras.tree.flatten((args, kwargs))
    return any(get_keras_mask(leaf) is not None for leaf in leaves if _is_tensor(leaf))


def _hides_keys(mask: Any) -> bool:
    """Tell a mask of padding from one of causality: it is alike for all queries of a sample."""
    shape = shape_of(mask) if _is_tensor(mask) else None
    if shape is None or len(shape) < 2 or shape[0] == 1:
        return False
    return len(shape) == 2 or all(size == 1 for size in shape[1:-1])


def _is_tensor(value: Any) -> bool:
    leaves = [] if value is None else keras.tree.flatten(value)
    return any(keras.ops.is_tensor(leaf) for leaf in leaves)

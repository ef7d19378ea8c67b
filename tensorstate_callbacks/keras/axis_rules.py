"""Tell by a Keras layer's class and weights which axes hold its neurons.

Axes are counted from the end, so that they also hold where a batch axis is added in front.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import keras

from tensorstate_callbacks.keras.backends import current_backend

Axes: TypeAlias = tuple[int, ...]
Shape: TypeAlias = tuple[int | None, ...]
_Rule: TypeAlias = Callable[[Any, Shape, bool], Axes | None]

LAST: Axes = (-1,)


def class_axes(layer: Any, shape: Shape, *, is_input: bool = False) -> Axes | None:
    """Return the axes that a layer's class says hold the neurons of what it takes or gives.

    Args:
        layer: Any layer. A class that is derived from one of Keras's is believed where its `call`
            is still Keras's, or where the axis has as many entries as the layer has units.
        shape: Of the tensor, batch axis included; None for what isn't known.
        is_input: Whether the layer takes the tensor.

    Returns:
        The axes; None where the class doesn't tell, or the number of axes isn't what it expects.
    """
    rule, own_call = _rule(type(layer))
    axes = None if rule is None else rule(layer, shape, is_input)
    if axes is None or not own_call:
        return axes
    units = getattr(layer, "filters", None) or getattr(layer, "units", None)
    return axes if not is_input and len(axes) == 1 and shape[axes[0]] == units else None


def placed_axes(layer: Any, shape: Shape) -> Axes | None:
    """Return the axes by the `data_format` of a layer that only crops, pads, resizes or drops.

    What is known of the data comes first: such a layer may stand behind any other.
    """
    rank = next((_PLACED[base] for base in type(layer).__mro__ if base in _PLACED), None)
    return None if rank is None else _spatial(layer, shape, rank)


def weight_axes(layer: Any, shape: Shape) -> Axes | None:
    """Return the axis that the layer's own weights tell: a scale, a shift, a bias for each neuron.

    Returns:
        The only axis, past the batch's, whose size is the length of such a weight; None where
        there is none, or several axes come into question.
    """
    lengths = {length for weight in own_weights(layer) if (length := _length(weight.shape))}
    axes = [axis for axis in range(1, len(shape)) if shape[axis] in lengths]
    return (axes[0] - len(shape),) if len(axes) == 1 else None


def own_weights(layer: Any) -> list[Any]:
    """Return the weights that belong to a layer itself, not to layers inside it."""
    return [
        *getattr(layer, "_trainable_variables", ()),
        *getattr(layer, "_non_trainable_variables", ()),
    ]


def usual_axes(layers: Iterable[Any]) -> dict[int, Axes]:
    """Return where the model's layers have the neurons, by the number of axes, if they agree.

    Args:
        layers: Every layer of the model.
    """
    found: dict[int, set[Axes]] = {}
    for layer in layers:
        rank = next((_SPATIAL[base] for base in type(layer).__mro__ if base in _SPATIAL), None)
        if rank is not None:
            first = getattr(layer, "data_format", None) == "channels_first"
            found.setdefault(rank + 2, set()).add((-rank - 1,) if first else LAST)
    return {n_axes: axes.pop() for n_axes, axes in found.items() if len(axes) == 1}


def _length(shape: Sequence[int | None]) -> int | None:
    wide = [size for size in shape if size != 1]
    return wide[0] if len(wide) == 1 else None


def _spatial(layer: Any, shape: Shape, rank: int) -> Axes | None:
    if len(shape) != rank + 2:
        return None
    return (-rank - 1,) if getattr(layer, "data_format", None) == "channels_first" else LAST


def _spatial_rule(rank: int) -> _Rule:
    return lambda layer, shape, is_input: _spatial(layer, shape, rank)


def _global_pooling_rule(rank: int) -> _Rule:
    def rule(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
        return LAST if len(shape) == 2 else _spatial(layer, shape, rank)

    return rule


def _conv_lstm_rule(rank: int) -> _Rule:
    def rule(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
        # Its states, which may be given beside the outputs, have no axis of time.
        steps = shape[:1] + shape[2:] if len(shape) == rank + 3 else shape
        return _spatial(layer, steps, rank)

    return rule


def _last(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return LAST if len(shape) > 1 else None


def _recurrent(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return LAST if len(shape) in (2, 3) else None


def _one_axis(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    axis = layer.axis
    if isinstance(axis, (list, tuple)):
        # Several: all of them are normalized, which doesn't tell where the neurons are.
        axis = axis[0] if len(axis) == 1 else None
    if not isinstance(axis, int) or not -len(shape) <= axis < len(shape):
        return None
    return (axis % len(shape) - len(shape),)


def _einsum(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return einsum_axes(layer.equation, len(shape), is_input=is_input)


def _each_step(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return class_axes(layer.layer, shape[:1] + shape[2:], is_input=is_input)


def _wrapped(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return class_axes(layer.layer, shape, is_input=is_input)


def _both_ways(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    return class_axes(layer.forward_layer, shape, is_input=is_input)


def _torch_module(layer: Any, shape: Shape, is_input: bool) -> Axes | None:
    # Keras's PyTorch backend is the only one that runs such layers.
    backend: Any = current_backend()
    axes: Axes | None = backend.module_axes(layer.module, shape)
    return axes


def einsum_axes(equation: str, n_axes: int, *, is_input: bool = False) -> Axes | None:
    """Return the axes that a dense layer's kernel makes, or takes up, by its einsum equation.

    Examples:
        >>> einsum_axes("abc,cde->abde", 4)
        (-2, -1)
        >>> einsum_axes("...x,xy->...y", 3)
        (-1,)
        >>> einsum_axes("abcd,cde->abe", 4, is_input=True)
        (-2, -1)
    """
    terms, _, output = equation.replace(" ", "").partition("->")
    data, _, kernel = terms.partition(",")
    term, other = (data, output) if is_input else (output, data)
    head, _, tail = term.partition("...")
    if len(head + tail) > n_axes or ("..." not in term and len(term) != n_axes):
        return None
    places = [(letter, at - n_axes) for at, letter in enumerate(head)]
    places += [(letter, at - len(tail)) for at, letter in enumerate(tail)]
    own = tuple(at for letter, at in places if letter in kernel and letter not in other)
    return own or tuple(at for letter, at in places if letter in kernel) or None


def _classes(names: Iterable[str]) -> list[type]:
    """The classes of these names that this Keras has."""
    found = (getattr(keras.layers, name, None) for name in names)
    return [kind for kind in found if kind is not None]


def _of_ranks(patterns: Sequence[str]) -> Mapping[type, int]:
    return {
        kind: rank
        for rank in (1, 2, 3)
        for kind in _classes(pattern.format(rank) for pattern in patterns)
    }


_SPATIAL = _of_ranks(
    [
        *("Conv{}D", "Conv{}DTranspose", "DepthwiseConv{}D", "SeparableConv{}D"),
        *("AveragePooling{}D", "MaxPooling{}D"),
        *("AdaptiveAveragePooling{}D", "AdaptiveMaxPooling{}D"),
    ]
)
_PLACED: dict[type, int] = {
    **_of_ranks(["Cropping{}D", "UpSampling{}D", "ZeroPadding{}D", "SpatialDropout{}D"]),
    **dict.fromkeys(
        _classes(
            [
                *("Resizing", "CenterCrop", "RandomBrightness", "RandomContrast", "RandomCrop"),
                *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
            ]
        ),
        2,
    ),
}
_RULES: dict[type, _Rule] = {
    **{kind: _spatial_rule(rank) for kind, rank in _SPATIAL.items()},
    **{
        kind: _global_pooling_rule(rank)
        for kind, rank in _of_ranks(["GlobalAveragePooling{}D", "GlobalMaxPooling{}D"]).items()
    },
    **{kind: _conv_lstm_rule(rank) for kind, rank in _of_ranks(["ConvLSTM{}D"]).items()},
    **dict.fromkeys(
        _classes(
            [
                *("Dense", "Embedding", "ReversibleEmbedding", "RepeatVector", "Masking"),
                *("MultiHeadAttention", "GroupQueryAttention", "Attention", "AdditiveAttention"),
            ]
        ),
        _last,
    ),
    **dict.fromkeys(_classes(["RNN", "LSTM", "GRU", "SimpleRNN"]), _recurrent),
    **dict.fromkeys(
        _classes(
            [
                *("BatchNormalization", "GroupNormalization", "LayerNormalization"),
                *("RMSNormalization", "Normalization"),
            ]
        ),
        _one_axis,
    ),
    keras.layers.EinsumDense: _einsum,
    keras.layers.TimeDistributed: _each_step,
    keras.layers.SpectralNormalization: _wrapped,
    keras.layers.Bidirectional: _both_ways,
    **dict.fromkeys(_classes(["TorchModuleWrapper"]), _torch_module),
}


def _find_rule(kind: type) -> tuple[_Rule | None, bool]:
    """Return a class's rule, and whether it has a `call` of its own all the same."""
    base = next((base for base in kind.__mro__ if base in _RULES), None)
    if base is None:
        return None, False
    own_call = getattr(kind, "call", None) is not getattr(base, "call", None)
    return _RULES[base], own_call


# One is asked for with every call of every layer. (To mypy a class can't be hashed.)
_rule: Callable[[Any], tuple[_Rule | None, bool]] = lru_cache(maxsize=1024)(_find_rule)


def n_weights(weights: Iterable[Any]) -> int:
    """Return how many numbers the weights hold."""
    return sum(math.prod(weight.shape) for weight in weights)

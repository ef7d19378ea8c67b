"""A Keras model in, its layers under unique names out, and what about them matters to a probe."""

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tensorstate_callbacks.keras.recurrent import within_loops

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
_DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


def named_layers(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return every layer of the model, also those inside other layers, in the model's order.

    A layer inside another is named by its path, `block/conv`; a layer that occurs twice is named
    once; layers of the same name get `_2`, `_3`... appended.
    """
    found: dict[str, keras.layers.Layer] = {}
    seen = {id(model)}

    def walk(parent: keras.layers.Layer, path: str) -> None:
        for layer in parent._layers:
            if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            name = unique = f"{path}{layer.name}"
            number = 2
            while unique in found:
                unique = f"{name}_{number}"
                number += 1
            found[unique] = layer
            walk(layer, f"{unique}/")

    walk(model, "")
    return found


def default_names(model: keras.Model, layers: dict[str, keras.layers.Layer]) -> list[str]:
    """Return the names of all convolution and dense layers but those that make the output.

    What recurrent layers run in their loops is left out, too.

    In a functional or sequential model these are the ones reached first on the way back from each
    output; in a subclassed model, whose way can't be told, it is the last one defined.
    """
    loops = within_loops(layers)
    names = [
        name
        for name, layer in layers.items()
        if isinstance(layer, _CONVOLUTIONS + _DENSE) and name not in loops
    ]
    outputs = _symbolic_outputs(model)
    if outputs is None:
        return names[:-1]
    makers = {id(layer) for layer in _makers(outputs, set())}
    return [name for name in names if id(layers[name]) not in makers]


def channel_axis(layer: keras.layers.Layer) -> int:
    """Return the axis of the neurons in the layer's input and output."""
    if getattr(layer, "data_format", None) == "channels_first":
        return 1
    # Normalization layers say which axis they treat as features.
    axis = getattr(layer, "axis", -1)
    return axis if isinstance(axis, int) else -1


def first_tensor(structure: Any) -> Any:
    """Return the first tensor of nested lists, tuples and dicts, or None."""
    leaves = keras.tree.flatten(structure)
    return next((leaf for leaf in leaves if keras.ops.is_tensor(leaf)), None)


def _symbolic_outputs(model: keras.Model) -> list[Any] | None:
    # A subclassed model has no `outputs`; a sequential one that isn't built yet has none either.
    try:
        outputs = model.outputs
    except (AttributeError, ValueError):
        return None
    return list(outputs) if outputs else None


def _makers(tensors: Iterable[Any], visited: set[int]) -> Iterator[keras.layers.Layer]:
    """Yield the convolution and dense layers that come first on the way back from the tensors."""
    for tensor in tensors:
        operation, node_index, _ = tensor._keras_history
        if id(operation) in visited:
            continue
        visited.add(id(operation))
        if isinstance(operation, _CONVOLUTIONS + _DENSE):
            yield operation
        elif isinstance(operation, keras.Model) and _symbolic_outputs(operation):
            yield from _makers(operation.outputs, visited)
        else:
            inner = [
                layer
                for layer in getattr(operation, "_flatten_layers", list)()
                if isinstance(layer, _CONVOLUTIONS + _DENSE)
            ]
            if inner:
                yield inner[-1]
            else:
                yield from _makers(operation._inbound_nodes[node_index].input_tensors, visited)

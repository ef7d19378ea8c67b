"""Name a Keras model's layers, find those probed by default, and count who holds the weights."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.errors import NoLayerMatchedError
from tensorstate_callbacks.keras.axis_rules import n_weights, own_weights
from tensorstate_callbacks.recording.selection import Pattern, Patterns, check_patterns, matches

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


def with_paths(
    argument: str, patterns: Patterns, layers: Mapping[str, keras.layers.Layer]
) -> tuple[Pattern, ...]:
    """Return patterns with the paths of layers in place of their own names.

    Args:
        argument: What the patterns are given as.
        patterns: See `selection.select_layers`.
        layers: Every layer of the model under its path.

    Raises:
        NoLayerMatchedError: Several layers inside of others have that name.
        TypeError: A pattern is of the wrong kind.
    """
    found = check_patterns(argument, patterns)
    return tuple(path_of(argument, pattern, layers) for pattern in found)


def path_of(argument: str, pattern: Pattern, layers: Mapping[str, keras.layers.Layer]) -> Pattern:
    """Return the path of the layer that has a pattern as its own name, else the pattern."""
    if not isinstance(pattern, str):
        return pattern
    if any(matches(pattern, path, layer) for path, layer in layers.items()):
        return pattern
    paths = [path for path, layer in layers.items() if layer.name == pattern]
    if len(paths) > 1:
        raise NoLayerMatchedError(
            f"{argument}: {len(paths)} layers are named {pattern!r}: {', '.join(paths)}. Name one "
            f"by its path, or all of them by '*/{pattern}'"
        )
    return paths[0] if paths else pattern


class DefaultLayers(NamedTuple):
    """The layers that are probed if none are asked for.

    Attributes:
        names: All convolution and dense layers, but for those that are known to make the output.
        contenders: Sets of these, of each of which the one called last makes an output: that is
            known as soon as the model runs.
        makers: The layers that are known to make an output.
    """

    names: list[str]
    contenders: list[frozenset[str]]
    makers: frozenset[str]


def default_layers(model: keras.Model, layers: dict[str, keras.layers.Layer]) -> DefaultLayers:
    """Return all convolution and dense layers but those that make the output.

    What recurrent layers run in their loops is left out, too.

    In a functional or sequential model these are the ones reached first on the way back from each
    output. In a subclassed model, or a layer with layers inside, whose way can't be told without
    running it, it is the last one called.
    """
    loops = within_loops(layers)
    names = {
        id(layer): name
        for name, layer in layers.items()
        if isinstance(layer, _CONVOLUTIONS + _DENSE) and name not in loops
    }
    outputs = _symbolic_outputs(model)
    groups = [list(names)] if outputs is None else _makers(outputs, set())
    contenders: list[frozenset[str]] = []
    makers: set[str] = set()
    for group in groups:
        members = frozenset(names[key] for key in group if key in names)
        if len(members) > 1:
            contenders.append(members)
        makers |= members if len(members) == 1 else set()
    probed = [name for name in names.values() if name not in makers]
    return DefaultLayers(probed, contenders, frozenset(makers))


def default_names(model: keras.Model, layers: dict[str, keras.layers.Layer]) -> list[str]:
    """Return the names of the default layers as far as they are known without running the model.

    Where the order of calls would tell which one makes the output, the last one defined is taken.
    """
    default = default_layers(model, layers)
    last = {
        next(name for name in reversed(default.names) if name in group)
        for group in default.contenders
    }
    return [name for name in default.names if name not in last]


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


def _makers(tensors: Iterable[Any], visited: set[int]) -> Iterator[list[int]]:
    """Yield the convolution and dense layers that come first on the way back from the tensors.

    Each as the list of its `id`, or of several where an operation has them inside.
    """
    for tensor in tensors:
        operation, node_index, _ = tensor._keras_history
        if id(operation) in visited:
            continue
        visited.add(id(operation))
        if isinstance(operation, _CONVOLUTIONS + _DENSE):
            yield [id(operation)]
        elif isinstance(operation, keras.Model) and _symbolic_outputs(operation):
            yield from _makers(operation.outputs, visited)
        else:
            inner = [
                id(layer)
                for layer in getattr(operation, "_flatten_layers", list)()
                if isinstance(layer, _CONVOLUTIONS + _DENSE)
            ]
            if inner:
                yield inner
            else:
                yield from _makers(operation._inbound_nodes[node_index].input_tensors, visited)


def within_loops(layers: Mapping[str, keras.layers.Layer]) -> dict[str, str]:
    """Return the names of cells and of what is in them, and which recurrent layer runs each.

    Keras calls a cell once more than there are steps, to find out what it gives; what a probe saw
    there would not be what the layer computes.

    Args:
        layers: Every layer of the model under its name.
    """
    loops = {
        id(part): name
        for name, layer in layers.items()
        if isinstance(layer, keras.layers.RNN)
        for part in layer._flatten_layers(include_self=False)
    }
    return {name: loops[id(layer)] for name, layer in layers.items() if id(layer) in loops}


def recomputed_layers(layers: Mapping[str, keras.layers.Layer]) -> set[str]:
    """Return the names of layers whose training steps call them again for the gradients.

    Args:
        layers: Every layer of the model under its name.
    """
    inside = {
        id(part)
        for layer in layers.values()
        if _is_recomputed(layer)
        for part in layer._flatten_layers()
    }
    return {name for name, layer in layers.items() if id(layer) in inside}


def _is_recomputed(layer: keras.layers.Layer) -> bool:
    # What keras.RematScope leaves on a layer; Keras before 3.8 has none.
    scope = getattr(layer, "_remat_mode", None)
    if scope is None or scope.mode is None or scope.mode == "activations":
        return False
    return scope.mode != "list_of_layers" or layer.name in scope.layer_names


def check_outside_loops(
    picked: Mapping[str, keras.layers.Layer], layers: Mapping[str, keras.layers.Layer]
) -> None:
    """Raise `ValueError` if a picked layer runs within the loop of a recurrent layer."""
    inside = within_loops(layers)
    for name in picked:
        if name in inside:
            raise ValueError(
                f"{name} is the cell of a recurrent layer, or in it, and can't be watched: attach "
                f"to the recurrent layer {inside[name]!r}, whose outputs are those of the cell at "
                "all steps (return_sequences=True) or the last one, or exclude the cell"
            )


# Lookup tables have no neurons to count.
_TABLES = (keras.layers.Embedding,)


class WeightAccount(NamedTuple):
    """Who holds a model's weights; see `weight_share.uncovered_message`."""

    owned: dict[str, int]
    covered: int


def account_weights(
    layers: Mapping[str, keras.layers.Layer],
    called: Collection[int],
    probed: Collection[str],
    left_out: Collection[str],
) -> WeightAccount:
    """Return how many weights the probed layers hold, and the others that ran.

    Scales, shifts and biases are left out of the account: it is of matrices.

    Args:
        layers: Every layer under its path.
        called: `id` of each layer that ran.
        probed: Paths of the layers that are probed.
        left_out: Paths of the layers that are left out on purpose.
    """
    counted: set[int] = set()

    def count(weights: list[Any]) -> int:
        new = [weight for weight in weights if id(weight) not in counted and _is_matrix(weight)]
        counted.update(map(id, new))
        return n_weights(new)

    covered = sum(count(layers[name].weights) for name in probed)
    for name in left_out:
        count(layers[name].weights)
    loops = within_loops(layers)
    owned: dict[str, int] = {}
    for name, layer in layers.items():
        if id(layer) not in called or name in loops or isinstance(layer, _TABLES):
            continue
        # What runs in a recurrent layer's loop is its own.
        recurrent = isinstance(layer, keras.layers.RNN)
        size = count(layer.weights if recurrent else own_weights(layer))
        if size:
            owned[name] = size
    return WeightAccount(owned, covered)


def _is_matrix(weight: Any) -> bool:
    return sum(1 for size in weight.shape if size != 1) > 1

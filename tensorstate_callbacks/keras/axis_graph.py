"""Follow the axes of the neurons through a functional model's graph, without running it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.axis_flow import AxisFlow
from tensorstate_callbacks.keras.axis_rules import Axes, usual_axes


class LayerAxes(NamedTuple):
    """Axes in what a layer takes and gives where it is first called, None where nothing tells."""

    before: Axes | None
    after: Axes | None


def axes_of_layers(model: keras.Model, layers: Iterable[Any]) -> Mapping[int, LayerAxes]:
    """Return the axes in what each layer of a functional or sequential model takes and gives.

    Args:
        model: The model; one that isn't built yet has no graph.
        layers: All of its layers.

    Returns:
        The axes, by the `id` of layers and operations, also those of models in the model.
    """
    functional = getattr(model, "_functional", None) or model
    flow, found = AxisFlow(usual_axes(layers)), dict[int, LayerAxes]()
    if getattr(functional, "_operations", None):
        _follow(functional.outputs, flow, found)
    return found


def axes_of_tensor(tensor: Any) -> Axes | None:
    """Return the axes of a symbolic tensor, as the layers behind it tell; None if they don't."""
    if not hasattr(tensor, "_keras_history"):
        return None
    layers = [operation for operation, _ in _nodes_behind([tensor])]
    flow = AxisFlow(usual_axes(layers))
    _follow([tensor], flow, {})
    return _sure(flow, tensor)


def _follow(outputs: Iterable[Any], flow: AxisFlow, found: dict[int, LayerAxes]) -> None:
    for operation, node in _nodes_behind(outputs):
        if not node.input_tensors:
            flow.enter(node.output_tensors)
            continue
        taken = flow.of_input(operation, node.input_tensors[0])
        inner = getattr(operation, "_functional", None) or operation
        if isinstance(operation, keras.Model) and getattr(inner, "_operations", None):
            _copy(flow, node.input_tensors, inner.inputs)
            _follow(inner.outputs, flow, found)
            _copy(flow, inner.outputs, node.output_tensors)
        else:
            arguments = (node.arguments.args, node.arguments.kwargs)
            flow.follow(operation, arguments, node.output_tensors)
        if id(operation) not in found:
            before = taken.axes if taken is not None and taken.sure else None
            found[id(operation)] = LayerAxes(before, _sure(flow, node.output_tensors[0]))


def _copy(flow: AxisFlow, sources: Iterable[Any], targets: Iterable[Any]) -> None:
    for source, target in zip(sources, targets, strict=False):
        known = flow.of(source)
        if known is not None:
            flow.note(target, known)


def _sure(flow: AxisFlow, tensor: Any) -> Axes | None:
    known = flow.of(tensor)
    return known.axes if known is not None and known.sure else None


def _nodes_behind(outputs: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Return the operations behind the outputs with their places in the graph, in order."""
    ordered: list[tuple[Any, Any]] = []
    done: set[int] = set()
    # Not by recursion: deep models have more layers than Python has frames.
    stack = [(tensor, False) for tensor in outputs]
    while stack:
        tensor, entered = stack.pop()
        operation, index, _ = tensor._keras_history
        node = operation._inbound_nodes[index]
        if entered:
            ordered.append((operation, node))
        elif id(node) not in done:
            done.add(id(node))
            stack.append((tensor, True))
            stack += [(each, False) for each in node.input_tensors]
    return ordered

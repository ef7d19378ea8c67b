"""Follow the axes of the neurons from tensor to tensor, in a pass or in a model's graph."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.axis_moves import carried_axes, moved_axes
from tensorstate_callbacks.keras.axis_rules import (
    LAST,
    Axes,
    Shape,
    class_axes,
    placed_axes,
    usual_axes,
    weight_axes,
)


class Found(NamedTuple):
    """Axes of neurons, counted from the end.

    Attributes:
        axes: The axes.
        sure: Whether layers say so; False where another tensor's shape does.
    """

    axes: Axes
    sure: bool


class AxisFlow:
    """What is known of the tensors of one forward pass, in the order in which they come.

    Args:
        usual: Axes by number of axes, for what goes into the model; see `usual_axes`.

    Attributes:
        called: Every layer and operation that ran, in order, as often as it ran.
    """

    def __init__(self, usual: Mapping[int, Axes]) -> None:
        self._usual = usual
        self._by_id: dict[int, tuple[Any, Found]] = {}
        self._by_shape: dict[Shape, Found] = {}
        self._by_rank: dict[int, tuple[Shape, Found]] = {}
        self.called: list[Any] = []

    def begin(self, inputs: Any) -> None:
        """Begin a pass through the model on these inputs."""
        self._by_id.clear()
        self._by_shape.clear()
        self._by_rank.clear()
        self.enter(inputs)

    def enter(self, inputs: Any) -> None:
        """Note inputs of the model, whose axes are those that its layers have in common."""
        for tensor in tensors_in(inputs):
            axes = self._usual.get(len(shape_of(tensor) or ()))
            if axes is not None and self._held(tensor) is None:
                self.note(tensor, Found(axes, True))

    def guess(self, n_axes: int) -> Axes:
        """Return the axes to take where nothing is known."""
        return self._usual.get(n_axes, LAST)

    def of(self, tensor: Any) -> Found | None:
        """Return what is known of a tensor, or else what the latest ones like it tell."""
        held = self._held(tensor)
        if held is not None:
            return held
        shape = shape_of(tensor)
        if shape is None:
            return None
        alike = self._by_shape.get(shape)
        axes = self._from_latest(shape) if alike is None else alike.axes
        return Found(axes, False) if axes else None

    def _from_latest(self, shape: Shape) -> Axes | None:
        """Return the axes that the latest tensor of as many axes tells, if it was cut or split."""
        latest = self._by_rank.get(len(shape))
        if latest is None:
            return None
        before, found = latest
        axes = carried_axes(found.axes, before, shape)
        sizes = {shape[axis] for axis in axes}
        others = [size for at, size in enumerate(shape) if at - len(shape) not in axes]
        # Where another axis has the size as well, it may be the one.
        return axes if axes and None not in sizes and not sizes.intersection(others) else None

    def of_input(self, layer: Any, tensor: Any) -> Found | None:
        """Return the axes in what a layer takes: what it expects them to be, or what is known."""
        shape = shape_of(tensor)
        axes = None if shape is None else class_axes(layer, shape, is_input=True)
        return self.of(tensor) if axes is None else Found(axes, True)

    def note(self, tensor: Any, found: Found) -> None:
        """Remember the axes of a tensor."""
        shape = shape_of(tensor)
        if shape is None or len(shape) < 2:
            return
        self._by_id[id(tensor)] = reference_to(tensor), found
        self._by_shape[shape] = found
        self._by_rank[len(shape)] = shape, found

    def follow(self, operation: Any, arguments: Any, outputs: Any) -> None:
        """Note the axes of what a layer or operation gave, as far as they are known.

        Args:
            operation: The layer or operation.
            arguments: What it was called with, `(args, kwargs)`.
            outputs: What it gave.
        """
        self.called.append(operation)
        inputs = list(tensors_in(arguments))
        for output in tensors_in(outputs):
            found = self._of_output(operation, arguments, inputs, output)
            if found is not None:
                self.note(output, found)

    def _of_output(
        self, operation: Any, arguments: Any, inputs: list[Any], output: Any
    ) -> Found | None:
        shape = shape_of(output)
        if shape is None:
            return None
        axes = class_axes(operation, shape)
        if axes is not None:
            return Found(axes, True)
        held = self._held(output)
        if held is not None:
            return held
        axes = weight_axes(operation, shape)
        if axes is not None:
            return Found(axes, True)
        found = self._from_inputs(operation, arguments, inputs, shape)
        if found is None:
            axes = placed_axes(operation, shape)
            found = None if axes is None else Found(axes, True)
        return self.of(output) if found is None else found

    def _from_inputs(
        self, operation: Any, arguments: Any, inputs: list[Any], shape: Shape
    ) -> Found | None:
        known = [
            (found, before)
            for tensor in inputs
            if (found := self.of(tensor)) and (before := shape_of(tensor))
        ]
        # Of several inputs one of the output's shape tells most, of those a sure one.
        known.sort(key=lambda item: (item[1] != shape, not item[0].sure))
        for found, before in known:
            axes = moved_axes(operation, arguments, found.axes, before, shape)
            if axes:
                return Found(axes, found.sure)
        return None

    def _held(self, tensor: Any) -> Found | None:
        kept, found = self._by_id.get(id(tensor), (None, None))
        return found if kept is not None and kept() is tensor else None


class _Kept:
    """A reference to what takes no weak ones."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __call__(self) -> Any:
        return self._tensor


def reference_to(tensor: Any) -> Callable[[], Any]:
    """Return what gives a tensor as long as it lives, or at all times where it can't tell."""
    try:
        return weakref.ref(tensor)
    except TypeError:
        return _Kept(tensor)


def shape_of(tensor: Any) -> Shape | None:
    """Return a tensor's shape, with None for sizes that aren't known yet; None if none is."""
    try:
        return tuple(None if size is None else int(size) for size in tensor.shape)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        # TensorFlow: of unknown rank; PyTorch: nested tensors; JAX: sizes that are symbols.
        return None


def tensors_in(structure: Any) -> Iterator[Any]:
    """Yield the tensors of nested lists, tuples and dicts."""
    for leaf in keras.tree.flatten(structure):
        if isinstance(leaf, keras.KerasTensor) or keras.ops.is_tensor(leaf):
            yield leaf


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

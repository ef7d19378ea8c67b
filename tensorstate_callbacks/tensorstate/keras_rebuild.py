"""Rebuild a functional or sequential model of the very same layers, with some added or dropped.

Models inside the model are rebuilt too, if something changes in them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
from keras.src.models.functional import Functional, functional_like_constructor


class Around(NamedTuple):
    """Layers that are to stand around another, each taking one tensor and giving one.

    Attributes:
        before: Gets the first tensor that the layer takes, or None.
        after: Gets the first tensor that the layer gives, or None.
    """

    before: keras.layers.Layer | None
    after: keras.layers.Layer | None


def can_rebuild(model: Any) -> bool:
    """Tell whether it is a model whose layers are known without running it."""
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call
    return isinstance(model, Functional) and type(model).call is Functional.call


def layers_within_reach(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield the layers of the model and of the models in it: what something can be put around."""
    for layer in model._layers:
        yield layer
        if can_rebuild(layer):
            yield from layers_within_reach(layer)


class Rebuild:
    """One change to a model and the models in it; a model that occurs twice is rebuilt once.

    Args:
        around: What to put around a layer, under the layer's `id`.
        drop: Tells whether to leave a layer out.
    """

    def __init__(
        self, around: Mapping[int, Around], drop: Callable[[keras.layers.Layer], bool]
    ) -> None:
        self._around, self._drop = around, drop
        self._rebuilt: dict[int, keras.Model] = {}

    def __call__(self, model: keras.Model) -> keras.Model:
        """Return the new model, or the model itself if nothing changes in it.

        Raises:
            TypeError: The class of a model can't be made anew: its constructor takes other things
                than inputs and outputs, or layers.
        """
        if id(model) not in self._rebuilt:
            changes = (
                id(layer) in self._around or self._drop(layer)
                for layer in layers_within_reach(model)
            )
            self._rebuilt[id(model)] = self._anew(model) if any(changes) else model
        return self._rebuilt[id(model)]

    def _anew(self, model: keras.Model) -> keras.Model:
        sequential = isinstance(model, keras.Sequential)
        if sequential:
            parts: tuple[Any, ...] = (list(self._layers(model)),)
            constructor = keras.Sequential.__init__ is type(model).__init__
        else:
            parts = (model.input, model._run_through_graph(model.inputs, self._operation))
            constructor = functional_like_constructor(type(model))
        if not constructor:
            raise TypeError(
                f"the model {model.name!r} can't be rebuilt with states being captured in it: its "
                f"class {type(model).__name__} has a constructor of its own. Watch it with "
                "tensorstate_callbacks.keras.EfficiencyCallback"
            )
        new = type(model)(*parts, name=model.name)
        new._trainable = model._trainable
        if new.dtype_policy != model.dtype_policy:
            new.dtype_policy = model.dtype_policy
        return new

    def _layers(self, model: keras.Sequential) -> Iterator[keras.layers.Layer]:
        for layer in model._layers:
            if self._drop(layer):
                continue
            before, after = self._standing_around(layer)
            if before is not None:
                yield before
            yield self(layer) if can_rebuild(layer) else layer
            if after is not None:
                yield after

    def _standing_around(self, operation: Any) -> Around:
        return self._around.get(id(operation), Around(None, None))

    def _operation(self, operation: Any) -> Callable[..., Any]:
        """Return what to call in place of an operation of the graph."""
        if isinstance(operation, keras.layers.Layer) and self._drop(operation):
            return lambda inputs, **_: inputs
        before, after = self._standing_around(operation)
        rebuilt = self(operation) if can_rebuild(operation) else operation

        def call(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                args, kwargs = _through(before, (args, kwargs))
            outputs = rebuilt(*args, **kwargs)
            return outputs if after is None else _through(after, outputs)

        return call


def _through(layer: keras.layers.Layer, structure: Any) -> Any:
    """Return the nested structure with its first tensor replaced by what the layer makes of it."""
    leaves = keras.tree.flatten(structure)
    at = next(n for n, leaf in enumerate(leaves) if isinstance(leaf, keras.KerasTensor))
    leaves[at] = layer(leaves[at])
    return keras.tree.pack_sequence_as(structure, leaves)

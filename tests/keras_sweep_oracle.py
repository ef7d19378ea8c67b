"""What every layer of a Keras model gives while it evaluates eagerly, and where its neurons lie."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras_models import count_states
from own_warnings import ours

from tensorstate_callbacks import entropy
from tensorstate_callbacks.keras import EfficiencyCallback
from tensorstate_callbacks.keras.layers import named_layers

Given = dict[str, list[np.ndarray]]


def find_leaves(model: Any) -> dict[str, Any]:
    """Every layer of the model, at any depth, that has no layers inside, under its path."""
    return {
        name: layer
        for name, layer in named_layers(model).items()
        if not layer._flatten_layers(include_self=False)
    }


@contextmanager
def collect(layers: Mapping[str, Any]) -> Iterator[Given]:
    """Keep what the layers give, by wrapping their calls as a user might."""
    given: Given = {name: [] for name in layers}

    def keeping(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def keep(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            first = next((t for t in keras.tree.flatten(output) if keras.ops.is_tensor(t)), None)
            if first is not None:
                given[name].append(keras.ops.convert_to_numpy(first))
            return output

        return keep

    for name, layer in layers.items():
        vars(layer)["call"] = keeping(name, layer.call)
    try:
        yield given
    finally:
        for layer in layers.values():
            del vars(layer)["call"]


def evaluate(model: Any, x: Any, batch_size: int, *callbacks: Any) -> None:
    n = len(keras.tree.flatten(x)[0])
    model.evaluate(x, np.zeros(n), batch_size=batch_size, verbose=0, callbacks=list(callbacks))


def find_axes(layer: Any, runs: list[list[np.ndarray]]) -> tuple[int, ...]:
    """The axes, behind the first, whose size is the same in all calls of all runs.

    Where a layer has a weight for each entry of one of them (a norm of each head), it is that one.
    """
    arrays = [array for run in runs for array in run]
    n_axes = {array.ndim for array in arrays}
    if len(n_axes) != 1:
        return ()
    sizes = [{array.shape[axis] for array in arrays} for axis in range(n_axes.pop())]
    constant = tuple(axis for axis, found in enumerate(sizes) if axis and len(found) == 1)
    own = tuple(axis for axis in constant if sizes[axis] <= lengths(layer))
    return own if len(own) == 1 else constant


def lengths(layer: Any) -> set[int]:
    return {weight.shape[0] for weight in layer.weights if len(weight.shape) == 1}


def units(arrays: list[np.ndarray], axes: tuple[int, ...]) -> np.ndarray:
    """The neurons of all positions, shape `(positions, neurons)`."""
    rows = []
    for array in arrays:
        last = np.moveaxis(array, axes, range(-len(axes), 0))
        rows.append(last.reshape(-1, int(np.prod(last.shape[-len(axes) :]))))
    return np.concatenate(rows)


def check_every_layer(model: Any, inputs: list[tuple[Any, int]]) -> int:
    """Compare the neurons and the states of every leaf with NumPy's, exactly.

    The neurons lie on the axes whose size depends neither on the batch nor on the size of the
    input. A layer whose axis is said to be guessed is not compared.

    Args:
        model: Compiled to run eagerly.
        inputs: Data of several sizes, each with the size of its batches.

    Returns:
        How many layers were compared.
    """
    leaves = find_leaves(model)
    # Keras calls the layers once more, to find out shapes, before it evaluates for the first time.
    evaluate(model, *inputs[0])
    runs = []
    for x, batch_size in inputs:
        with collect(leaves) as given:
            evaluate(model, x, batch_size)
        runs.append(given)
    axes = {name: find_axes(layer, [run[name] for run in runs]) for name, layer in leaves.items()}
    wanted = {name for name, found in axes.items() if found}
    compared = set()
    for (x, batch_size), given in zip(inputs, runs, strict=True):
        callback = EfficiencyCallback(lambda name, _: name in wanted, missing_accuracy="ignore")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate(model, x, batch_size, callback)
        told = " ".join(text for text in ours(caught) if "channel_axis=" in text)
        seen = set()
        for probe, report in callback.last.layers.items():
            name = probe.partition("@")[0]
            seen.add(name)
            if f"{name} " in told:
                continue
            if "@" in probe:
                # Called with different numbers of heads, of which no axis is constant.
                assert len({array.shape[-2:] for array in given[name]}) > 1, probe
                continue
            compared.add(name)
            found = report.n_neurons, report.n_states, report.n_distinct, report.entropy
            rows = units(given[name], axes[name])
            if not leaves[name].weights and rows.shape[1] != report.n_neurons:
                # Heads and what each has: the latter may be meant.
                rows = units(given[name], axes[name][-1:])
            counts = count_states(rows)
            assert found == (rows.shape[1], counts.sum(), len(counts), entropy(counts)), name
        assert seen == wanted
    return len(compared)

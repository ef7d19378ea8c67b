"""Count the weights of the layers that ran, in those that are probed and in the others."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import keras

from tensorstate_callbacks.keras.axis_rules import n_weights, own_weights
from tensorstate_callbacks.keras.layers import within_loops

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

"""A model's layers in; those that run within the loop of a recurrent layer out."""

from collections.abc import Mapping

import keras


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

"""A heat map of the layers' efficiencies over the evaluations."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorstate_callbacks.display.plot_style import EFFICIENCY, new_figure
from tensorstate_callbacks.display.view import (
    EvaluationView,
    efficiencies,
    layer_names,
    positions,
    short_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches: a cell that holds a number, and the most that all of them may take.
_CELL = (0.5, 0.3)
_LARGEST = (12.0, 30.0)
_MOST_LABELS = 15


def plot_heat_map(history: Sequence[EvaluationView]) -> "Figure":
    """Draw the efficiency of each layer in each evaluation as a shade of grey.

    Args:
        history: One report per evaluation, as in a callback's `history`.

    Returns:
        A figure with a row per layer, in forward order, and a column per evaluation, darker where
        the layer uses more of its states; crossed out where it wasn't seen. Where they fit, the
        cells hold the numbers.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: The history is empty.
    """
    if not history:
        raise ValueError("there is nothing to draw: the history holds no report yet")
    names = layer_names(history)
    rows = [
        [math.nan if value is None else value for value in efficiencies(history, name)]
        for name in names
    ]
    wide, high = len(history) * _CELL[0], len(names) * _CELL[1]
    numbered = wide <= _LARGEST[0] and high <= _LARGEST[1]
    labels = short_names(names, 40)
    margin = 2.2 + 0.08 * max(map(len, labels))
    width, height = max(min(wide, _LARGEST[0]), 2), max(min(high, _LARGEST[1]), 1.6)
    figure = new_figure(width + margin, height + 1)
    axes = figure.subplots()
    axes.patch.set(hatch="xx", edgecolor="0.7")
    top = max(value for row in rows for value in row if not math.isnan(value))
    image = axes.imshow(
        rows, cmap="Greys", vmin=0, vmax=top or 1, aspect="auto", interpolation="nearest"
    )
    figure.colorbar(image, label=EFFICIENCY, fraction=0.2 / width, pad=0.15 / width)
    if numbered:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    color = "white" if value > 0.6 * top else "black"
                    text = f"{value:.3f}".replace("0.", ".", 1)
                    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    unit, where = positions(history)
    every = math.ceil(len(where) / _MOST_LABELS)
    axes.set_xticks(range(0, len(where), every), [str(at) for at in where[::every]])
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_xlabel(unit)
    axes.set_title("Efficiency of the layers")
    return figure

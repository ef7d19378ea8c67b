"""Plot the neurons of a layer over a training, those that die and those that come back marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.display.plot_style import (
    COLORS,
    HIGHEST,
    evaluation_ticks,
    layer_labels,
    legend_below,
    name_rows,
    new_figure,
    shades,
)
from tensorstate_callbacks.display.view import EvaluationView, lifelines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from tensorstate_callbacks.metrics.lifelines import Lifelines

# Inches of a cell, and the most that all of them may take.
_CELL = (0.5, 0.2)
_WIDEST = 12.0
# Rows that can be told apart in the highest figure; of more neurons several are a row.
_MOST_ROWS = 256


def plot_neurons(history: Sequence[EvaluationView], layer: str) -> "Figure":
    """Draw how often each neuron of a layer fired in each evaluation, as a shade of grey.

    Args:
        history: One report per evaluation, as in a callback's `history`; recorded with
            `neurons=True`, or fresh.
        layer: Name of the layer.

    Returns:
        A figure with a column per evaluation and a row per neuron, darker where it fires more.
        Neurons that fired in the last evaluation are above, by how often they did. Neurons that
        were dead then are below, the one that died last first: a cross marks the first evaluation
        in which it stayed dead, and a triangle one in which a neuron fired again. The numbers
        beside the rows are the neurons' indices. Of more than 256 neurons several neighbours in
        that order share a row, which shows their mean.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        StatesNotAvailableError: Some evaluations don't know how often the neurons fired.
        ValueError: The history is empty, no evaluation has such a layer, or its number of neurons
            changes.
    """
    if not history:
        raise ValueError("there is nothing to draw: the history holds no report yet")
    lines = lifelines(history, layer)
    order = _order(lines)
    n_neurons, n_evaluations = lines.rates.shape
    at_once = -(-n_neurons // _MOST_ROWS)
    starts = np.arange(0, n_neurons, at_once)
    sizes = np.diff(starts, append=n_neurons)
    rows = np.add.reduceat(lines.rates[order], starts, axis=0) / sizes[:, None]
    width = max(min(n_evaluations * _CELL[0], _WIDEST), 4)
    height = max(min(len(rows) * _CELL[1], HIGHEST), 1.6)
    figure = new_figure(width + 2.2, height + 1.6)
    axes = figure.subplots()
    image = shades(axes, rows, vmin=0, vmax=max(float(np.nanmax(rows)), 1e-9))
    figure.colorbar(image, ax=axes, label="firing rate", fraction=0.2 / width, pad=0.15 / width)
    place = np.empty(n_neurons, np.intp)
    place[order] = np.arange(n_neurons) // at_once
    marks = _draw_marks(axes, lines, place)
    evaluation_ticks(axes, lines.evaluations.tolist())
    axes.set_xlabel(lines.unit)
    if at_once == 1:
        name_rows(axes, map(str, order), height, fontsize=7)
        axes.set_ylabel("neuron")
    else:
        axes.set_yticks([])
        axes.set_ylabel(f"{n_neurons:,} neurons, {at_once} a row")
    dead = f"{len(lines.died):,} of {n_neurons:,} dead in the end"
    title = f"Neurons of {layer_labels([layer])[0]}: {dead}"
    axes.set_title(title, fontsize=10, parse_math=False, usetex=False)
    if marks:
        legend_below(axes, marks, 1)
    return figure


def _order(lines: "Lifelines") -> npt.NDArray[np.intp]:
    """Return the neurons from above to below: by the last rate, then by when they died."""
    seen = lines.rates[:, ~np.isnan(lines.rates).all(axis=0)]
    fires = seen > 0
    ends = np.cumsum(fires[:, ::-1], axis=1) == 0
    return np.lexsort((np.arange(len(seen)), -seen.mean(axis=1), ends.sum(axis=1), -seen[:, -1]))


def _draw_marks(
    axes: "Axes", lines: "Lifelines", place: npt.NDArray[np.intp]
) -> dict[str, "Line2D"]:
    """Mark where neurons died and came back; return the marks by what they mean."""
    columns = {number: column for column, number in enumerate(lines.evaluations.tolist())}
    died = {(columns[at], int(place[neuron])) for neuron, at in lines.died.items()}
    back = {(columns[at], int(place[n])) for n, times in lines.came_back.items() for at in times}
    drawn = {}
    kinds: list[tuple[str, set[tuple[int, int]], dict[str, Any]]] = [
        ("died", died, {"marker": "x", "color": COLORS[1]}),
        ("came back", back, {"marker": "^", "color": COLORS[0]}),
    ]
    for label, points, style in kinds:
        if points:
            x, y = zip(*sorted(points), strict=True)
            (drawn[label],) = axes.plot(
                x,
                y,
                linestyle="",
                markersize=4 if len(place) <= _MOST_ROWS else 3,
                label=label,
                **style,
            )
    return drawn

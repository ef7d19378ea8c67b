"""Plots of a training: its curves, and the layers as a heat map, readable in black and white."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorstate_callbacks.display.plot_style import (
    EFFICIENCY,
    HIGHEST,
    MOST_CURVES,
    MOST_PANELS,
    SHARE,
    curve,
    evaluation_ticks,
    grid_of,
    layer_labels,
    legend_below,
    legend_rows,
    name_rows,
    new_figure,
    over_evaluations,
    shades,
    small_panel,
)
from tensorstate_callbacks.display.view import (
    EvaluationView,
    ceilings,
    efficiencies,
    layer_names,
    positions,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


# Inches: a cell that holds a number, and the most that all of them may take.
_CELL = (0.5, 0.3)
_WIDEST = 12.0
_MOST_NUMBERS = 400


def plot_history(history: Sequence[EvaluationView]) -> "Figure":
    """Draw accuracy, network efficiency and aIQ over the epochs, and each layer's efficiency.

    Args:
        history: One report per evaluation, as in a callback's `history`.

    Returns:
        A figure with two panels, one of the network's metrics and one of the layers' efficiencies
        under the ceilings that the number of samples sets, dotted. More than eight layers get a
        small panel each, scaled by its own ceiling, more than forty a heat map. Save or show it
        yourself.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: The history is empty.
    """
    if not history:
        raise ValueError("there is nothing to draw: the history holds no report yet")
    unit, where = positions(history)
    # A finished run may have logged other metrics of some layers only.
    names = [name for name in layer_names(history) if _logged(history, name)]
    if not names:
        figure = new_figure(7, 4)
        _network(figure.subplots(), where, history, unit, 1)
    elif len(names) <= MOST_CURVES:
        labels = layer_labels(names)
        rows = legend_rows(labels, 5)
        figure = new_figure(10, 3.8 + 0.2 * rows)
        network, axes = figure.subplots(1, 2)
        _network(network, where, history, unit, rows)
        curves = {
            label: _layer(axes, where, history, name, label=label, number=number)
            for number, (name, label) in enumerate(zip(names, labels, strict=True))
        }
        over_evaluations(axes, where, top=min(1.0, 1.1 * _top(axes)))
        axes.set(title="Layers (dotted: ceiling)", xlabel=unit, ylabel=EFFICIENCY)
        legend_below(axes, curves, rows)
    elif len(names) > MOST_PANELS:
        width, height = _size(history, names)
        figure = new_figure(10, 4.5 + height)
        ratios = (3.8, 0.7 + height)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios).flat
        _network(upper.subplots(), where, history, unit, 1)
        _heat_map(lower.subplots(), history, names, width, height)
    else:
        rows, columns = grid_of(len(names))
        figure = new_figure(10, 4.5 + 1.3 * rows)
        ratios = (3.8, 0.7 + 1.3 * rows)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios).flat
        _network(upper.subplots(), where, history, unit, 1)
        panels = lower.subplots(rows, columns, sharex=True, squeeze=False)
        for number, (name, axes) in enumerate(zip(names, panels.flat, strict=False)):
            _layer(axes, where, history, name, label=name, number=0, markersize=3)
            small_panel(axes, name, last_row=number + columns >= len(names))
            top = _top(axes)
            over_evaluations(axes, where, top=1.15 * top or 1.0)
            axes.set_yticks([0, top], ["0", f"{top:.2g}"])
        for axes in panels.flat[len(names) :]:
            axes.set_axis_off()
        lower.suptitle("Layers (dotted: ceiling; each panel has its own scale)")
        lower.supxlabel(unit, fontsize=10)
        lower.supylabel(EFFICIENCY, fontsize=10)
    return figure


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
    width, height = _size(history, names)
    margin = 2.2 + 0.08 * max(map(len, layer_labels(names)))
    figure = new_figure(width + margin, height + 1)
    _heat_map(figure.subplots(), history, names, width, height)
    return figure


def _size(history: Sequence[EvaluationView], names: Sequence[str]) -> tuple[float, float]:
    """Return the inches that the cells of a heat map take."""
    wide, high = len(history) * _CELL[0], len(names) * _CELL[1]
    return max(min(wide, _WIDEST), 2), max(min(high, HIGHEST), 1.6)


def _heat_map(
    axes: "Axes",
    history: Sequence[EvaluationView],
    names: Sequence[str],
    width: float,
    height: float,
) -> None:
    rows = [
        [math.nan if value is None else value for value in efficiencies(history, name)]
        for name in names
    ]
    top = max(value for row in rows for value in row if not math.isnan(value))
    image = shades(axes, rows, vmin=0, vmax=top or 1)
    axes.figure.colorbar(image, ax=axes, label=EFFICIENCY, fraction=0.2 / width, pad=0.15 / width)
    fits = len(history) * _CELL[0] <= _WIDEST and len(names) * _CELL[1] <= HIGHEST
    if fits and len(history) * len(names) <= _MOST_NUMBERS:
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                if not math.isnan(value):
                    color = "white" if value > 0.6 * top else "black"
                    text = f"{value:.3f}".replace("0.", ".", 1)
                    axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    unit, where = positions(history)
    evaluation_ticks(axes, where)
    name_rows(axes, names, height)
    axes.set_xlabel(unit)
    axes.set_title("Efficiency of the layers")


def _network(
    axes: "Axes", where: Sequence[int], history: Sequence[EvaluationView], unit: str, rows: int
) -> None:
    metrics = {
        "accuracy": [report.accuracy for report in history],
        "efficiency": [report.efficiency for report in history],
        "aIQ": [report.aiq for report in history],
    }
    drawn = {}
    for number, (label, values) in enumerate(metrics.items()):
        x, y = _points(where, values)
        if x:
            drawn[label] = curve(axes, x, y, label=label, number=number)
    over_evaluations(axes, where, top=1.0)
    axes.set(title="Network", xlabel=unit, ylabel=SHARE)
    legend_below(axes, drawn, rows)


def _layer(
    axes: "Axes",
    where: Sequence[int],
    history: Sequence[EvaluationView],
    name: str,
    **style: Any,
) -> "Line2D":
    line = curve(axes, *_points(where, efficiencies(history, name)), **style)
    x, y = _points(where, ceilings(history, name))
    if x:
        # One point makes no line.
        marker = "_" if len(x) == 1 else ""
        axes.plot(x, y, ":", color=line.get_color(), marker=marker, markersize=12)
    return line


def _points(where: Sequence[int], values: Sequence[float | None]) -> tuple[list[int], list[float]]:
    known = {x: y for x, y in zip(where, values, strict=True) if y is not None}
    return list(known), list(known.values())


def _logged(history: Sequence[EvaluationView], name: str) -> bool:
    return any(value is not None for value in efficiencies(history, name))


def _top(axes: "Axes") -> float:
    return max(float(np.max(np.asarray(line.get_ydata()))) for line in axes.get_lines())

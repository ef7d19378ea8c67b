"""All plots; those of one evaluation are drawn here."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.display.history_plots import plot_heat_map, plot_history
from tensorstate_callbacks.display.plot_style import (
    COLORS,
    EFFICIENCY,
    MOST_CURVES,
    curve,
    grid_of,
    legend_below,
    legend_rows,
    new_figure,
    small_panel,
)
from tensorstate_callbacks.display.view import (
    LOW_COVERAGE,
    EvaluationView,
    layers_of_low_coverage,
    short_names,
)
from tensorstate_callbacks.states.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_heat_map", "plot_history", "plot_layers", "plot_states"]

_RANK = "rank of the state (1: most frequent)"
_OF_STATES = "share of states (0 to 1)"


def plot_layers(report: EvaluationView) -> "Figure":
    """Draw each layer's efficiency as a bar under its ceiling.

    Args:
        report: One evaluation.

    Returns:
        A figure with one bar per layer, hatched where the coverage is below 0.5, so that the bar
        tells more of the number of samples than of the layer. Layers whose efficiency or ceiling
        isn't known are left out.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: There is no layer to draw.
    """
    layers = {
        name: (layer.efficiency, layer.ceiling)
        for name, layer in report.layers.items()
        if layer.efficiency is not None and layer.ceiling is not None
    }
    if not layers:
        raise ValueError("there is nothing to draw: no layer has an efficiency and a ceiling")
    names = short_names(layers, 40)
    figure = new_figure(6 + 0.07 * max(map(len, names)), 1.3 + 0.3 * len(layers))
    axes = figure.subplots()
    where = list(range(len(layers)))
    highest = [max(both) for both in layers.values()]
    axes.barh(where, [ceiling for _, ceiling in layers.values()], fill=False, label="ceiling")
    bars = axes.barh(
        where,
        [efficiency for efficiency, _ in layers.values()],
        height=0.5,
        color=COLORS[4],
        edgecolor="black",
        label="efficiency",
    )
    low = layers_of_low_coverage(report.layers)
    for y, (bar, name) in enumerate(zip(bars, layers, strict=True)):
        efficiency, ceiling = layers[name]
        if name in low:
            bar.set_hatch("////")
        axes.annotate(
            f"{efficiency:.3f} of {ceiling:.3f}",
            (highest[y], y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(where, names)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max(highest) or 1.0)
    axes.set_xlabel(EFFICIENCY)
    note = f"\nhatched: coverage below {LOW_COVERAGE}" if low.keys() & layers.keys() else ""
    axes.set_title(f"Efficiency of the layers (outline: ceiling){note}", fontsize=10)
    return figure


def plot_states(report: EvaluationView) -> "Figure":
    """Draw how unevenly each layer uses its states: rank-abundance curves.

    Args:
        report: One evaluation.

    Returns:
        A figure: the share of the states that each distinct state makes up, the most frequent one
        first, on logarithmic axes. A flat curve uses its states evenly; the lowest level that a
        curve can reach is of states seen once. More than eight layers get a small panel each, all
        of the same scale. Layers whose spectrum isn't known are left out.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: There is no layer to draw.
    """
    layers = {
        name: layer.spectrum for name, layer in report.layers.items() if layer.spectrum is not None
    }
    if not layers:
        raise ValueError("there is nothing to draw: no layer has a spectrum of its states")
    if len(layers) <= MOST_CURVES:
        names = short_names(layers, 40)
        rows = legend_rows(names, 7)
        figure = new_figure(7, 4.3 + 0.2 * rows)
        axes = figure.subplots()
        for number, spectrum in enumerate(layers.values()):
            # Markers by distance on the paper, and not at the same ranks for all curves.
            every = (0.1 * number / len(layers), 0.1)
            x, y = _rank_curve(spectrum)
            curve(axes, x, y, label=names[number], number=number, markevery=every)
        axes.set(xlabel=_RANK, ylabel=_OF_STATES, title="States of the layers by rank")
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        legend_below(axes, rows)
        return figure
    rows, columns = grid_of(len(layers))
    figure = new_figure(10, 1 + 1.4 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels_of_layers = zip(layers.items(), panels.flat, strict=False)
    for number, ((name, spectrum), axes) in enumerate(panels_of_layers):
        axes.plot(*_rank_curve(spectrum), color=COLORS[0])
        axes.set(xscale="log", yscale="log")
        small_panel(axes, name, last_row=number + columns >= len(layers))
    for axes in panels.flat[len(layers) :]:
        axes.set_axis_off()
    figure.suptitle("States of the layers by rank")
    figure.supxlabel(_RANK, fontsize=10)
    figure.supylabel(_OF_STATES, fontsize=10)
    return figure


def _rank_curve(spectrum: Spectrum) -> tuple[list[float], list[float]]:
    # Only the first and the last state of each count: there may be millions of them.
    counts = np.array(spectrum.values[::-1], dtype=np.float64)
    multiplicities = np.array(spectrum.multiplicities[::-1], dtype=np.float64)
    last = np.cumsum(multiplicities)
    ranks: npt.NDArray[np.float64] = np.column_stack([last - multiplicities + 1, last]).ravel()
    shares = np.repeat(counts / spectrum.n_states, 2)
    new = np.append(True, ranks[1:] != ranks[:-1])
    return ranks[new].tolist(), shares[new].tolist()

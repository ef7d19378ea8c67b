"""All plots; those of one evaluation are drawn here."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorstate_callbacks.display.class_plots import plot_classes
from tensorstate_callbacks.display.history_plots import plot_heat_map, plot_history
from tensorstate_callbacks.display.neuron_plots import plot_neurons
from tensorstate_callbacks.display.plot_style import (
    COLORS,
    EFFICIENCY,
    HIGHEST,
    MOST_CURVES,
    MOST_PANELS,
    curve,
    grid_of,
    layer_labels,
    legend_below,
    legend_rows,
    name_rows,
    new_figure,
    shades,
    small_panel,
)
from tensorstate_callbacks.display.view import (
    LOW_COVERAGE,
    EvaluationView,
    layers_of_low_coverage,
)
from tensorstate_callbacks.errors import require
from tensorstate_callbacks.states.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "plot_classes",
    "plot_heat_map",
    "plot_history",
    "plot_layers",
    "plot_neurons",
    "plot_states",
]

_RANK = "rank of the state (1: most frequent)"
_OF_STATES = "share of states (0 to 1)"
_MOST_RANKS = 200


def plot_layers(report: EvaluationView) -> "Figure":
    """Draw each layer's efficiency as a bar under its ceiling, with its rate bound as a mark.

    Args:
        report: One evaluation.

    Returns:
        A figure with one bar per layer, hatched where the coverage is below 0.5, so that the bar
        tells more of the number of samples than of the layer. More than forty bars touch, without
        their numbers. Layers whose efficiency or ceiling isn't known are left out.

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
    labels, many = layer_labels(layers), len(layers) > MOST_PANELS
    height = min(0.3 * len(layers), HIGHEST)
    figure = new_figure(6 + 0.07 * max(map(len, labels)), 1.3 + height)
    axes = figure.subplots()
    low = layers_of_low_coverage(report.layers)
    bounds = [report.layers[name].rate_bound for name in layers]
    highest = [max(*both, bound or 0) for both, bound in zip(layers.values(), bounds, strict=True)]
    (_draw_outlines if many else _draw_bars)(axes, layers, low)
    if any(bound is not None for bound in bounds):
        where = [number for number, bound in enumerate(bounds) if bound is not None]
        known = [bound for bound in bounds if bound is not None]
        # In one piece: a mark for each layer would take longer than the rest of the figure.
        axes.plot(known, where, "|", color=COLORS[1], markersize=9, label="rate bound")
    name_rows(axes, layers, height, fontsize=8 if many else 10)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1.3 * max(highest) or 1.0)
    axes.set_xlabel(EFFICIENCY)
    note = f"\nhatched: coverage below {LOW_COVERAGE}" if low.keys() & layers.keys() else ""
    marks = "outline: ceiling, |: rate bound" if any(bounds) else "outline: ceiling"
    axes.set_title(f"Efficiency of the layers ({marks}){note}", fontsize=10)
    return figure


def _draw_bars(
    axes: "Axes", layers: Mapping[str, tuple[float, float]], low: Collection[str]
) -> None:
    where = list(range(len(layers)))
    axes.barh(where, [ceiling for _, ceiling in layers.values()], fill=False, label="ceiling")
    bars = axes.barh(
        where,
        [efficiency for efficiency, _ in layers.values()],
        height=0.5,
        color=COLORS[4],
        edgecolor="black",
        label="efficiency",
    )
    for y, (bar, (name, both)) in enumerate(zip(bars, layers.items(), strict=True)):
        if name in low:
            bar.set_hatch("////")
        axes.annotate(
            f"{both[0]:.3f} of {both[1]:.3f}",
            (max(both), y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _draw_outlines(
    axes: "Axes", layers: Mapping[str, tuple[float, float]], low: Collection[str]
) -> None:
    """Draw all bars in one: each by itself would take longer than the rest of the figure."""
    edges = np.arange(len(layers) + 1) - 0.5
    efficiencies, ceilings = zip(*layers.values(), strict=True)
    hatched = [both[0] if name in low else 0.0 for name, both in layers.items()]
    styles: list[tuple[Sequence[float], dict[str, Any]]] = [
        (efficiencies, {"fill": True, "color": COLORS[4]}),
        (hatched, {"fill": True, "facecolor": "none", "edgecolor": "black", "hatch": "////"}),
        (ceilings, {"color": "black", "linewidth": 0.7}),
    ]
    for values, style in styles:
        axes.stairs(values, edges, orientation="horizontal", **style)


def plot_states(report: EvaluationView) -> "Figure":
    """Draw how unevenly each layer uses its states: rank-abundance curves.

    Args:
        report: One evaluation.

    Returns:
        A figure of the share of the states that each distinct state makes up, the most frequent
        one first, on logarithmic axes. A flat curve uses its states evenly; the lowest level that a
        curve can reach is that of states seen once. More than eight layers get a small panel each,
        all of the same scale, more than forty a row of a heat map. Layers whose spectrum isn't
        known are left out.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: There is no layer to draw.
    """
    layers = {
        name: layer.spectrum for name, layer in report.layers.items() if layer.spectrum is not None
    }
    if not layers:
        raise ValueError("there is nothing to draw: no layer has a spectrum of its states")
    if len(layers) > MOST_PANELS:
        return _states_as_shades(layers)
    if len(layers) <= MOST_CURVES:
        names = layer_labels(layers)
        rows = legend_rows(names, 7)
        figure = new_figure(7, 4.3 + 0.2 * rows)
        axes = figure.subplots()
        curves = {}
        for number, (name, spectrum) in enumerate(zip(names, layers.values(), strict=True)):
            # Markers by distance on the paper, and not at the same ranks for all curves.
            every = (0.1 * number / len(layers), 0.1)
            x, y = _rank_curve(spectrum)
            curves[name] = curve(axes, x, y, label=name, number=number, markevery=every)
        axes.set(xlabel=_RANK, ylabel=_OF_STATES, title="States of the layers by rank")
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
        legend_below(axes, curves, rows)
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


def _states_as_shades(layers: Mapping[str, Spectrum]) -> "Figure":
    from_one = max(spectrum.n_distinct for spectrum in layers.values())
    # At most one column a rank: below, several would show the same one.
    edges = np.linspace(0, np.log10(from_one + 1), min(from_one, _MOST_RANKS) + 1)
    ranks = np.floor(10 ** ((edges[:-1] + edges[1:]) / 2))
    rows = [_shares_at(spectrum, ranks) for spectrum in layers.values()]
    height = min(0.3 * len(layers), HIGHEST)
    figure = new_figure(10, 1.3 + height)
    axes = figure.subplots()
    colors = require("matplotlib.colors", extra="plot", purpose="Drawing figures")
    image = shades(
        axes, rows, norm=colors.LogNorm(), extent=(0, edges[-1], len(layers) - 0.5, -0.5)
    )
    figure.colorbar(image, label=_OF_STATES, fraction=0.03, pad=0.02)
    decades = range(math.ceil(edges[-1]))
    axes.set_xticks(decades, [f"{10**decade:,}" for decade in decades])
    name_rows(axes, layers, height)
    axes.set(xlabel=_RANK, title="States of the layers by rank")
    return figure


def _shares_at(spectrum: Spectrum, ranks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of the state at each rank; NaN where there is none."""
    counts = np.append(spectrum.values[::-1].astype(np.float64), np.nan)
    last = np.cumsum(spectrum.multiplicities[::-1].astype(np.float64))
    shares: npt.NDArray[np.float64] = counts[np.searchsorted(last, ranks)] / spectrum.n_states
    return shares


def _rank_curve(spectrum: Spectrum) -> tuple[list[float], list[float]]:
    # Only the first and the last state of each count: there may be millions of them.
    counts = np.array(spectrum.values[::-1], dtype=np.float64)
    multiplicities = np.array(spectrum.multiplicities[::-1], dtype=np.float64)
    last = np.cumsum(multiplicities)
    ranks: npt.NDArray[np.float64] = np.column_stack([last - multiplicities + 1, last]).ravel()
    shares = np.repeat(counts / spectrum.n_states, 2)
    new = np.append(True, ranks[1:] != ranks[:-1])
    return ranks[new].tolist(), shares[new].tolist()

"""Evaluations of a training in, one figure of its curves out, readable in black and white."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from tensorstate_callbacks.plot_style import (
    EFFICIENCY,
    MOST_CURVES,
    SHARE,
    curve,
    grid_of,
    legend_below,
    legend_rows,
    new_figure,
    over_evaluations,
    short,
    small_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class LayerFigures(Protocol):
    """What is drawn of a layer: a `LayerReport` has it, and so has a layer of a finished run."""

    @property
    def efficiency(self) -> float:
        """Bits per neuron, 0 to 1."""

    @property
    def ceiling(self) -> float | None:
        """The highest efficiency that so few states can show; None where it isn't known."""


class Evaluation(Protocol):
    """What is drawn of an evaluation: an `EfficiencyReport` has it, and so has a finished run."""

    @property
    def epoch(self) -> int | None:
        """Epoch counted from 0; None outside training."""

    @property
    def accuracy(self) -> float | None:
        """Share, 0 to 1; None where there was none."""

    @property
    def efficiency(self) -> float | None:
        """Network efficiency, share 0 to 1; None where it wasn't logged."""

    @property
    def aiq(self) -> float | None:
        """Share, 0 to 1; None where there is no accuracy."""

    @property
    def layers(self) -> Mapping[str, LayerFigures]:
        """Layer name to figures, in forward order."""


def plot_history(history: Sequence[Evaluation]) -> "Figure":
    """Draw accuracy, network efficiency and aIQ over the epochs, and each layer's efficiency.

    Args:
        history: One report per evaluation, as in a callback's `history`.

    Returns:
        A figure of two panels: the network's figures, and the layers' efficiencies with the
        ceilings that the number of samples sets, dotted. More than eight layers get a small panel
        each, which its own ceiling scales. The caller saves or shows it.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: The history is empty.
    """
    if not history:
        raise ValueError("there is nothing to draw: the history holds no report yet")
    unit, where = positions(history)
    names = list(dict.fromkeys(name for report in history for name in report.layers))
    if not names:
        figure = new_figure(7, 4)
        _network(figure.subplots(), where, history, unit, 1)
    elif len(names) <= MOST_CURVES:
        rows = legend_rows([short(name) for name in names], 5)
        figure = new_figure(10, 3.8 + 0.2 * rows)
        network, axes = figure.subplots(1, 2)
        _network(network, where, history, unit, rows)
        for number, name in enumerate(names):
            _layer(axes, where, history, name, number)
        over_evaluations(axes, where, top=min(1.0, 1.1 * _top(axes)))
        axes.set(title="Layers (dotted: ceiling)", xlabel=unit, ylabel=EFFICIENCY)
        legend_below(axes, rows)
    else:
        rows, columns = grid_of(len(names))
        figure = new_figure(10, 4.5 + 1.3 * rows)
        ratios = (3.8, 0.7 + 1.3 * rows)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios).flat
        _network(upper.subplots(), where, history, unit, 1)
        panels = lower.subplots(rows, columns, sharex=True, squeeze=False)
        for number, (name, axes) in enumerate(zip(names, panels.flat, strict=False)):
            _layer(axes, where, history, name, 0, markersize=3)
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


def positions(history: Sequence[Evaluation]) -> tuple[str, list[int]]:
    """Return the unit of the axis of evaluations, and where each of them is on it.

    That is the epochs, counted from 1 as both frameworks print them. Over several fits, or without
    epochs, the evaluations are counted.
    """
    epochs = [report.epoch + 1 for report in history if report.epoch is not None]
    if len(epochs) == len(history) and epochs == sorted(set(epochs)):
        return "epoch", epochs
    return "evaluation", list(range(1, len(history) + 1))


def _network(
    axes: "Axes", where: Sequence[int], history: Sequence[Evaluation], unit: str, rows: int
) -> None:
    curves: dict[str, list[float | None]] = {
        "accuracy": [report.accuracy for report in history],
        "efficiency": [report.efficiency for report in history],
        "aIQ": [report.aiq for report in history],
    }
    for number, (label, values) in enumerate(curves.items()):
        known = {x: y for x, y in zip(where, values, strict=True) if y is not None}
        if known:
            curve(axes, list(known), list(known.values()), label=label, number=number)
    over_evaluations(axes, where, top=1.0)
    axes.set(title="Network", xlabel=unit, ylabel=SHARE)
    legend_below(axes, rows)


def _layer(
    axes: "Axes",
    where: Sequence[int],
    history: Sequence[Evaluation],
    name: str,
    number: int,
    markersize: float = 5,
) -> None:
    seen = {x: r.layers[name] for x, r in zip(where, history, strict=True) if name in r.layers}
    efficiencies = [layer.efficiency for layer in seen.values()]
    line = curve(
        axes, list(seen), efficiencies, label=short(name), number=number, markersize=markersize
    )
    ceilings = {x: layer.ceiling for x, layer in seen.items() if layer.ceiling is not None}
    if ceilings:
        axes.plot(
            list(ceilings),
            list(ceilings.values()),
            color=line.get_color(),
            linestyle=":",
            marker="_" if len(ceilings) == 1 else "",  # one point makes no line
            markersize=12,
        )


def _top(axes: "Axes") -> float:
    return max(float(np.max(np.asarray(line.get_ydata()))) for line in axes.get_lines())

"""Reports in, Matplotlib figures out, readable in black and white."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorstate_callbacks._optional import require
from tensorstate_callbacks.report import EfficiencyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_MARKERS = "osD^vPX*"
_STYLES = ("-", "--", "-.")


def plot_history(history: Sequence[EfficiencyReport]) -> "Figure":
    """Draw accuracy, network efficiency and aIQ over the epochs, and each layer's efficiency.

    Args:
        history: One report per evaluation, as in a callback's `history`.

    Returns:
        A figure of two panels: the network's figures, and the layers' efficiencies with the
        ceilings that the number of samples sets, dotted. The caller saves or shows it.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: The history is empty.
    """
    if not history:
        raise ValueError("there is nothing to draw: the history holds no report yet")
    figure = _figure(10, 4)
    network, layers = figure.subplots(1, 2)
    unit, where = _positions(history)
    curves: dict[str, list[float | None]] = {
        "accuracy": [report.accuracy for report in history],
        "efficiency": [report.efficiency for report in history],
        "aIQ": [report.aiq for report in history],
    }
    for number, (label, values) in enumerate(curves.items()):
        known = {x: y for x, y in zip(where, values, strict=True) if y is not None}
        if known:
            _curve(network, list(known), list(known.values()), label=label, number=number)
    _label(network, "Network", unit, "share (0 to 1)")
    names = dict.fromkeys(name for report in history for name in report.layers)
    for number, name in enumerate(names):
        seen = {
            x: report.layers[name]
            for x, report in zip(where, history, strict=True)
            if name in report.layers
        }
        efficiencies = [layer.efficiency for layer in seen.values()]
        line = _curve(layers, list(seen), efficiencies, label=name, number=number)
        ceilings = [layer.ceiling for layer in seen.values()]
        layers.plot(list(seen), ceilings, ":", color=line.get_color())
    _label(layers, "Layers (dotted: ceiling)", unit, "efficiency (bits per neuron)")
    return figure


def plot_layers(report: EfficiencyReport) -> "Figure":
    """Draw each layer's efficiency as a bar under its ceiling.

    Args:
        report: One evaluation.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = _figure(7, 1 + 0.4 * len(report.layers))
    axes = figure.subplots()
    names = list(report.layers)
    axes.barh(names, [x.ceiling for x in report.layers.values()], fill=False, label="ceiling")
    axes.barh(names, [x.efficiency for x in report.layers.values()], height=0.5, label="efficiency")
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("efficiency (bits per neuron)")
    axes.legend(loc="lower right")
    return figure


def _figure(width: float, height: float) -> "Figure":
    # A Figure of its own: pyplot's global state and choice of window system stay untouched.
    module = require("matplotlib.figure", extra="plot", purpose="Drawing figures")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained", dpi=150)
    return figure


def _positions(history: Sequence[EfficiencyReport]) -> tuple[str, list[int]]:
    # Epochs counted from 1, as both frameworks print them. Over several fits, or without epochs,
    # the evaluations are counted.
    epochs = [report.epoch + 1 for report in history if report.epoch is not None]
    if len(epochs) == len(history) and epochs == sorted(set(epochs)):
        return "epoch", epochs
    return "evaluation", list(range(1, len(history) + 1))


def _curve(
    axes: "Axes", x: Sequence[float], y: Sequence[float], *, label: str, number: int
) -> "Line2D":
    (line,) = axes.plot(
        x,
        y,
        linestyle=_STYLES[number % len(_STYLES)],
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        markevery=max(1, len(x) // 12),
        label=label,
    )
    return line


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_ylim(0, 1.02)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    # Below the axes: inside, it would hide a curve.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)

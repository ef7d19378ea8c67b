"""Draw the curves of trainings on random labels, and what stopping them leads to."""

from collections.abc import Mapping, Sequence
from typing import Any

from epoch_metrics import curve
from matplotlib.figure import Figure
from seed_intervals import bands_of, interval_of
from stopping import NO_STOP, ORACLE, RULES, restored
from study import NAMES

Groups = Mapping[tuple[str, float], Sequence[dict[str, Any]]]

# What the panels show: metric, words, line, color.
_CURVES = (
    ("test_accuracy", "accuracy on true labels (test)", "-", "C0"),
    ("val_accuracy", "accuracy on noisy labels (validation)", "--", "C1"),
    ("efficiency", "the paper's efficiency, network", "-.", "C2"),
    ("grouped/efficiency", "efficiency in groups of 8, network", "-", "C3"),
    ("grouped/layers/conv_3/efficiency", "efficiency in groups of 8, conv_3", ":", "C4"),
)


def draw_curves(groups: Groups) -> Figure:
    """Draw metrics over the epochs: a row for each framework, a column for each share of noise.

    Args:
        groups: The trainings of each framework and share of random labels.
    """
    figure, panels = _panels(groups, sharex=True, sharey=True)
    for group, axes in panels.items():
        for metric, label, line, color in _CURVES:
            mean, half = bands_of([curve(run, metric) for run in groups[group]])
            epochs = range(1, len(mean) + 1)
            axes.plot(epochs, mean, line, color=color, label=label)
            axes.fill_between(epochs, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
        axes.set_ylim(0, 1)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    _label_bottom(figure, "epoch")
    handles, labels = next(iter(panels.values())).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_stops(groups: Groups, patience: int) -> Figure:
    """Draw the test accuracy that each rule leads to, in the same rows and columns.

    Args:
        groups: The trainings of each framework and share of random labels.
        patience: Epochs without progress to put up with.
    """
    figure, panels = _panels(groups, sharey=True)
    rules = (*RULES, NO_STOP, ORACLE)
    for group, axes in panels.items():
        by_rule = [restored(groups[group], rule, patience) for rule in rules]
        # Thin lines join what one seed's training came to.
        axes.plot(by_rule, range(len(rules)), "-", color="0.8", linewidth=0.8, zorder=1)
        for y, values in enumerate(by_rule):
            mean, half = interval_of(values)
            axes.plot(values, [y] * len(values), ".", color="0.6", zorder=2)
            axes.errorbar(mean, y, xerr=half, fmt="o", color="black", capsize=4, zorder=3)
        axes.set_yticks(range(len(rules)), rules)
        axes.set_ylim(len(rules) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    _label_bottom(figure, "accuracy on true labels (test)")
    return figure


def _label_bottom(figure: Figure, label: str) -> None:
    for axes in figure.axes:
        if axes.get_subplotspec().is_last_row():
            axes.set_xlabel(label)


def _panels(groups: Groups, **shared: Any) -> tuple[Figure, dict[tuple[str, float], Any]]:
    frameworks, noises = ({group[i]: None for group in groups} for i in (0, 1))
    size = (max(3.1 * len(noises) + 0.8, 9), 2.9 * len(frameworks) + 1)  # or the legend is cut
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(len(frameworks), len(noises), squeeze=False, **shared)
    panels = {}
    for row, framework in zip(axes, frameworks, strict=True):
        for panel, noise in zip(row, noises, strict=True):
            panel.set_title(f"{NAMES[framework]}, {noise:.0%} random", fontsize="medium")
            panels[framework, noise] = panel
    return figure, panels

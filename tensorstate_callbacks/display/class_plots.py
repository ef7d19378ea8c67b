"""Draw how far apart the states of classes lie, beside the same for shuffled labels."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tensorstate_callbacks.display.class_tables import with_classes
from tensorstate_callbacks.display.plot_style import drawable, new_figure, shades
from tensorstate_callbacks.display.view import EvaluationView, short
from tensorstate_callbacks.errors import list_some
from tensorstate_callbacks.metrics.classes import ClassMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More layers than these in one figure are too small to read.
_MOST_LAYERS = 8
_MOST_TICKS = 12
# Of so few classes the cells have room for numbers.
_MOST_NUMBERED = 12
# Where all are below it, they are written with three digits.
_SMALL = 0.1
_NAMES = {
    "divergence": "Jensen-Shannon divergence (bits)",
    "overlap": "share of the row's states that the column's class showed too",
}


def plot_classes(
    report: EvaluationView,
    layer: str | None = None,
    *,
    metric: Literal["divergence", "overlap"] = "divergence",
) -> "Figure":
    """Draw how far apart the states of each two classes lie, as a matrix in shades of grey.

    Beside each matrix stands the one of labels shuffled by sample, on the same scale: what both
    show comes from having seen few states, and says nothing about the classes.

    Args:
        report: One evaluation, recorded with `classes=`.
        layer: Its name; None draws all that have metrics of classes, at most eight: those where
            classes and shuffled labels differ most.
        metric: `"divergence"`, Jensen-Shannon's, 0 where two classes show the same states equally
            often to 1 bit where they have none in common; or `"overlap"`, the share of the row's
            states that the column's class showed too.

    Returns:
        A figure with a row for each layer. Of up to twelve classes the cells hold the numbers.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ValueError: There is no such layer or metric, or there are no metrics of pairs of classes.
    """
    if metric not in _NAMES:
        raise ValueError(f"metric takes {' or '.join(map(repr, _NAMES))}; got {metric!r}")
    known = {n: c for n, c in with_classes(report.layers).items() if c.divergence is not None}
    if layer is not None and layer not in known:
        raise ValueError(
            f"there are no metrics of pairs of classes of {layer!r}; there are of "
            f"{list_some(known) or 'no layer'}: record with classes=, of at most 100 classes"
        )
    if not known:
        raise ValueError(
            "there is nothing to draw: no layer has metrics of pairs of classes; record with "
            "classes=, of at most 100 classes"
        )
    drawn = _largest(known) if layer is None else {layer: known[layer]}
    figure = new_figure(8.2, 0.4 + 3.5 * len(drawn))
    panels = figure.subplots(len(drawn), 2, squeeze=False)
    for (name, classes), pair in zip(drawn.items(), panels, strict=True):
        _draw_layer(pair, name, classes, metric)
    return figure


def _largest(known: Mapping[str, ClassMetrics]) -> dict[str, ClassMetrics]:
    def beyond(name: str) -> float:
        classes = known[name]
        return (classes.mean_divergence or 0.0) - (classes.mean_shuffled_divergence or 0.0)

    chosen = set(sorted(known, key=beyond, reverse=True)[:_MOST_LAYERS])
    return {name: classes for name, classes in known.items() if name in chosen}


def _draw_layer(pair: Any, name: str, classes: ClassMetrics, metric: str) -> None:
    values = getattr(classes, metric), getattr(classes, f"shuffled_{metric}")
    n = classes.n_classes
    apart = [[x for at, x in enumerate(m.reshape(-1).tolist()) if at % (n + 1)] for m in values]
    # A class and itself say nothing: their cells are crossed out.
    top = max((x for each in apart for x in each), default=0.0) or 1.0
    title = short(drawable([name])[0], 30)
    for axes, matrix, what in zip(pair, values, ("", ", labels shuffled"), strict=True):
        rows = matrix.tolist()
        for at in range(n):
            rows[at][at] = math.nan
        image = shades(axes, rows, vmin=0, vmax=top)
        axes.set_title(f"{title}{what}", fontsize=10, parse_math=False, usetex=False)
        _name_classes(axes, classes)
        if n <= _MOST_NUMBERED:
            _write_numbers(axes, rows, top)
    pair[0].figure.colorbar(image, ax=list(pair), label=_in_lines(_NAMES[metric]), pad=0.02)


def _name_classes(axes: "Axes", classes: ClassMetrics) -> None:
    labels = [str(label) for label in classes.labels.tolist()]
    every = math.ceil(len(labels) / _MOST_TICKS) if len(labels) > _MOST_NUMBERED else 1
    places = range(0, len(labels), every)
    axes.set_xticks(places, labels[::every], fontsize=8)
    axes.set_yticks(places, labels[::every], fontsize=8)
    axes.set_xlabel("class", fontsize=9)
    axes.set_ylabel("class", fontsize=9)


def _write_numbers(axes: "Axes", rows: list[list[float]], top: float) -> None:
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            if not math.isnan(value):
                color = "white" if value > 0.55 * top else "black"
                text = f"{value:{'.3f' if top < _SMALL else '.2f'}}"
                text = text.removeprefix("0") if value < 0.995 else "1"
                axes.text(x, y, text, ha="center", va="center", color=color, fontsize=7)


def _in_lines(text: str, width: int = 36) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)

"""Curves and legends that stay apart in black and white."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.display.view import short
from tensorstate_callbacks.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# More curves than these in one panel can't be told apart: each then gets a small one of its own.
MOST_CURVES = 8
# Okabe and Ito's colours (2008), which colour-blind readers tell apart, without the yellow.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#8C564B",
    "#7F7F7F",
)
SHARE = "share (0 to 1)"
EFFICIENCY = "efficiency (bits per neuron)"
_MARKERS = "osD^vPX*"
_STYLES = ("-", "--", "-.")
_LEGEND_POINTS = 9


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of `width` times `height` inches.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    # A Figure of its own: pyplot's global state and choice of window system stay untouched.
    module = require("matplotlib.figure", extra="plot", purpose="Drawing figures")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained", dpi=150)
    return figure


def curve(
    axes: "Axes", x: Sequence[float], y: Sequence[float], *, number: int, **style: Any
) -> "Line2D":
    """Draw the curve of that `number`: its color, marker and dashes are its own among eight."""
    (line,) = axes.plot(
        x,
        y,
        color=COLORS[number % len(COLORS)],
        linestyle=_STYLES[number % len(_STYLES)],
        marker=_MARKERS[number % len(_MARKERS)],
        **{"markersize": 5, "markevery": max(1, len(x) // 12), **style},
    )
    return line


def legend_below(axes: "Axes", rows: int) -> None:
    """Put the legend below the axes in at most `rows` rows: inside, it would hide a curve."""
    labels = axes.get_legend_handles_labels()[1]
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4.5,  # in sizes of its font: the ticks and the axis' name are in between
        ncols=math.ceil(len(labels) / rows),
        frameon=False,
        fontsize=_LEGEND_POINTS,
    )


def legend_rows(labels: Sequence[str], width: float) -> int:
    """Return in how many rows a legend of these labels fits into `width` inches."""
    # A letter is some 0.6 of the font's size wide; a sample of the curve and two gaps add 4.5.
    entry = (0.6 * max(map(len, labels)) + 4.5) * _LEGEND_POINTS
    columns = min(max(int(72 * width / entry), 1), 4)
    return math.ceil(len(labels) / columns)


def grid_of(count: int, *, width: float = 10) -> tuple[int, int]:
    """Return rows and columns for `count` small panels in a figure `width` inches wide."""
    columns = min(max(int(width / 2), 1), max(math.ceil(math.sqrt(count)), 1))
    return math.ceil(count / columns), columns


def over_evaluations(axes: "Axes", where: Sequence[int], *, top: float) -> None:
    """Set the axes to evaluations at the whole numbers `where`, and to shares from 0 to `top`."""
    axes.set_ylim(0, 1.02 * top)
    axes.set_xlim(min(where) - 0.5, max(where) + 0.5)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)


def small_panel(axes: "Axes", name: str, *, last_row: bool) -> None:
    """Set the axes to be one of many, with the layer's name above, in two lines if it is long."""
    line = 26
    title = short(name, 2 * line - 8)
    if len(title) > line:
        # After the last mark that parts words, if there is one.
        end = max(title.rfind(mark, 0, line) for mark in "./_") + 1 or line
        title = f"{title[:end]}\n{title[end:]}"
    axes.set_title(title, fontsize=7, pad=3)
    axes.tick_params(labelsize=7, labelbottom=last_row)
    axes.grid(alpha=0.3)

"""Curves, shades and names of layers, readable in black and white, whatever the names are."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.display.view import printable, short, short_names
from tensorstate_callbacks.errors import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

# More curves than these in one panel can't be told apart: each then gets a small one of its own.
MOST_CURVES = 8
# Panels take 0.1 s each to draw: of more layers than these there is a heat map.
MOST_PANELS = 40
# Inches that a figure of many layers may be high.
HIGHEST = 9.0
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
_MOST_LABELS = 15
_ROW_INCHES = 0.2  # of a layer's name
# Of texts with names in them, whose `$` is no mathematics and whose `_` no TeX.
_AS_WRITTEN: dict[str, Any] = {"parse_math": False, "usetex": False}


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of `width` times `height` inches.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    # A Figure of its own: pyplot's global state and choice of window system stay untouched.
    module = require("matplotlib.figure", extra="plot", purpose="Drawing figures")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained", dpi=150)
    # IPython draws pyplot's figures by itself, and others by this.
    figure._repr_png_ = partial(_draw_png, figure)  # type: ignore[attr-defined]
    return figure


def _draw_png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


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


def drawable(names: Iterable[str]) -> list[str]:
    """Return names in letters that the figures' fonts have; others stand as Python writes them."""
    known = _letters(*_font_families())
    return [
        "".join(
            sign if ord(sign) in known else sign.encode("unicode_escape").decode() for sign in name
        )
        for name in map(printable, names)
    ]


def legend_below(axes: "Axes", curves: Mapping[str, "Line2D"], rows: int) -> None:
    """Put the legend below the axes in at most `rows` rows: inside, it would hide a curve."""
    legend = axes.legend(
        list(curves.values()),
        # Matplotlib leaves out what begins with `_`.
        ["name"] * len(curves),
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4.5,  # in sizes of its font: the ticks and the axis' name are in between
        ncols=math.ceil(len(curves) / rows),
        frameon=False,
        fontsize=_LEGEND_POINTS,
    )
    for text, name in zip(legend.get_texts(), curves, strict=True):
        text.set(text=name, **_AS_WRITTEN)


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
    title = short(drawable([name])[0], 2 * line - 8)
    if len(title) > line:
        # After the last mark that parts words, if there is one.
        end = max(title.rfind(mark, 0, line) for mark in "./_") + 1 or line
        title = f"{title[:end]}\n{title[end:]}"
    axes.set_title(title, fontsize=7, pad=3, **_AS_WRITTEN)
    axes.tick_params(labelsize=7, labelbottom=last_row)
    axes.grid(alpha=0.3)


def name_rows(axes: "Axes", names: Iterable[str], height: float, fontsize: float = 8) -> None:
    """Write the layers' names beside the rows 0, 1, 2...: as many as fit into `height` inches."""
    labels = layer_labels(names)
    every = math.ceil(len(labels) * _ROW_INCHES / height)
    axes.set_yticks(range(0, len(labels), every), labels[::every], fontsize=fontsize, **_AS_WRITTEN)


def evaluation_ticks(axes: "Axes", where: Sequence[int]) -> None:
    """Write the numbers of evaluations below columns 0, 1, 2...: as many as fit."""
    every = math.ceil(len(where) / _MOST_LABELS)
    axes.set_xticks(range(0, len(where), every), [str(at) for at in where[::every]])


def layer_labels(names: Iterable[str]) -> list[str]:
    """Return the names of layers as figures show them."""
    return short_names(drawable(names), 40)


def shades(axes: "Axes", rows: Any, **style: Any) -> "AxesImage":
    """Draw rows of numbers as shades of grey; crossed out where there is none."""
    axes.patch.set(hatch="xx", edgecolor="0.7")
    return axes.imshow(rows, cmap="Greys", aspect="auto", interpolation="nearest", **style)


def _font_families() -> tuple[str, ...]:
    manager = require("matplotlib.font_manager", extra="plot", purpose="Drawing figures")
    return tuple(manager.FontProperties().get_family())


@lru_cache(maxsize=8)
def _letters(*families: str) -> frozenset[int]:
    manager: Any = require("matplotlib.font_manager", extra="plot", purpose="Drawing figures")
    paths = {manager.findfont(manager.FontProperties(family=[name])) for name in families}
    return frozenset().union(*(manager.get_font(path).get_charmap() for path in paths))

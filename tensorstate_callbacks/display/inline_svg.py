"""Matplotlib figures in, SVG out that a page can hold: in its colours, with ids of its own."""

import re
from io import StringIO
from typing import TYPE_CHECKING

from tensorstate_callbacks.errors import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = re.compile(r'width="([\d.]+)pt" height="([\d.]+)pt" viewBox')


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """Return the figure as an SVG element.

    Args:
        figure: The figure; its background is taken away.
        name: Put before all ids, which must differ in all of a page.
        description: What it shows, for readers who can't see it.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="plot", purpose="Drawing figures")
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    written = StringIO()
    # Text stays text: it can be searched and copied, and takes the reader's fonts.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("#000000", "currentColor").replace("xlink:href", "href")
    # As wide as the page has room, where the figure is not smaller.
    svg = _POINTS.sub(r'style="width:\1pt" viewBox', svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)

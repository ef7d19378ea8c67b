"""Lay out TensorBoard's Custom Scalars tab: which curves are drawn in one chart.

A run has one layout, under one tag, and TensorBoard shows the one written last: who adds charts to
a run must write those along that it has.
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import require

LAYOUT_TAG = "custom_scalars__config__"
NETWORK_CHART = "Efficiency, aIQ and accuracy"
_PIECE = 1 << 20


class Curves(NamedTuple):
    """What the charts of one callback draw.

    Attributes:
        category: Title of the group of charts.
        network: Tags of the network's curves, as regular expressions.
        layers: Names of the layers' metrics, with a regular expression of the tags of all layers.
    """

    category: str
    network: Sequence[str]
    layers: Sequence[tuple[str, str]]


def exactly(tag: str) -> str:
    """Return the regular expression of a tag; TensorBoard looks for it at the tags' beginnings.

    Example:
        >>> exactly("epoch_efficiency")
        'epoch_efficiency$'
    """
    return f"{re.escape(tag)}$"


def below(tag: str) -> str:
    """Return the regular expression of all tags below one, such as those of the layers.

    It doesn't name the layers, so that runs with layers of other names share the chart.

    Example:
        >>> below("epoch_efficiency")
        'epoch_efficiency/.+'
    """
    return f"{re.escape(tag)}/.+"


def efficiency_layout(curves: Curves) -> Any:
    """Return the layout with a chart of the network, and one for each metric of the layers.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    charts = [_chart(NETWORK_CHART, curves.network)]
    for metric, tags in curves.layers:
        words = metric.replace("_", " ").capitalize()
        charts.append(_chart(f"{words} of the layers", [tags]))
    return _layouts().Layout(category=[{"title": curves.category, "chart": charts}])


def merge_layouts(there: Any, ours: Any) -> Any:
    """Return a layout with the charts of both.

    Args:
        there: The layout that the run has, or None.
        ours: Takes the place of charts of the same titles in a category of the same title.
    """
    merged = _layouts().Layout(version=ours.version)
    if there is not None:
        merged.CopyFrom(there)
    for category in ours.category:
        same = [mine for mine in merged.category if mine.title == category.title]
        place = same[0] if same else merged.category.add(title=category.title)
        titles = {chart.title for chart in category.chart}
        others = [chart for chart in place.chart if chart.title not in titles]
        charts = [*category.chart, *others]
        del place.chart[:]
        place.chart.extend(charts)
    return merged


def layout_as_dict(layout: Any) -> dict[str, dict[str, list[Any]]]:
    """Return a layout as `SummaryWriter.add_custom_scalars` takes it.

    Raises:
        ValueError: It can't be said that way: a chart has several curves with margins.
    """
    return {
        category.title: {chart.title: _chart_as_list(chart) for chart in category.chart}
        for category in layout.category
    }


def read_layout(folder: str) -> Any | None:
    """Return the layout that TensorBoard would show for a run; None where it has none.

    Args:
        folder: The run's folder, or a URL that TensorBoard can read.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    accumulator = require(
        "tensorboard.backend.event_processing.event_accumulator",
        extra="tensorboard",
        purpose="A chart layout",
    )
    # TensorFlow's access to files where it is installed, TensorBoard's own otherwise.
    files = require("tensorboard.compat", extra="tensorboard", purpose="A chart layout").tf.io.gfile
    names = files.listdir(folder) if files.isdir(folder) else []
    content = None
    for path in sorted(os.path.join(folder, name) for name in names if "tfevents" in name):
        # Nearly all event files hold none, and to look for its name is fast.
        if _mentions(files, path, LAYOUT_TAG.encode()):
            events = accumulator.EventAccumulator(path, {accumulator.TENSORS: 1}).Reload()
            if LAYOUT_TAG in events.Tags()[accumulator.TENSORS]:
                content = events.Tensors(LAYOUT_TAG)[-1].tensor_proto.string_val[0]
    return None if content is None else _layouts().Layout.FromString(content)


def _layouts() -> Any:
    return require(
        "tensorboard.plugins.custom_scalar.layout_pb2",
        extra="tensorboard",
        purpose="A chart layout",
    )


def _chart(title: str, tags: Sequence[str]) -> dict[str, Any]:
    return {"title": title, "multiline": {"tag": list(tags)}}


def _chart_as_list(chart: Any) -> list[Any]:
    if not chart.HasField("margin"):
        return ["Multiline", list(chart.multiline.tag)]
    if len(chart.margin.series) != 1:
        raise ValueError(f"the run's chart {chart.title!r} has several curves with margins")
    series = chart.margin.series[0]
    return ["Margin", [series.value, series.lower, series.upper]]


def _mentions(files: Any, path: str, word: bytes) -> bool:
    with files.GFile(path, "rb") as file:
        end = b""
        while piece := file.read(_PIECE):
            if word in end + piece:
                return True
            end = piece[-len(word) :]
    return False

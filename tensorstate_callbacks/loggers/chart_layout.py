"""Tags of curves in; the layout of TensorBoard's Custom Scalars tab out, merged with what is there.

A run has one layout, under one tag, and TensorBoard shows the one written last: who adds charts to
a run must write those along that it has.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorstate_callbacks.errors import require

LAYOUT_TAG = "custom_scalars__config__"
NETWORK_CHART = "Efficiency, aIQ and accuracy"
_DT_STRING = 7  # of TensorFlow's types


class Curves(NamedTuple):
    """What the charts of one callback draw.

    Attributes:
        category: Title of the group of charts.
        network: Tags of the network's curves, as regular expressions.
        layers: Names of the layers' figures, with a regular expression of the tags of all layers.
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
    """Return the layout with a chart of the network, and one for each figure of the layers.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """
    charts = [_chart(NETWORK_CHART, curves.network)]
    for figure, tags in curves.layers:
        words = figure.replace("_", " ").capitalize()
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


def layout_summary(layout: Any) -> Any:
    """Return the summary that lays out a run, for an event file."""
    metadata = require(
        "tensorboard.plugins.custom_scalar.metadata", extra="tensorboard", purpose="A chart layout"
    )
    return string_summary(
        LAYOUT_TAG, metadata.create_summary_metadata(), [layout.SerializeToString()], shape=()
    )


def parse_layout(content: bytes) -> Any:
    """Return the layout that was written as `content`."""
    return _layouts().Layout.FromString(content)


def string_summary(tag: str, metadata: Any, content: list[bytes], shape: tuple[int, ...]) -> Any:
    """Return a summary of one tensor of strings.

    Args:
        tag: Its tag.
        metadata: Tells TensorBoard what draws it.
        content: The strings, in C order.
        shape: The tensor's shape.
    """
    protos = require(
        "tensorboard.compat.proto.summary_pb2", extra="tensorboard", purpose="A summary"
    )
    tensor = {
        "dtype": _DT_STRING,
        "string_val": content,
        "tensor_shape": {"dim": [{"size": size} for size in shape]},
    }
    return protos.Summary(value=[{"tag": tag, "metadata": metadata, "tensor": tensor}])


def _layouts() -> Any:
    return require(
        "tensorboard.plugins.custom_scalar.layout_pb2",
        extra="tensorboard",
        purpose="A chart layout",
    )


def _chart(title: str, tags: Sequence[str]) -> dict[str, Any]:
    return {"title": title, "multiline": {"tag": list(tags)}}

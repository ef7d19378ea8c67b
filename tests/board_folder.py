"""Read a TensorBoard log folder through TensorBoard's own plugins."""

import io
import json
import warnings
from pathlib import Path

import matplotlib.image
import numpy as np
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util.tensor_util import make_ndarray

with warnings.catch_warnings():
    # Of the html5lib that TensorBoard brings along.
    warnings.filterwarnings("ignore", "html5lib's sanitizer is deprecated", DeprecationWarning)
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin

TAG = "custom_scalars__config__"
NETWORK, LAYERS = "Efficiency, aIQ and accuracy", "Efficiency of the layers"


class BoardFolder:
    """What TensorBoard shows of a folder.

    Args:
        folder: The log folder.
    """

    def __init__(self, folder):
        multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
        plugins = {}
        shared = TBContext(
            data_provider=MultiplexerDataProvider(multiplexer, str(folder)),
            plugin_name_to_instance=plugins,
        )
        plugins["scalars"] = ScalarsPlugin(shared)
        self._custom = CustomScalarsPlugin(shared)
        self._runs = sorted(multiplexer.Runs())

    def layout(self):
        """Return category to chart title to regular expressions, of all runs."""
        # JSON, or {} where there is none.
        layout = self._custom.layout_impl(context.RequestContext(), "")
        layout = json.loads(layout) if layout else {}
        return {
            category["title"]: {
                chart["title"]: chart["multiline"]["tag"] for chart in category["chart"]
            }
            for category in layout.get("category", [])
        }

    def curves(self, category, chart):
        """Return run and tag to values, of each curve that the chart draws."""
        drawn = {}
        # As the page asks for them.
        tags = "|".join(f"({tag})" for tag in self.layout()[category][chart])
        for run in self._runs:
            answer = self._custom.scalars_impl(context.RequestContext(), run, tags, "")
            assert answer["regex_valid"]
            for tag, points in answer["tag_to_events"].items():
                drawn[run, tag] = [value for _, _, value in points]
        return drawn


def read_run(folder):
    """Return tag to steps and values, of all that a run's folder holds."""
    # 0: keep all.
    kinds = ("scalars", "tensors", "images", "histograms", "compressedHistograms", "audio")
    events = EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()
    tags = events.Tags()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["images"]:
        images = events.Images(tag)
        found[tag] = [(e.step, (e.width, e.height, e.encoded_image_string)) for e in images]
    for tag in tags["tensors"]:
        values = [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        found[tag] = [(step, v if v.dtype == object else v.tolist()) for step, v in values]
    return found


def layouts(folder):
    """Return the layouts that were written into a run's folder, in order."""
    return [
        layout_pb2.Layout.FromString(content.item()) for _, content in read_run(folder).get(TAG, [])
    ]


def pictures(folder, tag):
    """Return the steps of a picture's tag, and the pixels that were shown there."""
    shown = []
    for step, (width, height, png) in read_run(folder)[tag]:
        pixels = matplotlib.image.imread(io.BytesIO(png))
        assert pixels.shape[:2] == (int(height), int(width))
        shown.append((step, np.asarray(pixels)))
    return shown


def drawn(figure):
    """Return the pixels of a figure in the size that TensorBoard gets."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return matplotlib.image.imread(io.BytesIO(file.getvalue()))


def event_files(folder):
    """Return how many event files each folder below has."""
    files = [path.parent for path in Path(folder).rglob("*tfevents*")]
    return {str(parent.relative_to(folder)): files.count(parent) for parent in files}


def layout_of(categories):
    """Return a layout of category to chart title to tags."""
    return layout_pb2.Layout(
        category=[
            {
                "title": category,
                "chart": [{"title": t, "multiline": {"tag": tags}} for t, tags in charts.items()],
            }
            for category, charts in categories.items()
        ]
    )

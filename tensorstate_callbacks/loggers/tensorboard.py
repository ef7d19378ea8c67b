"""Add charts, and figures where they are asked for, to the TensorBoard run of a fit.

The charts are the layout of the tab Custom Scalars: which curves are drawn in one chart. A run has
one layout, under one tag, and TensorBoard shows the one written last: who adds charts to a run must
write those along that it has.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tensorstate_callbacks.display.history_plots import plot_heat_map
from tensorstate_callbacks.display.plots import plot_states
from tensorstate_callbacks.display.view import printable
from tensorstate_callbacks.errors import TensorStateWarning, require
from tensorstate_callbacks.loggers.neurons import draw_neurons
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import check_layer_metrics
from tensorstate_callbacks.reports.report import EfficiencyReport, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYOUT_TAG = "custom_scalars__config__"
NETWORK_CHART = "Efficiency, aIQ and accuracy"
_PIECE = 1 << 20
_DPI = 100  # TensorBoard shows images of this size without scaling them down


class BoardRun(Protocol):
    """A run of TensorBoard that the framework writes its scalars into."""

    @property
    def folder(self) -> str:
        """Folder of the run's event files, or its URL."""

    def tag(self, key: str) -> str:
        """Return the tag of a metric of the callback, whose key has no stage before it."""

    def accuracy(self, settings: Settings, logs: Mapping[str, Any]) -> str | None:
        """Return the accuracy's tag as a regular expression; None where none is logged."""

    def step(self, epoch: int, report: EfficiencyReport) -> int:
        """Return the step at which the framework writes the scalars of a report."""

    def write_layout(self, layout: Any) -> None:
        """Write a layout of charts, so that TensorBoard shows it."""

    def write_layout_last(self, layout: Any) -> None:
        """Write a layout after the fit, where another one was written later than ours."""

    def write_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Write a figure into the file that the framework writes into."""

    def flush(self) -> None:
        """See to it that everything written is in the file."""


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


class TensorBoardTracker:
    """Lays efficiency, aIQ and accuracy over each other in one chart, and the layers in another.

    With `log_extras="figures"` each recorded epoch gets two figures as well, and with
    `neurons=True` one more of each of the first layers.

    Args:
        run: The run.
    """

    def __init__(self, run: BoardRun) -> None:
        self._run = run
        self._settings = Settings()
        self._curves: Curves | None = None

    @property
    def name(self) -> str:
        """See `Tracker.name`."""
        return f"TensorBoard's run {self._run.folder}"

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """Prepare for a fit; see `Tracker.begin`."""
        self._settings = settings

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """Lay out the charts if they aren't yet, and draw; see `Tracker.epoch`."""
        curves = self._find_curves(logs)
        if curves != self._curves:
            layout = self._find_missing(curves)
            if layout is not None:
                self._run.write_layout(layout)
            self._curves = curves
        if self._settings.log_extras == "figures":
            step = self._run.step(epoch, report)
            self._draw("efficiency_heat_map", plot_heat_map(history), step)
            self._draw("rank_abundance", plot_states(report), step)
            if self._settings.neurons:
                for name, figure in draw_neurons(history):
                    self._draw(name, figure, step)

    def end(self, history: History) -> None:
        """Lay out the charts again where somebody did so later; see `Tracker.end`."""
        if self._curves is not None:
            layout = self._find_missing(self._curves)
            if layout is not None:
                self._run.write_layout_last(layout)

    def _find_curves(self, logs: Mapping[str, Any]) -> Curves:
        settings = self._settings
        network = [exactly(self._tag("efficiency")), exactly(self._tag("aiq"))]
        accuracy = self._run.accuracy(settings, logs)
        return Curves(
            category=f"Efficiency ({printable(settings.prefix)})"
            if settings.prefix
            else "Efficiency",
            network=network if accuracy is None else [*network, accuracy],
            layers=[
                (metric, below(self._tag(metric)))
                for metric in check_layer_metrics(settings.layer_metrics)
            ],
        )

    def _tag(self, name: str) -> str:
        return self._run.tag(self._settings.prefix + name)

    def _find_missing(self, curves: Curves) -> Any | None:
        """Return the layout to write; None where the run's own has our charts."""
        self._run.flush()
        there = read_layout(self._run.folder)
        merged = merge_layouts(there, efficiency_layout(curves))
        return None if merged == there else merged

    def _draw(self, name: str, figure: "Figure", step: int) -> None:
        figure.set_dpi(_DPI)
        self._run.write_figure(self._tag(name), figure, step)


def warn_of_no_board(way_out: str) -> None:
    """Warn that nothing will be drawn.

    Args:
        way_out: What to give, and to whom.
    """
    warnings.warn(
        'log_extras="figures" draws into TensorBoard, and this fit has none: give '
        f"{way_out}, or leave log_extras out",
        TensorStateWarning,
        stacklevel=2,
    )


def check_drawing(settings: Settings) -> None:
    """Raise `MissingExtraError` if figures are asked for, and Matplotlib is not installed."""
    if settings.log_extras == "figures":
        purpose = 'EfficiencyCallback(log_extras="figures")'
        require("matplotlib.figure", extra="plot", purpose=purpose)


def exactly(tag: str) -> str:
    """Return the regular expression of a tag; TensorBoard looks for it at the tags' beginnings.

    Examples:
        >>> exactly("epoch_efficiency")
        'epoch_efficiency$'
    """
    return f"{re.escape(tag)}$"


def below(tag: str) -> str:
    """Return the regular expression of all tags below one, such as those of the layers.

    It doesn't name the layers, so that runs with layers of other names share the chart.

    Examples:
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
        if os.path.lexists(path) and not os.path.isfile(path):
            continue  # A pipe would be waited for without end.
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

"""Add charts, and figures where they are asked for, to the TensorBoard run of a fit."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tensorstate_callbacks.display.history_plots import plot_heat_map
from tensorstate_callbacks.display.plots import plot_states
from tensorstate_callbacks.errors import TensorStateWarning, require
from tensorstate_callbacks.loggers.chart_layout import (
    Curves,
    below,
    efficiency_layout,
    exactly,
    merge_layouts,
    read_layout,
)
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import check_layer_metrics
from tensorstate_callbacks.reports.report import EfficiencyReport, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


class TensorBoardTracker:
    """Lays efficiency, aIQ and accuracy over each other in one chart, and the layers in another.

    With `log_extras="figures"` each recorded epoch gets two figures as well.

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
            category=f"Efficiency ({settings.prefix})" if settings.prefix else "Efficiency",
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

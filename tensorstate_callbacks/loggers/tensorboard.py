"""Reports of a fit in; charts and pictures in a TensorBoard run of it out."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tensorstate_callbacks.errors import TensorStateWarning, require
from tensorstate_callbacks.loggers.chart_layout import (
    Curves,
    below,
    efficiency_layout,
    exactly,
    layout_summary,
    merge_layouts,
)
from tensorstate_callbacks.loggers.event_files import read_layout, write_layout
from tensorstate_callbacks.loggers.picture import picture_summary
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.history import History
from tensorstate_callbacks.reports.layer_report import check_layer_metrics
from tensorstate_callbacks.reports.report import EfficiencyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def write(self, summary: Any, step: int) -> None:
        """Write into the file that the framework writes into."""

    def flush(self) -> None:
        """See to it that everything written is in the file."""


class TensorBoardTracker:
    """Lays efficiency, aIQ and accuracy over each other in one chart, and the layers in another.

    With `log_extras="figures"` each recorded epoch gets two pictures as well. Where they can't be
    written, one warning says so, and training goes on.

    Args:
        run: The run.
    """

    def __init__(self, run: BoardRun) -> None:
        self._run = run
        self._curves: Curves | None = None
        self._failed = False

    def begin(self, settings: Settings, layers: Sequence[str]) -> None:
        """Prepare for a fit; see `Tracker.begin`.

        Raises:
            MissingExtraError: Figures are asked for, and Matplotlib is not installed.
        """
        check_drawing(settings)
        self._settings = settings

    def epoch(
        self, epoch: int, report: EfficiencyReport, history: History, logs: Mapping[str, Any]
    ) -> None:
        """Lay out the charts if they aren't yet, and draw; see `Tracker.epoch`."""
        self._try(self._lay_out, self._find_curves(logs))
        if self._settings.log_extras == "figures":
            self._try(self._draw, self._run.step(epoch, report), report, history)

    def end(self, history: History) -> None:
        """Lay out the charts again where somebody did so later; see `Tracker.end`."""
        if self._curves is not None:
            self._try(self._repair, self._curves)

    def _find_curves(self, logs: Mapping[str, Any]) -> Curves:
        settings = self._settings
        network = [exactly(self._tag("efficiency")), exactly(self._tag("aiq"))]
        accuracy = self._run.accuracy(settings, logs)
        return Curves(
            category=f"Efficiency ({settings.prefix})" if settings.prefix else "Efficiency",
            network=network if accuracy is None else [*network, accuracy],
            layers=[
                (figure, below(self._tag(figure)))
                for figure in check_layer_metrics(settings.layer_metrics)
            ],
        )

    def _tag(self, figure: str) -> str:
        return self._run.tag(self._settings.prefix + figure)

    def _lay_out(self, curves: Curves) -> None:
        if curves == self._curves:
            return
        self._run.flush()
        layout = efficiency_layout(curves)
        there = read_layout(self._run.folder)
        merged = merge_layouts(there, layout)
        if merged != there:
            self._run.write(layout_summary(merged), 0)
        self._curves = curves

    def _repair(self, curves: Curves) -> None:
        self._run.flush()
        there = read_layout(self._run.folder)
        merged = merge_layouts(there, efficiency_layout(curves))
        if merged != there:
            # The framework's own file may be closed, or older than the one with that layout.
            write_layout(self._run.folder, merged)

    def _draw(self, step: int, report: EfficiencyReport, history: History) -> None:
        from tensorstate_callbacks.display.heat_map import plot_heat_map
        from tensorstate_callbacks.display.plots import plot_states

        self._show(
            "efficiency_heat_map",
            plot_heat_map(history),
            "Efficiency of each layer in each epoch.",
            step,
        )
        self._show(
            "rank_abundance",
            plot_states(report),
            "How often each layer's states occur, the most frequent one first.",
            step,
        )

    def _show(self, name: str, figure: "Figure", description: str, step: int) -> None:
        self._run.write(picture_summary(self._tag(name), figure, description), step)

    def _try(self, write: Callable[..., None], *args: Any) -> None:
        # Whatever is wrong with files or libraries must not end a training.
        if self._failed:
            return
        try:
            write(*args)
        except Exception as error:  # noqa: BLE001
            self._failed = True
            warnings.warn(
                f"TensorBoard's run {self._run.folder} gets no more charts or pictures of this "
                f"fit: {type(error).__name__}: {error}. Its scalars are not touched by that; "
                "log_extras=None leaves it at them",
                TensorStateWarning,
                stacklevel=2,
            )


def warn_of_no_board(way_out: str) -> None:
    """Say that nothing will be drawn.

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

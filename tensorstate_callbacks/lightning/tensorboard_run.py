"""Write into the run of a TensorBoardLogger."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.loggers.chart_layout import layout_as_dict
from tensorstate_callbacks.recording.accuracy import accuracy_keys
from tensorstate_callbacks.recording.settings import Settings
from tensorstate_callbacks.reports.metric_keys import safe_key
from tensorstate_callbacks.reports.report import EfficiencyReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FABRICS = ("lightning_fabric.loggers.tensorboard", "lightning.fabric.loggers.tensorboard")
# Lightning's own ends of tags: of what is logged by step too, and of several dataloaders.
_ENDS = r"(_epoch)?(/dataloader_idx_\d+)?$"


def is_board(logger: Any) -> bool:
    """Tell whether it is a TensorBoardLogger, under either of Lightning's names."""
    return any(
        base.__name__ == "TensorBoardLogger" and base.__module__ in _FABRICS
        for base in type(logger).__mro__
    )


class LightningBoardRun:
    """The run of a TensorBoardLogger; see `loggers.tensorboard.BoardRun`.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        # A logger's own prefix, which it puts before all keys.
        prefix = logger._prefix
        self._lead = f"{prefix}{logger.LOGGER_JOIN_CHAR}" if prefix else ""

    @property
    def folder(self) -> str:
        """Folder of the run's event files, or its URL."""
        return str(self._logger.log_dir)

    def tag(self, key: str) -> str:
        """Return the tag that Lightning writes a metric under, whose key has no stage before it."""
        return self._lead + safe_key(f"val_{key}")

    def accuracy(self, settings: Settings, logs: Mapping[str, Any]) -> str | None:
        """Return the accuracy's tag as a regular expression; None where none is logged."""
        if callable(settings.accuracy):
            return None
        plain = {re.sub(_ENDS, "", key) for key in logs}
        keys = accuracy_keys(settings.accuracy, "val")
        key = next((key for key in keys if key in logs or key in plain), None)
        return None if key is None else re.escape(self._lead + re.sub(_ENDS, "", key)) + _ENDS

    def step(self, epoch: int, report: EfficiencyReport) -> int:
        """Return the step at which Lightning writes the scalars of a report."""
        return epoch if report.step is None else report.step

    def write_layout(self, layout: Any) -> None:
        """Write a layout of charts into the file that Lightning writes into."""
        self._logger.experiment.add_custom_scalars(layout_as_dict(layout))

    # A writer that is closed opens a new file, later than the other's.
    write_layout_last = write_layout

    def write_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Write a figure into the file that Lightning writes into."""
        self._logger.experiment.add_figure(tag, figure, step)

    def flush(self) -> None:
        """See to it that everything written is in the file."""
        self._logger.experiment.flush()

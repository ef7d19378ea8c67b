"""The reports of a training, one per evaluation; rows of all of them out."""

from typing import Any

from tensorstate_callbacks._optional import require
from tensorstate_callbacks.report import EfficiencyReport


class History(list[EfficiencyReport]):
    """Reports in the order of their evaluations: a list that knows how to show itself."""

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one row per evaluation and layer; see `EfficiencyReport.to_dicts`."""
        return [row for report in self for row in report.to_dicts()]

    def to_frame(self) -> Any:
        """Return the rows of `to_dicts` as a pandas DataFrame.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="pandas", purpose="A data frame")
        return pandas.DataFrame(self.to_dicts())

    def figure(self) -> Any:
        """Draw accuracy, efficiency and aIQ over the epochs, and the layers; see `plot_history`.

        Raises:
            MissingExtraError: Matplotlib is not installed.
            ValueError: The history is empty.
        """
        from tensorstate_callbacks.plots import plot_history

        return plot_history(self)

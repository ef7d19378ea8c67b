"""The reports of a training, one per evaluation; rows of all of them out."""

from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, SupportsIndex, overload

from tensorstate_callbacks.display.html_table import history_fragment
from tensorstate_callbacks.display.text_table import history_table
from tensorstate_callbacks.errors import require
from tensorstate_callbacks.reports.report import EfficiencyReport


class History(list[EfficiencyReport]):
    """Reports in the order of their evaluations: a list that knows how to show itself."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> EfficiencyReport: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: SupportsIndex | slice) -> "EfficiencyReport | History":
        if isinstance(index, slice):
            return History(super().__getitem__(index))
        return super().__getitem__(index)

    def __add__(self, other: Iterable[EfficiencyReport]) -> "History":  # type: ignore[override]
        return History([*self, *other])

    def copy(self) -> "History":
        """Return a history of the same reports."""
        return History(self)

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

    def table(self) -> str:
        """Return one line per evaluation: the network's figures, and the layers' while they fit."""
        return history_table(self)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        # Only rich asks for it, so it is there.
        from tensorstate_callbacks.display.rich_table import rich_history

        yield rich_history(self, options.max_width)

    def _repr_html_(self) -> str:
        return history_fragment(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a page or a file to `load`; see `EfficiencyReport.save`.

        Args:
            path: Where to; a file that is there is replaced.

        Raises:
            ValueError: The name ends in neither .html nor .json, or a page would be empty.
            FileNotFoundError: There is no such folder.
            MissingExtraError: Matplotlib, which draws the page's figures, is not installed.
        """
        from tensorstate_callbacks.reports.saving import save

        save(self, [report.to_dict() for report in self], path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "History":
        """Read what `save` wrote to `run.json`, of a history or of one report.

        Raises:
            ValueError: The file holds something else.
        """
        from tensorstate_callbacks.reports.saving import load

        return cls(load(path))

    def figure(self) -> Any:
        """Draw accuracy, efficiency and aIQ over the epochs, and the layers; see `plot_history`.

        Raises:
            MissingExtraError: Matplotlib is not installed.
            ValueError: The history is empty.
        """
        from tensorstate_callbacks.display.plots import plot_history

        return plot_history(self)

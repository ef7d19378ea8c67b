"""The reports of a training, one per evaluation."""

from collections.abc import Iterable
from os import PathLike
from typing import Any, SupportsIndex, overload

from tensorstate_callbacks.display.tables import history_html, history_text
from tensorstate_callbacks.errors import require
from tensorstate_callbacks.reports.report import EfficiencyReport, read_reports, write_json


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
        """Return one line per evaluation: the network's metrics, and the layers' while they fit."""
        return history_text(self)

    def _repr_html_(self) -> str:
        return history_html(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write a JSON file that `load` reads; see `EfficiencyReport.save`.

        Args:
            path: Where to, ending in .json; a file that is there is replaced once the new one is
                whole.

        Raises:
            ValueError: The name ends in something else.
            FileNotFoundError: There is no such folder.
        """
        write_json([report.to_dict() for report in self], path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "History":
        """Read the file that `save` wrote, of a history or of one report.

        Raises:
            ValueError: The file holds something else.
        """
        return cls(read_reports(path))

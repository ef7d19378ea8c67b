"""Reports and a path in; a page to read, or a file to read them back from, out."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tensorstate_callbacks.reports.report import EfficiencyReport


def save(reports: Sequence[EfficiencyReport], content: Any, path: str | PathLike[str]) -> None:
    """Write the reports as a page, or their content as JSON; see `EfficiencyReport.save`.

    Args:
        reports: Evaluations, the oldest first.
        content: What a JSON file holds of them.
        path: Where to, ending in .html, .htm or .json.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in (".html", ".htm", ".json"):
        raise ValueError(
            f"{file.name!r}: a page to read is saved as .html or .htm, a file to load again as "
            ".json; for a picture, save the figure: .figure().savefig('run.png')"
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(file.parent)!r} to save {file.name!r} in: make it first"
        )
    if suffix == ".json":
        text = json.dumps(content)
    else:
        from tensorstate_callbacks.display.page import page

        text = page(reports)
    file.write_text(text, encoding="utf-8")


def load(path: str | PathLike[str]) -> list[EfficiencyReport]:
    """Read the reports that `save` wrote as JSON, one or many.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = [content] if isinstance(content, Mapping) else content
        return [EfficiencyReport.from_dict(figures) for figures in found]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} does not hold reports that save('run.json') of this version wrote: "
            f"{type(error).__name__}: {error}"
        ) from error

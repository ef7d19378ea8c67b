"""Divide the table of benchmarks/RESULTS.md over docs/benchmarks.md as the site is built.

In that page `<!-- rows: pack -->` stands for the rows of a part, `<!-- targets -->` for how many
targets are met, `<!-- machines -->` for what was measured where and when, and
`<!-- more: training: LeNet-5 in Keras, training steps -->` for how much more that row takes than
what it is compared with, such as 0.8 %.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.exceptions import PluginError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
_PLACE = re.compile(r"^<!-- (targets|machines|rows: ([\w-]+)) -->$", re.MULTILINE)
_MORE = re.compile(r"<!-- more: ([\w-]+): (.+?) -->")
# Beyond that, the rows without a target are folded away.
_MOST_OPEN = 16


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        part: Which benchmark it belongs to.
        case: What was measured.
        ours: Our number.
        against: What it is compared with.
        theirs: The number of that.
        ratio: Of the two.
        target: What was to be reached; empty where nothing was set.
        note: `met` or `missed`, where there is a target, and what else is to be said.
    """

    part: str
    case: str
    ours: str
    against: str
    theirs: str
    ratio: str
    target: str
    note: str

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or `not measured`; empty where there is no target."""
        if not self.target:
            return ""
        first = self.note.partition(";")[0]
        return first if first in ("met", "missed") else "not measured"


def read_rows(text: str) -> list[Row]:
    """Return the rows of a results file."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [Row(*(cell.strip() for cell in line.split("|")[1:-1])) for line in lines[2:]]


def count_targets(rows: list[Row]) -> str:
    """Say how many targets are met and missed, in all and by part."""
    parts = list(dict.fromkeys(row.part for row in rows))
    verdicts = ("met", "missed", "not measured")

    def numbers(some: list[Row]) -> list[int]:
        return [sum(row.verdict == verdict for row in some) for verdict in verdicts]

    met, missed, unknown = numbers(rows)
    by_part = [[part, *numbers([r for r in rows if r.part == part])] for part in parts]
    lines = [[f"[{part}](#{part})", *counts] for part, *counts in by_part if any(counts)]
    return "\n\n".join(
        [
            f"Of {met + missed + unknown} targets, **{met} are met and {missed} are missed**; "
            f"{unknown} could not be judged, for lack of a GPU.",
            _table(["part", *verdicts], lines),
        ]
    )


def part_tables(rows: list[Row]) -> str:
    """Return the rows of one part as tables: those with a target, the others folded where many."""
    judged = [row for row in rows if row.target]
    if len(rows) <= _MOST_OPEN or len(judged) == len(rows):
        return _rows_table(rows)
    folded = [f'??? note "All {len(rows)} rows"']
    for name in dict.fromkeys(_network(row) for row in rows):
        some = [row for row in rows if _network(row) == name]
        table = _rows_table([row._replace(case=_rest(row)) for row in some])
        folded += ["", f"    **{name}**", "", *(f"    {line}" for line in table.splitlines())]
    return "\n\n".join([*([_rows_table(judged)] if judged else []), "\n".join(folded)])


def _network(row: Row) -> str:
    return row.case.partition(",")[0].partition(":")[0]


def _rest(row: Row) -> str:
    return row.case[len(_network(row)) :].lstrip(",: ") or row.case


def _rows_table(rows: list[Row]) -> str:
    head = ["case", "ours", "against", "theirs", "ratio"]
    cells = [[row.case, row.ours, row.against, row.theirs, row.ratio] for row in rows]
    if any(row.target for row in rows):
        head.append("target")
        for row, line in zip(rows, cells, strict=True):
            verdict = f"**{row.verdict}**" if row.verdict == "missed" else row.verdict
            line.append(f"{row.target} {verdict}".strip())
    notes = [re.sub(r"^(met|missed)(; )?", "", row.note) for row in rows]
    if any(notes):
        head.append("note")
        cells = [[*line, note] for line, note in zip(cells, notes, strict=True)]
    return _table(head, cells)


def _table(head: list[str], lines: Iterable[Iterable[object]]) -> str:
    # All but what comes first keeps on one line: a number and its unit, a ratio and its verdict.
    whole = [[first, *(str(cell).replace(" ", "\xa0") for cell in rest)] for first, *rest in lines]
    return "\n".join(
        f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *whole]
    )


def fill(page: str, results: str) -> str:
    """Return a page with the tables in their places.

    Raises:
        PluginError: A part has no place on the page, or what the page names isn't there.
    """
    rows = read_rows(results)
    machines = [line for line in results.splitlines() if line.startswith("- ")]
    placed = {found[2] for found in _PLACE.finditer(page) if found[2]}
    if placed != {row.part for row in rows}:
        different = ", ".join(sorted(placed ^ {row.part for row in rows}))
        raise PluginError(f"docs/benchmarks.md and benchmarks/RESULTS.md differ in: {different}")

    def table(found: re.Match[str]) -> str:
        if found[1] == "targets":
            return count_targets(rows)
        if found[1] == "machines":
            return "\n".join(machines)
        return part_tables([row for row in rows if row.part == found[2]])

    def more(found: re.Match[str]) -> str:
        ratios = [row.ratio for row in rows if (row.part, row.case) == found.groups()]
        if len(ratios) != 1:
            raise PluginError(f"benchmarks/RESULTS.md has no row {found[1]}: {found[2]}")
        return f"{100 * (float(ratios[0]) - 1):.1f} %"

    return _MORE.sub(more, _PLACE.sub(table, page))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the page of the benchmarks; in others keep a number and its range on one line."""
    if page.file.src_uri != "benchmarks.md":
        return markdown.replace(" ± ", "\xa0±\xa0")
    return fill(markdown, RESULTS.read_text(encoding="utf-8"))

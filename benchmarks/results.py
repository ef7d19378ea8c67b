"""Write `RESULTS.md`: what was measured, on what, against which targets."""

import datetime
from collections.abc import Iterable
from pathlib import Path

from benchmarks import table
from benchmarks.machine import description
from benchmarks.parts import PARTS
from benchmarks.rows import Row

# `benchmarks.soak` is a command of its own.
_NAMES = [*PARTS, "soak"]
RESULTS = Path(__file__).with_name("RESULTS.md")
_INTRODUCTION = """\
# Results of the benchmarks

Written by `python -m benchmarks --save`; don't edit. Every row compares with something public in
the same run, on one thread pinned to one core (`device`: on a GPU and all cores); numbers are
medians of interleaved runs. Of the durations in `count`, `groups` and `growth` the ratio is theirs
/ ours, of the speeds in `pack` ours / theirs: higher is better. In the other parts it is ours /
theirs, of costs: lower is better. `python -m benchmarks PART --save` replaces the rows of one
part, `make soak SAVE=--save` those of `soak`, whose last epochs are compared with early ones of the
same run.
"""


def save(rows: Iterable[Row], path: Path = RESULTS) -> None:
    """Write the results, keeping the rows of parts that were not run now."""
    fresh: dict[str, list[str]] = {}
    for row in rows:
        fresh.setdefault(row.part, []).extend(table.lines([row]))
    kept, measured = _read(path)
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    machine = "; ".join(description())
    measured |= dict.fromkeys(fresh, (today, machine))
    body = {**kept, **fresh}
    names = sorted(body, key=_NAMES.index)
    runs: dict[tuple[str, str], list[str]] = {}
    for name in names:
        runs.setdefault(measured[name], []).append(name)
    text = [_INTRODUCTION]
    for (day, on), parts in runs.items():
        text += [f"- {', '.join(parts)}: {day}. {on}"]
    text += ["", table.table(line for name in names for line in body[name]), ""]
    path.write_text("\n".join(text), encoding="utf-8")


def _read(path: Path) -> tuple[dict[str, list[str]], dict[str, tuple[str, str]]]:
    rows: dict[str, list[str]] = {}
    measured: dict[str, tuple[str, str]] = {}
    if not path.is_file():
        return rows, measured
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("- "):
            names, _, rest = line[2:].partition(": ")
            day, _, on = rest.partition(". ")
            measured |= {name: (day, on) for name in names.split(", ") if name in _NAMES}
        elif line.startswith("|") and table.part_of(line) in _NAMES:
            rows.setdefault(table.part_of(line), []).append(line)
    return rows, {name: run for name, run in measured.items() if name in rows}

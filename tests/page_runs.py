"""Run the code of a page as its reader does, and compare what it prints with what the page shows.

All blocks of a page that are marked `python` run in their order, with the same names, in one
process and in an empty folder. A block marked `text` right after one is what that prints. To write
these blocks and the pictures anew, after a change of what is printed or drawn, run

    python tests/page_runs.py docs/tutorials/keras.md

and read what has changed (`git diff`): the sentences around it have to fit.
"""

import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"

_BLOCK = re.compile(
    r"^```python\n(?P<code>.*?)^```\n"
    r"(?P<rest>(?P<before>\n(?:<!-- numbers vary -->\n)?)```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
# Layers' names hold digits too.
_NUMBER = re.compile(r"(?<![\w.\-])\d[\d,]*(?:\.\d+)?(?![\w])")
# What follows from the data and the network alone, and not from its training.
_FIXED = {"layer", "batch", "neurons", "unit", "states", "ceiling"}
# Of shares, 0 to 1. Another processor rounds otherwise, and a training that has once taken another
# turn comes to other numbers, as it does with another seed.
_TOLERANCE = 0.06
# Of what depends most on a few neurons; measured by changing the pixels in their sixth digit.
# States seen once were 53 of 1,000 with one thread, and 39 with two.
_LOOSE = {"rate bound", "reached", "coverage", "mean cov.", "max share", "redundancy", "firing"}
_LOOSE |= {"singletons"}
_LOOSE_TOLERANCE = 0.15
_EPOCHS = 4  # how much earlier or later a training may stop


class Block(NamedTuple):
    """Code of a page, and what the page says that it prints.

    Attributes:
        line: Number of its first line in the page.
        output: None where the page shows none.
        varies: Whether the numbers may be any.
    """

    line: int
    code: str
    output: str | None
    varies: bool


class Run(NamedTuple):
    """What the blocks of a page printed, and the PNG files that they left, name to content."""

    outputs: list[str]
    pictures: dict[str, bytes]


def read_blocks(text: str) -> list[Block]:
    """Return the code blocks of a page."""
    return [
        Block(
            text[: found.start("code")].count("\n") + 1,
            found["code"],
            found["output"],
            "vary" in (found["before"] or ""),
        )
        for found in _BLOCK.finditer(text)
    ]


def run_page(page: Path, folder: Path) -> Run:
    """Run the blocks of a page in a process of their own, in an empty folder."""
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    given, made = folder / "blocks.json", folder / "outputs.json"
    given.write_text(json.dumps([(block.line, block.code) for block in blocks]))
    work = folder / "work"
    work.mkdir()
    command = [sys.executable, __file__, "--blocks", page.name, given, made]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        command, cwd=work, env=quiet | os.environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{page.name} failed:\n{done.stderr}")
    pictures = {path.name: path.read_bytes() for path in sorted(work.glob("*.png"))}
    return Run(json.loads(made.read_text()), pictures)


def _run_blocks(name: str, given: str, made: str) -> None:
    """Run blocks in this process; our warnings are part of what they print, others are errors."""
    warnings.simplefilter("error")
    # Lightning's advice on loaders that read files, which ours don't.
    warnings.filterwarnings("ignore", ".*does not have many workers")
    # Other libraries' own.
    for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)
    import tensorstate_callbacks

    warnings.simplefilter("default", tensorstate_callbacks.TensorStateWarning)

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        # As wide as a page: Python prints one line, with the file that it comes from.
        print(textwrap.fill(f"{category.__name__}: {message}", 80))

    warnings.showwarning = show
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for line, code in json.loads(Path(given).read_text()):
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + code, name, "exec"), names)  # noqa: S102
        outputs.append(printed.getvalue())
    Path(made).write_text(json.dumps(outputs))


def differences(shown: str, printed: str, *, varies: bool = False) -> list[str]:
    """Return where a page's output isn't what is printed, beyond what another machine may change.

    Words, and numbers of a table's columns `neurons`, `unit`, `states` and `ceiling`, are compared
    exactly, and so are whole numbers outside of tables, but for those of epochs. Other shares may
    differ by 0.06, those that depend on a few neurons by 0.15 (what is above 1 by as large a share
    of it), numbers of epochs by 4, other whole numbers in tables by a third, states seen once by
    half. With `varies`, numbers are not compared at all, nor how often a line comes that differs
    from the one before in nothing else.
    """
    ours, theirs = _lines(shown), _lines(printed)
    if varies:
        numberless = [
            [line for line, _ in itertools.groupby(_NUMBER.sub("#", line) for _, line in lines)]
            for lines in (ours, theirs)
        ]
        return [f"{a!r} became {b!r}" for a, b in itertools.zip_longest(*numberless) if a != b]
    ours, theirs = _same_epochs(ours, theirs)
    if len(ours) != len(theirs):
        return [f"{len(ours)} lines became {len(theirs)}: {printed}"]
    return [
        f"{line!r} became {other!r}"
        for (columns, line), (_, other) in zip(ours, theirs, strict=True)
        if not _alike(columns, line, other)
    ]


def _lines(text: str) -> list[tuple[list[str], str]]:
    """Return the lines, each with the headings of its table's columns, if it is in a table."""
    lines, headings = [], []
    for line in text.splitlines():
        cells = _cells(line)
        if cells[0] in ("layer", "epoch", "batch") and len(cells) > 1:
            headings = cells
        elif len(cells) != len(headings):
            headings = []
        lines.append((headings, line))
    return lines


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def _same_epochs(*both: Sequence[tuple[list[str], str]]) -> Iterator[list[tuple[list[str], str]]]:
    """Leave out epochs that only one of two trainings has had, if these are few."""
    last = [[row for row in lines if row[0][:1] == ["epoch"]] for lines in both]
    least = min(map(len, last))
    for lines, rows in zip(both, last, strict=True):
        extra = rows[least:] if len(rows) <= least + _EPOCHS else []
        yield [row for row in lines if not any(row is each for each in extra)]


def _alike(columns: list[str], line: str, other: str) -> bool:
    ours, theirs = _cells(line), _cells(other)
    if not columns:
        ours, theirs = [" ".join(ours)], [" ".join(theirs)]
    if len(ours) != len(theirs):
        return False
    for number, (cell, new) in enumerate(zip(ours, theirs, strict=True)):
        if cell == new:
            continue
        if columns and columns[number] in _FIXED:
            return False
        if _NUMBER.sub("#", cell) != _NUMBER.sub("#", new):
            return False
        pairs = zip(_NUMBER.finditer(cell), _NUMBER.finditer(new), strict=True)
        loose = bool(columns) and columns[number] in _LOOSE
        if not all(_near(a, b, loose=loose, in_table=bool(columns)) for a, b in pairs):
            return False
    return True


def _near(number: re.Match[str], other: re.Match[str], *, loose: bool, in_table: bool) -> bool:
    a, b = (float(found[0].replace(",", "")) for found in (number, other))
    if "." in number[0]:
        return abs(a - b) <= (_LOOSE_TOLERANCE if loose else _TOLERANCE) * max(1, a)
    if re.search(r"epochs?:? $", number.string[: number.start()]) or re.match(
        " epoch", number.string[number.end() :]
    ):
        return abs(a - b) <= _EPOCHS
    return abs(a - b) <= (max(4, a / (2 if loose else 3)) if in_table else 0)


def write_page(page: Path) -> None:
    """Run a page, and put what it prints and draws into it and beside it."""
    with tempfile.TemporaryDirectory() as folder:
        run = run_page(page, Path(folder))
    outputs = iter(run.outputs)

    def renew(found: re.Match[str]) -> str:
        printed, code = next(outputs), f"```python\n{found['code']}```\n"
        before = found["before"] or "\n"
        return f"{code}{before}```text\n{printed}```\n" if printed else code

    page.write_text(_BLOCK.sub(renew, page.read_text(encoding="utf-8")), encoding="utf-8")
    for name, content in run.pictures.items():
        picture_of(page, name).write_bytes(content)


def picture_of(page: Path, name: str) -> Path:
    """Return where the picture is kept that a page's code writes under this name."""
    return IMAGES / f"tutorial_{page.stem}_{name}"


if __name__ == "__main__":
    if sys.argv[1] == "--blocks":
        _run_blocks(*sys.argv[2:])
    else:
        for path in sys.argv[1:]:
            write_page(Path(path))

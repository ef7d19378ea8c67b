"""Write rows as lines of a Markdown table, and find the lines of single parts again."""

from collections.abc import Iterable

from benchmarks.rows import Row

HEAD = ("part", "case", "ours", "against", "theirs", "ratio", "target", "")


def lines(rows: Iterable[Row]) -> list[str]:
    """Return one table line for each row, without the head."""
    return [_line(_cells(row)) for row in rows]


def table(body: Iterable[str]) -> str:
    """Return the whole table, its columns aligned.

    Args:
        body: Lines as `lines` gives them.
    """
    cells = [list(HEAD), *([cell.strip() for cell in line.split("|")[1:-1]] for line in body)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(HEAD))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        _line([cell.ljust(width) for cell, width in zip(row, widths, strict=True)])
        for row in [cells[0], rule, *cells[1:]]
    )


def part_of(line: str) -> str:
    """Return the part that a table line belongs to."""
    return line.split("|")[1].strip()


def _cells(row: Row) -> list[str]:
    target = "" if row.target is None else str(row.target)
    if row.missing:
        return [row.part, row.case, "", row.against, "", "", target, row.note]
    verdict = {True: "met", False: "missed", None: ""}[row.met]
    return [
        row.part,
        row.case,
        f"{_number(row.ours)} {row.unit}",
        row.against,
        f"{_number(row.theirs)} {row.unit}",
        f"{row.ratio:.3f}" if row.ratio < 2 else f"{row.ratio:.2f}",
        target,
        "; ".join(part for part in (verdict, row.note) if part),
    ]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"

"""Evaluations in, tables of plain text out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorstate_callbacks.display.columns import BRIEF, COLUMNS, OF_NEURONS, OF_STATES, known
from tensorstate_callbacks.display.labels import short_names
from tensorstate_callbacks.display.view import (
    ShownEvaluation,
    ShownLayer,
    best_evaluation,
    efficiencies,
    layer_names,
    positions,
)

WIDTH = 100


def layer_table(layers: Mapping[str, ShownLayer], *, full: bool = False, width: int = WIDTH) -> str:
    """Return one line per layer.

    Args:
        layers: Layer name to figures.
        full: Whether to show all figures, in two tables one below the other.
        width: Characters a line may have; long layer names are shortened to keep to it.
    """
    rows = [layer.figures() for layer in layers.values()]
    parts = (OF_STATES, OF_NEURONS) if full else (BRIEF,)
    tables = [_columns(rows, part) for part in parts]
    tables = [columns for columns in tables if columns]
    # The same names in both.
    room = min((width - _width(columns) - 2 for columns in tables), default=width)
    first = ["layer", *short_names(layers, max(room, 12))]
    return "\n\n".join("\n".join(_aligned([first, *columns], left=1)) for columns in tables)


def network_line(report: ShownEvaluation) -> str:
    """Return the network's figures in one line."""
    figures = {"efficiency": report.efficiency, "accuracy": report.accuracy, "aIQ": report.aiq}
    return ", ".join(f"{name} {x:.4f}" for name, x in figures.items() if x is not None)


def history_table(history: Sequence[ShownEvaluation], *, width: int = WIDTH) -> str:
    """Return one line per evaluation, with the efficiencies of as many layers as fit.

    Args:
        history: Evaluations, the oldest first.
        width: Characters a line may have.
    """
    if not history:
        return "no evaluation yet"
    unit, where = positions(history)
    columns: list[list[str]] = [[unit, *map(str, where)]]
    for heading in ("accuracy", "efficiency", "aIQ"):
        values = [getattr(report, heading.lower()) for report in history]
        columns.append([heading, *(_share(value) for value in values)])
    names = layer_names(history)
    layers = [
        [name, *map(_share, efficiencies(history, original))]
        for name, original in zip(short_names(names, 16), names, strict=True)
    ]
    used = _width(columns)
    fitting = 0
    for column in layers:
        used += 2 + max(map(len, column))
        fitting += used <= width
    lines = _aligned([*columns, *layers[:fitting]], left=0)
    if fitting < len(layers):
        lines.append(f"layers for which there is no room here: {len(layers) - fitting}")
    best = best_evaluation(history)
    if best is not None:
        lines.append(f"best aIQ {history[best].aiq:.4f} in {unit} {where[best]}")
    return "\n".join(lines)


def _columns(rows: Sequence[Mapping[str, Any]], figures: Iterable[str]) -> list[list[str]]:
    return [
        [COLUMNS[name].heading, *(COLUMNS[name].cell(row.get(name)) for row in rows)]
        for name in known(figures, rows)
    ]


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(2 + max(map(len, column)) for column in columns) - 2


def _aligned(columns: Sequence[Sequence[str]], *, left: int) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in zip(*columns, strict=True)
    ]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"

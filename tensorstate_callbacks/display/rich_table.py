"""Evaluations in, tables for the terminal library rich out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tensorstate_callbacks.display.columns import BRIEF, COLUMNS, OF_NEURONS, OF_STATES, known
from tensorstate_callbacks.display.labels import short_names
from tensorstate_callbacks.display.text_table import network_line
from tensorstate_callbacks.display.view import (
    ShownEvaluation,
    best_evaluation,
    efficiencies,
    layer_names,
    positions,
)

if TYPE_CHECKING:
    from rich.table import Table


# What is shown in a terminal of at least so many characters, the widest first.
_TIERS = (
    (150, (*OF_STATES, *OF_NEURONS)),
    (100, BRIEF),
    (0, ("n_neurons", "n_states", "efficiency", "ceiling", "coverage")),
)


def rich_report(report: ShownEvaluation, width: int) -> "Table":
    """Return a table of one row per layer, the network's figures below it.

    Args:
        report: One evaluation.
        width: Characters a line of the terminal has; the more, the more figures are shown.
    """
    from rich.table import Table
    from rich.text import Text

    rows = [layer.figures() for layer in report.layers.values()]
    names = known(next(names for least, names in _TIERS if width >= least), rows)
    table = Table(caption=network_line(report), caption_style="")
    table.add_column("layer", overflow="fold", min_width=12)
    for name in names:
        table.add_column(COLUMNS[name].heading, justify="right", no_wrap=True)
    for layer, figures in zip(report.layers, rows, strict=True):
        # A Text, for a name in brackets would be taken for a style.
        table.add_row(Text(layer), *(COLUMNS[name].cell(figures.get(name)) for name in names))
    return table


def rich_history(history: Sequence[ShownEvaluation], width: int) -> "Table":
    """Return a table of one row per evaluation, the one with the best aIQ in bold.

    Args:
        history: Evaluations, the oldest first.
        width: Characters a line of the terminal has; so many layers are shown as fit.
    """
    from rich.table import Table
    from rich.text import Text

    unit, where = positions(history)
    originals = layer_names(history)
    names = short_names(originals, 16)
    table = Table()
    for heading in (unit, "accuracy", "efficiency", "aIQ"):
        table.add_column(heading, justify="right", no_wrap=True)
    used, fitting = 46, 0
    for name in names:
        used += max(len(name), 6) + 3
        fitting += used <= width
    for name in names[:fitting]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    if fitting < len(names):
        table.caption = f"layers for which there is no room here: {len(names) - fitting}"
    best = best_evaluation(history)
    curves = [efficiencies(history, name) for name in originals[:fitting]]
    for index, (place, report) in enumerate(zip(where, history, strict=True)):
        values = [report.accuracy, report.efficiency, report.aiq, *(x[index] for x in curves)]
        cells = [COLUMNS["efficiency"].cell(value) for value in values]
        table.add_row(str(place), *cells, style="bold" if index == best else None)
    return table

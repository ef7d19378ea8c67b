"""Tables of evaluations and layers, as plain text, Markdown or HTML."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from tabulate import tabulate

from tensorstate_callbacks.display.view import (
    EvaluationView,
    LayerView,
    best_evaluation,
    efficiencies,
    layer_names,
    positions,
    printable,
    short_names,
)
from tensorstate_callbacks.metrics.neurons import neuron_rows


class Column(NamedTuple):
    """One metric of a layer, as tables show it.

    Attributes:
        heading: Short name.
        form: Format of the number.
        meaning: What it is, with its unit.
    """

    heading: str
    form: str
    meaning: str

    def cell(self, value: float | None) -> str:
        """Return the number as text; a dash where there is none."""
        return "–" if value is None else format(value, self.form)


# Names as in LayerReport.metrics; a finished run may know `dead` and `always`, shares of neurons.
COLUMNS: dict[str, Column] = {
    "n_neurons": Column("neurons", ",.0f", "neurons (channels): the bits of a state"),
    "group_size": Column("unit", ",.0f", "neurons of a unit, where the layer has several units"),
    "n_states": Column("states", ",.0f", "states seen of a unit, repetitions included"),
    "n_distinct": Column("distinct", ",.0f", "distinct states seen, of all units"),
    "n_singletons": Column("singletons", ",.0f", "states seen exactly once"),
    "coverage": Column(
        "coverage",
        ".4f",
        "Good-Turing estimate of how likely the next state is one already seen, share 0 to 1",
    ),
    "mean_coverage": Column(
        "mean cov.", ".4f", "mean coverage of the units; the other is the least"
    ),
    "max_share": Column("max share", ".4f", "share of the most frequent state, 0 to 1"),
    "effective_states": Column(
        "effective", ",.1f", "so many states, used evenly, have the same entropy"
    ),
    "entropy": Column("entropy", ".3f", "entropy of the states, bits"),
    "efficiency": Column("efficiency", ".4f", "entropy per neuron, bits, 0 to 1"),
    "ceiling": Column("ceiling", ".4f", "highest efficiency that so few states can show, 0 to 1"),
    "rate_bound": Column(
        "rate bound", ".4f", "efficiency if the neurons fired independently at their rates, 0 to 1"
    ),
    "ceiling_share": Column("reached", ".4f", "share of the ceiling that the efficiency reaches"),
    "redundancy": Column(
        "redundancy", ".4f", "share of the rate bound that is lost as neurons depend on each other"
    ),
    "firing_rate": Column("firing", ".4f", "mean firing rate: share of neurons that fire, 0 to 1"),
    "n_never": Column("never", ",.0f", "neurons that never fired"),
    "n_always": Column("always", ",.0f", "neurons that fired in every state"),
    "dead": Column("never", ".4f", "share of the neurons that never fired, 0 to 1"),
    "always": Column("always", ".4f", "share of the neurons that fired in every state, 0 to 1"),
    "turnover": Column(
        "turnover", ".4f", "share of probe_data's bits that changed since the recording before"
    ),
    "turnover_from_first": Column(
        "from first", ".4f", "share of probe_data's bits that changed since the first recording"
    ),
    "unchanged": Column(
        "unchanged", ".4f", "share of the neurons that never changed on probe_data"
    ),
    "naswot": Column(
        "NASWOT", ".1f", "log-determinant of probe_data's Hamming kernel in the first recording"
    ),
}
# What fits in a terminal.
BRIEF = (
    "n_neurons",
    "group_size",
    "n_states",
    "n_distinct",
    "efficiency",
    "ceiling",
    "rate_bound",
    "ceiling_share",
    "coverage",
    "n_never",
)
# All of it, in tables of which each fits.
OF_STATES = (
    "n_neurons",
    "group_size",
    "n_states",
    "n_distinct",
    "n_singletons",
    "coverage",
    "mean_coverage",
    "max_share",
    "effective_states",
)
OF_NEURONS = (
    "entropy",
    "efficiency",
    "ceiling",
    "rate_bound",
    "ceiling_share",
    "redundancy",
    "firing_rate",
    "n_never",
    "n_always",
    "dead",
    "always",
)
OF_PROBE = ("turnover", "turnover_from_first", "unchanged", "naswot")


def known_columns(names: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those of the metrics that at least one of the layers has."""
    return [name for name in names if any(row.get(name) is not None for row in rows)]


# Characters a line of text may have.
WIDTH = 100
_GAP = 2
# What would mark up the words of a name in Markdown, or end its cell.
_MARKS = re.compile(r"[\\`*|$]|(?<![^\W_])_|_(?![^\W_])")


@dataclasses.dataclass(frozen=True)
class Table:
    """Headings and cells of a table, all of them text.

    Attributes:
        headings: One for each column.
        rows: Cells of each row.
        caption: Text above the table, in HTML only.
        bold: Index of a row that stands out, in Markdown and HTML.
        n_left: So many columns, from the first on, are aligned left; the others hold numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    bold: int | None = None
    n_left: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "headings", [printable(heading) for heading in self.headings])
        object.__setattr__(self, "rows", [[printable(cell) for cell in row] for row in self.rows])

    @property
    def width(self) -> int:
        """Characters of a line of the plain text."""
        return sum(max(map(len, column)) + _GAP for column in self._columns()) - _GAP

    def text(self) -> str:
        """Return aligned columns of plain text."""
        # As a row, for a heading of its own would widen each column.
        return self._format([self.headings, *self.rows], (), "plain")

    def markdown(self) -> str:
        """Return a table of Markdown."""
        marked = [[_MARKS.sub(r"\\\g<0>", cell) for cell in row] for row in self.rows]
        headings = [_MARKS.sub(r"\\\g<0>", heading) for heading in self.headings]
        return self._format(self._emphasize(marked, "**", "**"), headings, "pipe")

    def html(self) -> str:
        """Return a `<table>`; the cells are escaped."""
        rows = [[escape(cell) for cell in row] for row in self.rows]
        headings = [escape(heading) for heading in self.headings]
        # Escaped above: what tabulate escapes by itself could not hold the bold row.
        table = self._format(self._emphasize(rows, "<strong>", "</strong>"), headings, "unsafehtml")
        above = f"<table>\n<caption>{escape(self.caption)}</caption>"
        return table.replace("<table>", above, 1) if self.caption else table

    def first_columns(self, count: int) -> "Table":
        """Return the table of the first `count` columns."""
        rows = [row[:count] for row in self.rows]
        return dataclasses.replace(self, headings=self.headings[:count], rows=rows)

    def fitting_columns(self, width: int) -> int:
        """Return how many columns fit into lines of `width` characters."""
        used, count = -_GAP, 0
        for column in self._columns():
            used += max(map(len, column)) + _GAP
            count += used <= width
        return count

    def _columns(self) -> list[tuple[str, ...]]:
        return list(zip(self.headings, *self.rows, strict=True))

    def _emphasize(
        self, rows: Sequence[Sequence[str]], start: str, end: str
    ) -> list[Sequence[str]]:
        return [
            [f"{start}{cell}{end}" for cell in row] if index == self.bold else row
            for index, row in enumerate(rows)
        ]

    def _format(self, rows: Sequence[Sequence[str]], headings: Sequence[str], layout: str) -> str:
        n_numbers = len(self.headings) - self.n_left
        sides = ["left"] * self.n_left + ["right"] * n_numbers
        return tabulate(rows, headings, tablefmt=layout, disable_numparse=True, colalign=sides)


def layers_table(
    layers: Mapping[str, LayerView],
    metrics: Iterable[str] = (*OF_STATES, *OF_NEURONS, *OF_PROBE),
    caption: str = "",
) -> Table:
    """Return a table of one row per layer.

    Args:
        layers: Layer name to layer.
        metrics: Names of the columns, as in `COLUMNS`; those that no layer has are left out.
        caption: Text above the table.
    """
    rows = [layer.metrics() for layer in layers.values()]
    names = known_columns(metrics, rows)
    cells = [
        [layer, *(COLUMNS[name].cell(row.get(name)) for name in names)]
        for layer, row in zip(layers, rows, strict=True)
    ]
    return Table(["layer", *(COLUMNS[name].heading for name in names)], cells, caption)


def neurons_table(layers: Mapping[str, LayerView], caption: str = "") -> Table | None:
    """Return a table of the neurons that never or always fired, that agree, that oppose each other.

    Args:
        layers: Layer name to layer.
        caption: Text above the table.

    Returns:
        The table, of the layers for which that was asked for; None where there is nothing to say.
    """
    rows = [
        [name, row.what, f"{row.number:,}", row.which]
        for name, layer in layers.items()
        if layer.neurons is not None and layer.neurons.followed
        for row in neuron_rows(layer.neurons)
    ]
    headings = ["layer", "state", "neurons", "which"]
    return Table(headings, rows, caption, n_left=4) if rows else None


def history_table(
    history: Sequence[EvaluationView], caption: str = "", *, with_layers: bool = True
) -> Table:
    """Return a table of one row per evaluation; the one with the best aIQ is bold.

    Args:
        history: Evaluations, the oldest first.
        caption: Text above the table.
        with_layers: Whether each layer's efficiency has a column.
    """
    unit, where = positions(history)
    names = layer_names(history) if with_layers else []
    columns = [
        [report.accuracy for report in history],
        [report.efficiency for report in history],
        [report.aiq for report in history],
        *(efficiencies(history, name) for name in names),
    ]
    rows = [
        [str(place), *(COLUMNS["efficiency"].cell(column[index]) for column in columns)]
        for index, place in enumerate(where)
    ]
    headings = [unit, "accuracy", "efficiency", "aIQ", *names]
    return Table(headings, rows, caption, bold=best_evaluation(history), n_left=0)


def layers_text(layers: Mapping[str, LayerView], *, full: bool = False, width: int = WIDTH) -> str:
    """Return one line of text per layer.

    Args:
        layers: Layer name to layer.
        full: Whether to show all metrics, in tables one below the other, and where `neurons=True`
            asked for it, the neurons there is something to say of.
        width: Characters a line may have; long layer names are shortened to keep to it.
    """
    parts = (OF_STATES, OF_NEURONS, OF_PROBE) if full else (BRIEF,)
    tables = [layers_table(layers, part) for part in parts]
    tables = [table for table in tables if len(table.headings) > 1]
    longest = max(len(printable(name)) for name in ["layer", *layers])
    # The same names in all.
    left = min((width - table.width + longest for table in tables), default=width)
    names = short_names(layers, max(left, 12))
    texts = [
        Table(
            table.headings,
            [[name, *row[1:]] for name, row in zip(names, table.rows, strict=True)],
        ).text()
        for table in tables
    ]
    neurons = neurons_table(dict(zip(names, layers.values(), strict=True))) if full else None
    return "\n\n".join([*texts, *([neurons.text()] if neurons is not None else [])])


def network_line(report: EvaluationView) -> str:
    """Return the network's metrics in one line."""
    metrics = {"efficiency": report.efficiency, "accuracy": report.accuracy, "aIQ": report.aiq}
    return ", ".join(f"{name} {x:.4f}" for name, x in metrics.items() if x is not None)


def history_text(history: Sequence[EvaluationView], *, width: int = WIDTH) -> str:
    """Return one line of text per evaluation, with the efficiencies of as many layers as fit.

    Args:
        history: Evaluations, the oldest first.
        width: Characters a line may have.
    """
    if not history:
        return "no evaluation yet"
    whole = history_table(history)
    names = short_names(whole.headings[4:], 16)
    whole = dataclasses.replace(whole, headings=[*whole.headings[:4], *names])
    count = max(whole.fitting_columns(width), 4)
    lines = [whole.first_columns(count).text()]
    if count < len(whole.headings):
        missing = len(whole.headings) - count
        lines.append(f"and {missing} more layer{'s' * (missing > 1)}, too many for one line")
    if whole.bold is not None:
        unit, where = positions(history)
        best = history[whole.bold].aiq
        lines.append(f"best aIQ {best:.4f} in {unit} {where[whole.bold]}")
    return "\n".join(lines)


def report_html(report: EvaluationView) -> str:
    """Return what a notebook shows of a report: every metric, and what limits them."""
    notes = "".join(f"<p>{escape(printable(note))}</p>" for note in report.notes())
    table = scrolling(layers_table(report.layers))
    neurons = neurons_table(report.layers)
    more = "" if neurons is None else scrolling(neurons)
    return f"<div>{table}{more}<p>{network_line(report)}</p>{notes}</div>"


def history_html(history: Sequence[EvaluationView]) -> str:
    """Return what a notebook shows of a history; the row with the best aIQ is bold."""
    return scrolling(history_table(history)) if history else "<p>no evaluation yet</p>"


def scrolling(table: Table) -> str:
    """Return the table as HTML that scrolls by itself, so that a wide one doesn't widen a page."""
    return f'<div style="overflow-x:auto">{table.html()}</div>'

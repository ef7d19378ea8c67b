"""Evaluations in, tables of HTML out, for notebooks and pages, in light and dark."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tensorstate_callbacks.display.columns import COLUMNS, OF_NEURONS, OF_STATES, known
from tensorstate_callbacks.display.text_table import network_line
from tensorstate_callbacks.display.view import (
    ShownEvaluation,
    ShownLayer,
    best_evaluation,
    efficiencies,
    layer_names,
    positions,
)


def layers_html(
    layers: Mapping[str, ShownLayer],
    caption: str = "",
    figures: Iterable[str] = (*OF_STATES, *OF_NEURONS),
) -> str:
    """Return a table of the figures of the layers, as far as known, one row each."""
    rows = [layer.figures() for layer in layers.values()]
    names = known(figures, rows)
    if not names:
        return ""
    headings = [("layer", ""), *((COLUMNS[name].heading, COLUMNS[name].meaning) for name in names)]
    cells = [
        [layer, *(COLUMNS[name].cell(row.get(name)) for name in names)]
        for layer, row in zip(layers, rows, strict=True)
    ]
    return table_html(headings, cells, caption)


def history_html(
    history: Sequence[ShownEvaluation], caption: str = "", *, with_layers: bool = True
) -> str:
    """Return a table of one row per evaluation; the row with the best aIQ is marked."""
    unit, where = positions(history)
    names = layer_names(history) if with_layers else []
    headings = [
        (unit, ""),
        ("accuracy", "share, 0 to 1"),
        ("efficiency", "of the network: geometric mean of its layers', share 0 to 1"),
        ("aIQ", "share, 0 to 1"),
        *((name, f"efficiency of {name}, bits per neuron") for name in names),
    ]
    columns = [
        [str(place) for place in where],
        *(
            [COLUMNS["efficiency"].cell(value) for value in values]
            for values in (
                [report.accuracy for report in history],
                [report.efficiency for report in history],
                [report.aiq for report in history],
                *(efficiencies(history, name) for name in names),
            )
        ),
    ]
    best = best_evaluation(history)
    return table_html(headings, list(zip(*columns, strict=True)), caption, strong=best)


def report_fragment(report: ShownEvaluation, notes: Iterable[str] = ()) -> str:
    """Return what a notebook shows of a report."""
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<div>{layers_html(report.layers)}<p>{network_line(report)}</p>{paragraphs}</div>"


def history_fragment(history: Sequence[ShownEvaluation]) -> str:
    """Return what a notebook shows of a history; the row with the best aIQ is bold."""
    if not history:
        return "<p>no evaluation yet</p>"
    return f"<div>{history_html(history)}</div>"


def table_html(
    headings: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    strong: int | None = None,
) -> str:
    """Return a table with a heading in each row's first cell.

    Args:
        headings: Text and explanation of each column.
        rows: Text of the cells.
        caption: Text above the table.
        strong: Index of the row in bold.
    """
    head = "".join(
        f'<th scope="col"{_title(title)}{_style("left" if not place else "right")}>'
        f"{escape(text)}</th>"
        for place, (text, title) in enumerate(headings)
    )
    body = "".join(_row(row, strong=index == strong) for index, row in enumerate(rows))
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    # Wide tables scroll by themselves instead of the page.
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse">'
        f"{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(cells: Sequence[str], *, strong: bool) -> str:
    first, *others = ((f"<strong>{escape(x)}</strong>" if strong else escape(x)) for x in cells)
    numbers = "".join(f"<td{_style('right')}>{cell}</td>" for cell in others)
    return f'<tr><th scope="row"{_style("left", wraps=True)}>{first}</th>{numbers}</tr>'


def _title(text: str) -> str:
    return f' title="{escape(text)}"' if text else ""


def _style(side: str, *, wraps: bool = False) -> str:
    # The text's own colour: right on light and dark pages alike. A long name may break anywhere,
    # a number nowhere.
    breaks = "overflow-wrap:anywhere;min-width:7em" if wraps else "white-space:nowrap"
    return (
        f' style="text-align:{side};padding:0.25em 0.45em;{breaks};'
        'border-bottom:1px solid rgba(128,128,128,0.35);font-variant-numeric:tabular-nums"'
    )

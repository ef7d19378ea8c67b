"""Evaluations in; one HTML page that needs nothing else out."""

from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING

from tensorstate_callbacks.display.columns import COLUMNS, OF_NEURONS, OF_STATES, known
from tensorstate_callbacks.display.history_plot import plot_history
from tensorstate_callbacks.display.html_table import history_html, layers_html
from tensorstate_callbacks.display.inline_svg import inline_svg
from tensorstate_callbacks.display.plots import plot_layers, plot_states
from tensorstate_callbacks.display.view import (
    ShownEvaluation,
    best_and_last,
    best_evaluation,
    positions,
)

if TYPE_CHECKING:
    from tensorstate_callbacks.reports.report import EfficiencyReport

# No scripts, no other files: the page says so itself.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --quiet: #5b6675;
  --line: #d5dae1; --box: #f4f6f9; --mark: #b45309; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14181e; --quiet: #9aa5b4;
  --line: #39424e; --box: #1d232b; --mark: #f0a54a; } }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --quiet: #444;
  --line: #bbb; --box: #fff; --mark: #000; } body { font-size: 9pt; max-width: none; }
  figure, tr, .figures, .notes { break-inside: avoid; } h2 { break-after: avoid; }
  table { font-size: 8pt; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 0.3rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; border-bottom: 1px solid var(--line);
  padding-bottom: 0.2rem; }
header p, figcaption, .quiet { color: var(--quiet); font-size: 0.9rem; margin: 0.3rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 0.7rem;
  margin: 1.2rem 0 0; }
.figures div { background: var(--box); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 0.6rem 0.9rem; }
.figures dt { color: var(--quiet); font-size: 0.85rem; }
.figures dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.figures small { font-size: 0.85rem; color: var(--quiet); }
.notes { border-left: 0.3rem solid var(--mark); background: var(--box); margin: 0;
  padding: 0.7rem 1rem 0.7rem 2rem; overflow-wrap: anywhere; }
.notes li + li { margin-top: 0.5rem; }
table { font-size: 0.82rem; margin-bottom: 0.8rem; }
caption { text-align: left; color: var(--quiet); font-size: 0.9rem; padding: 0.4rem 0; }
tbody th { font-weight: 500; }
figure { margin: 1.2rem 0 0; overflow-x: auto; }
svg { display: block; max-width: 100%; min-width: 34rem; height: auto; color: var(--ink); }
svg text { fill: currentColor; }
dl.meanings { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem;
  font-size: 0.9rem; margin: 0; }
dl.meanings dd { margin: 0; color: var(--quiet); }
"""


def page(reports: Sequence["EfficiencyReport"]) -> str:
    """Return an HTML page: curves, layers, states, and what limits the figures.

    Args:
        reports: Evaluations, the oldest first.

    Raises:
        MissingExtraError: Matplotlib, which draws the curves, is not installed.
        ValueError: There is no report.
    """
    if not reports:
        raise ValueError("there is nothing to save: the history holds no report yet")
    last = reports[-1]
    unit, where = positions(reports)
    place = f"{unit} {where[-1]}"
    facts = [
        f"stage {last.stage}",
        *([f"epoch {last.epoch + 1}"] if last.epoch is not None and len(reports) == 1 else []),
        *([f"step {last.step:,}"] if last.step is not None else []),
        f"{len(last.layers)} layers",
        f"β = {last.beta:g} (weight of accuracy in aIQ)",
        f"α = {last.alpha:g} (order of the entropy)",
    ]
    bars = inline_svg(plot_layers(last), "layers", "Efficiency of the layers under their ceilings")
    states = inline_svg(plot_states(last), "states", "Share of each distinct state, by rank")
    words = (
        f"How evenly the layers use their states in {place}: a flat curve uses them evenly, a "
        "steep one keeps to a few."
    )
    return _document(
        [
            _header(reports, facts),
            _tiles(reports),
            _notes(last, place),
            *_over_time(reports),
            "<section><h2>Layers</h2>",
            *_layers(reports),
            _figure(bars, f"Layers of {place}."),
            "</section><section><h2>States by rank</h2>",
            _figure(states, words),
            "</section>",
            _meanings(last),
        ]
    )


def run_page(evaluations: Sequence[ShownEvaluation], source: str) -> str:
    """Return an HTML page of a finished run, with what its logs still say.

    Args:
        evaluations: The oldest first, at least one.
        source: Where they were read from, in words.

    Raises:
        MissingExtraError: Matplotlib, which draws the curves, is not installed.
    """
    return _document(
        [
            _header(evaluations, [source]),
            _tiles(evaluations),
            *_over_time(evaluations),
            "<section><h2>Layers</h2>",
            *_layers(evaluations),
            "</section>",
            _meanings(evaluations[-1]),
        ]
    )


def _over_time(history: Sequence[ShownEvaluation]) -> list[str]:
    if len(history) == 1:
        return []
    unit, _ = positions(history)
    what = "Accuracy, efficiency and aIQ of the network, and the efficiency of its layers"
    curves = inline_svg(plot_history(history), "curves", f"{what}, by {unit}")
    table = history_html(history, f"Bold: the {unit} with the best aIQ.", with_layers=False)
    return [
        f"<section><h2>Over the training</h2>{_figure(curves, what + '.')}</section>",
        f"<section><h2>Every {unit}</h2>{table}</section>",
    ]


def _layers(history: Sequence[ShownEvaluation]) -> list[str]:
    unit, where = positions(history)
    tables = []
    for index, kind in best_and_last(history):
        words = f"{unit.capitalize()} {where[index]} ({kind})" if len(history) > 1 else ""
        # Two tables: each fits on paper.
        tables += [layers_html(history[index].layers, words, x) for x in (OF_STATES, OF_NEURONS)]
    return tables


def _document(parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Efficiency report</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _header(history: Sequence[ShownEvaluation], facts: Sequence[str]) -> str:
    from tensorstate_callbacks._version import __version__

    now = datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC")
    number = f"{len(history)} evaluations" if len(history) > 1 else "1 evaluation"
    return (
        f"<header><h1>Efficiency report</h1><p>{escape(' · '.join([number, *facts]))}</p>"
        f"<p>Written by tensorstate_callbacks {__version__} on {now}.</p></header>"
    )


def _tiles(reports: Sequence[ShownEvaluation]) -> str:
    last, best = reports[-1], best_evaluation(reports)
    unit, where = positions(reports)
    tiles: list[tuple[str, float | None, str]] = []
    if best is not None and len(reports) > 1:
        tiles.append(("best aIQ", reports[best].aiq, f"{unit} {where[best]}"))
    place = f"{unit} {where[-1]}" if len(reports) > 1 else ""
    tiles += [
        ("aIQ", last.aiq, place),
        ("network efficiency", last.efficiency, place),
        ("accuracy", last.accuracy, place),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value:.4f} <small>{words}</small></dd></div>"
        for name, value, words in tiles
        if value is not None
    )
    return f'<dl class="figures">{cells}</dl>'


def _notes(report: "EfficiencyReport", place: str) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in report.notes())
    if not items:
        return ""
    return (
        "<section><h2>What limits these figures</h2>"
        f'<ul class="notes">{items}</ul><p class="quiet">Of {place}.</p></section>'
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _meanings(report: ShownEvaluation) -> str:
    rows = [layer.figures() for layer in report.layers.values()]
    items = "".join(
        f"<dt>{COLUMNS[name].heading}</dt><dd>{escape(COLUMNS[name].meaning)}</dd>"
        for name in known((*OF_STATES, *OF_NEURONS), rows)
    )
    network = (
        "<dt>network efficiency</dt><dd>geometric mean of the layers' efficiencies, 0 to 1</dd>"
        "<dt>aIQ</dt><dd>(network efficiency · accuracy<sup>β</sup>)<sup>1/(β+1)</sup>, 0 to 1</dd>"
    )
    return (
        "<section><h2>What the figures are</h2><p>A state is the firing pattern of one layer at "
        "one position of one sample: one bit per neuron.</p>"
        f'<dl class="meanings">{items}{network}</dl></section>'
    )

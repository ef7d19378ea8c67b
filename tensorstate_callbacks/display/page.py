"""Write an HTML page of evaluations that needs no other file."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from io import BytesIO
from os import PathLike
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from tensorstate_callbacks._version import __version__
from tensorstate_callbacks.display.class_plots import plot_classes
from tensorstate_callbacks.display.class_tables import (
    CLASS_MEANINGS,
    class_efficiencies_table,
    classes_table,
    with_classes,
)
from tensorstate_callbacks.display.history_plots import plot_history
from tensorstate_callbacks.display.plots import plot_layers, plot_states
from tensorstate_callbacks.display.tables import (
    COLUMNS,
    OF_NEURONS,
    OF_PROBE,
    OF_STATES,
    history_table,
    known_columns,
    layers_table,
    neurons_table,
    scrolling,
)
from tensorstate_callbacks.display.view import (
    EvaluationView,
    best_and_last,
    best_evaluation,
    positions,
    printable,
)
from tensorstate_callbacks.errors import require
from tensorstate_callbacks.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_SUFFIXES = (".html", ".htm")


def write_page(
    evaluations: Sequence[EvaluationView] | EvaluationView,
    path: str | PathLike[str],
    *,
    source: str = "",
) -> None:
    """Write an HTML page to read and to print: curves, tables, plots, and what limits the metrics.

    Args:
        evaluations: A `History`, a list of reports, the oldest first, or one report.
        path: Name of the file, ending in `.html` or `.htm`. An existing file is replaced once the
            new one is whole.
        source: Where the evaluations come from, in words; it stands in the heading.

    Raises:
        ValueError: There is no evaluation, or the name ends in something else.
        FileNotFoundError: There is no such folder.
        MissingExtraError: Matplotlib, which draws the plots, is not installed.
    """
    file = Path(path)
    if file.suffix.lower() not in PAGE_SUFFIXES:
        raise ValueError(f"{file.name!r}: a page's name ends in {' or '.join(PAGE_SUFFIXES)}")
    history = evaluations if isinstance(evaluations, Sequence) else [evaluations]
    if not history:
        raise ValueError("there is nothing to write: the history holds no report yet")
    number = f"{len(history)} evaluations" if len(history) > 1 else "1 evaluation"
    facts = [number, source, *_facts(history)]
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        facts=escape(printable(" · ".join(filter(None, facts)))),
        version=__version__,
        now=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        tiles=_tiles(history),
        sections="\n".join(
            [
                _notes(history),
                _training(history),
                _layers(history),
                _neurons(history),
                _states(history),
                _classes(history),
            ]
        ),
        meanings=_meanings(history[-1]),
    )
    with whole_file(file) as opened:
        opened.write(page.encode())


def _facts(history: Sequence[EvaluationView]) -> list[str]:
    last = history[-1]
    epoch = [f"epoch {last.epoch + 1}"] if last.epoch is not None and len(history) == 1 else []
    return [*epoch, *last.facts(), f"{len(last.layers)} layers"]


def _tiles(history: Sequence[EvaluationView]) -> str:
    last, best = history[-1], best_evaluation(history)
    unit, where = positions(history)
    tiles: list[tuple[str, float | None, str]] = []
    if best is not None and len(history) > 1:
        tiles.append(("best aIQ", history[best].aiq, f"{unit} {where[best]}"))
    place = f"{unit} {where[-1]}" if len(history) > 1 else ""
    tiles += [
        ("aIQ", last.aiq, place),
        ("network efficiency", last.efficiency, place),
        ("accuracy", last.accuracy, place),
    ]
    return "".join(
        f"<div><dt>{name}</dt><dd>{value:.4f} <small>{words}</small></dd></div>"
        for name, value, words in tiles
        if value is not None
    )


def _notes(history: Sequence[EvaluationView]) -> str:
    items = "".join(f"<li>{escape(printable(note))}</li>" for note in history[-1].notes())
    if not items:
        return ""
    return _section(
        "What limits these metrics",
        f'<ul class="notes">{items}</ul><p class="quiet">Of {_last_place(history)}.</p>',
    )


def _training(history: Sequence[EvaluationView]) -> str:
    if len(history) == 1:
        return ""
    unit, _ = positions(history)
    what = "Accuracy, efficiency and aIQ of the network, and the efficiency of its layers"
    table = history_table(history, f"Bold: the {unit} with the best aIQ.", with_layers=False)
    return _section(
        "Over the training", _figure(plot_history(history), f"{what}, by {unit}", f"{what}.")
    ) + _section(f"Every {unit}", scrolling(table))


def _layers(history: Sequence[EvaluationView]) -> str:
    unit, where = positions(history)
    parts = []
    for index, kind in best_and_last(history):
        caption = f"{unit.capitalize()} {where[index]} ({kind})" if len(history) > 1 else ""
        # Tables of which each fits on paper.
        kinds = (OF_STATES, OF_NEURONS, OF_PROBE)
        tables = [layers_table(history[index].layers, kind, caption) for kind in kinds]
        parts += [scrolling(table) for table in tables if len(table.headings) > 1]
    layers = history[-1].layers.values()
    if any(layer.efficiency is not None and layer.ceiling is not None for layer in layers):
        alt = "Efficiency of the layers under their ceilings"
        caption = f"Layers of {_last_place(history)}."
        parts.append(_figure(plot_layers(history[-1]), alt, caption))
    return _section("Layers", *parts) if parts else ""


def _neurons(history: Sequence[EvaluationView]) -> str:
    table = neurons_table(history[-1].layers, f"In {_last_place(history)}")
    if table is None:
        return ""
    words = (
        "= stands between neurons that fired in exactly the same states, != between those of which "
        "one fired exactly where the other did not."
    )
    return _section("Neurons", scrolling(table), f'<p class="quiet">{words}</p>')


def _states(history: Sequence[EvaluationView]) -> str:
    if all(layer.spectrum is None for layer in history[-1].layers.values()):
        return ""
    caption = (
        f"How evenly the layers use their states in {_last_place(history)}: a flat curve uses "
        "them evenly, a steep one keeps to a few."
    )
    figure = plot_states(history[-1])
    return _section(
        "States by rank", _figure(figure, "Share of each distinct state, by rank", caption)
    )


def _classes(history: Sequence[EvaluationView]) -> str:
    layers = history[-1].layers
    tables = (
        classes_table(layers, "What a state tells of the label, and how far apart classes lie."),
        class_efficiencies_table(layers, "Efficiency of each class, and of shuffled labels."),
    )
    parts = [scrolling(table) for table in tables if table is not None]
    if any(classes.divergence is not None for classes in with_classes(layers).values()):
        caption = (
            f"How far apart the states of two classes lie in {_last_place(history)}, and beside it "
            "the same for shuffled labels, which comes of having seen few states."
        )
        alt = "Jensen-Shannon divergence of the states of each two classes"
        parts.append(_figure(plot_classes(history[-1]), alt, caption))
    return _section("Classes", *parts) if parts else ""


def _meanings(last: EvaluationView) -> str:
    rows = [layer.metrics() for layer in last.layers.values()]
    meanings = {
        COLUMNS[name].heading: COLUMNS[name].meaning
        for name in known_columns((*OF_STATES, *OF_NEURONS, *OF_PROBE), rows)
    }
    if with_classes(last.layers):
        meanings |= CLASS_MEANINGS
    return "\n".join(
        f"<dt>{heading}</dt><dd>{escape(meaning)}</dd>" for heading, meaning in meanings.items()
    )


def _last_place(history: Sequence[EvaluationView]) -> str:
    unit, where = positions(history)
    return f"{unit} {where[-1]}"


def _section(heading: str, *parts: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{''.join(parts)}\n</section>\n"


def _figure(figure: "Figure", alt: str, caption: str) -> str:
    matplotlib = require("matplotlib", extra="plot", purpose="Drawing figures")
    written = BytesIO()
    # Letters stay letters, which the reader's fonts draw: a tenth of the size of outlines.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=nothing)
    source = f"data:image/svg+xml;base64,{b64encode(written.getvalue()).decode()}"
    image = f'<img alt="{escape(alt)}" src="{source}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"

"""Tables of what the layers' states tell of classes."""

import math
from collections.abc import Mapping

from tensorstate_callbacks.display.tables import Table, scrolling
from tensorstate_callbacks.display.view import LayerView, short_names
from tensorstate_callbacks.metrics.classes import ClassMetrics

CLASS_MEANINGS = {
    "information": "mutual information of state and label, bits; beside it that of shuffled labels",
    "of": "entropy of the labels, bits: the most that a state can tell of them",
    "divergence": "mean Jensen-Shannon divergence of the states of two classes, bits, 0 (alike) to "
    "1 (none in common); beside it that of shuffled labels",
    "lowest, highest": "efficiencies of the classes; beside them the mean of shuffled labels",
}


def with_classes(layers: Mapping[str, LayerView]) -> dict[str, ClassMetrics]:
    """Return what is known of classes, of the layers of which anything is."""
    return {name: x.classes for name, x in layers.items() if x.classes is not None}


def classes_table(layers: Mapping[str, LayerView], caption: str = "") -> Table | None:
    """Return a table of one row per layer; None where nothing is known of classes."""
    found = with_classes(layers)
    headings = ["layer", "classes", "information", "shuffled", "of", "divergence", "shuffled"]
    headings += ["lowest", "highest", "shuffled"]
    rows = []
    for name, classes in found.items():
        efficiencies = classes.efficiency.tolist()
        numbers = (
            *(classes.information, classes.shuffled_information, classes.label_entropy),
            *(classes.mean_divergence, classes.mean_shuffled_divergence),
            *(min(efficiencies), max(efficiencies)),
            math.fsum(classes.shuffled_efficiency.tolist()) / classes.n_classes,
        )
        cells = ["–" if number is None else f"{number:.4f}" for number in numbers]
        rows.append([name, str(classes.n_classes), *cells])
    return Table(headings, rows, caption) if found else None


def class_efficiencies_table(layers: Mapping[str, LayerView], caption: str = "") -> Table | None:
    """Return a table of one row per class: its efficiency in each layer, and of shuffled labels.

    None where nothing is known of classes.
    """
    found = with_classes(layers)
    labels = sorted({label for classes in found.values() for label in classes.labels.tolist()})
    columns = []
    for classes in found.values():
        pairs = zip(
            classes.labels.tolist(),
            classes.efficiency.tolist(),
            classes.shuffled_efficiency.tolist(),
            strict=True,
        )
        columns.append({label: f"{own:.4f} ({shuffled:.4f})" for label, own, shuffled in pairs})
    rows = [[str(label), *(column.get(label, "–") for column in columns)] for label in labels]
    return Table(["class", *found], rows, caption) if found else None


def classes_text(layers: Mapping[str, LayerView]) -> str:
    """Return the table of `classes_table` as text, after an empty line; empty if there is none."""
    table = classes_table(layers)
    if table is None:
        return ""
    names = short_names([row[0] for row in table.rows], 20)
    rows = [[name, *row[1:]] for name, row in zip(names, table.rows, strict=True)]
    return f"\n\n{Table(table.headings, rows).text()}"


def classes_html(layers: Mapping[str, LayerView]) -> str:
    """Return the table of `classes_table` for a notebook; empty if there is none."""
    table = classes_table(layers)
    return "" if table is None else scrolling(table)

"""Columns of tables: a layer's metrics with their headings, formats and meanings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


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
    "n_states": Column("states", ",.0f", "states seen, repetitions included"),
    "n_distinct": Column("distinct", ",.0f", "distinct states seen"),
    "n_singletons": Column("singletons", ",.0f", "states seen exactly once"),
    "coverage": Column(
        "coverage",
        ".4f",
        "Good-Turing estimate of how likely the next state is one already seen, share 0 to 1",
    ),
    "max_share": Column("max share", ".4f", "share of the most frequent state, 0 to 1"),
    "entropy": Column("entropy", ".3f", "entropy of the states, bits"),
    "efficiency": Column("efficiency", ".4f", "entropy per neuron, bits, 0 to 1"),
    "ceiling": Column("ceiling", ".4f", "highest efficiency that so few states can show, 0 to 1"),
    "ceiling_share": Column("reached", ".4f", "share of the ceiling that the efficiency reaches"),
    "firing_rate": Column("firing", ".4f", "mean firing rate: share of neurons that fire, 0 to 1"),
    "n_never": Column("never", ",.0f", "neurons that never fired"),
    "n_always": Column("always", ",.0f", "neurons that fired in every state"),
    "dead": Column("never", ".4f", "share of the neurons that never fired, 0 to 1"),
    "always": Column("always", ".4f", "share of the neurons that fired in every state, 0 to 1"),
}
# What fits in a terminal.
BRIEF = (
    "n_neurons",
    "n_states",
    "n_distinct",
    "efficiency",
    "ceiling",
    "ceiling_share",
    "coverage",
    "n_never",
)
# All of it, in two tables of which each fits.
OF_STATES = ("n_neurons", "n_states", "n_distinct", "n_singletons", "coverage", "max_share")
OF_NEURONS = (
    "entropy",
    "efficiency",
    "ceiling",
    "ceiling_share",
    "firing_rate",
    "n_never",
    "n_always",
    "dead",
    "always",
)


def known_columns(names: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return those of the metrics that at least one of the layers has."""
    return [name for name in names if any(row.get(name) is not None for row in rows)]

"""What TensorBoard and MLflow get of single neurons, where they were asked for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tensorstate_callbacks.display.neuron_plots import plot_neurons
from tensorstate_callbacks.display.view import followed_to_the_end, printable
from tensorstate_callbacks.reports.metric_keys import layer_keys
from tensorstate_callbacks.reports.report import EfficiencyReport, History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Layers that get a figure of their neurons, the first ones.
MOST_DRAWN = 6
MOST_ROWS = 10_000


def draw_neurons(history: History) -> "Iterator[tuple[str, Figure]]":
    """Yield the figures of the neurons of the first six layers of a fit, under safe names.

    Args:
        history: The reports of the fit, recorded with `neurons=True`.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    layers = list(history[-1].layers)
    for name, key in list(zip(layers, layer_keys(layers), strict=True))[:MOST_DRAWN]:
        # Of a layer whose width has changed, what was seen since.
        yield f"neurons/{key}", plot_neurons(followed_to_the_end(history, name), name)


def neuron_columns(report: EfficiencyReport) -> dict[str, list[Any]]:
    """Return a table of neurons: layer, index, firing rate, and what there is to say of each.

    Args:
        report: An evaluation recorded with `neurons=True`.

    Returns:
        The columns. Of more than 10,000 neurons only those that there is something to say of, and
        no more than 10,000; a last row says how many are missing.
    """
    rows: list[tuple[Any, ...]] = [
        (printable(name), neuron, rate, words)
        for name, layer in report.layers.items()
        if layer.neurons is not None
        for neuron, (rate, words) in enumerate(
            zip(layer.neurons.rates.tolist(), layer.neurons.describe(), strict=True)
        )
    ]
    if len(rows) > MOST_ROWS:
        kept = [row for row in rows if row[-1]][:MOST_ROWS]
        rows = [*kept, ("", None, None, f"{len(rows) - len(kept):,} more neurons are not listed")]
    names = ("layer", "neuron", "firing_rate", "state")
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}

"""What limits the metrics of an evaluation, in sentences."""

import math
from collections.abc import Mapping

from tensorstate_callbacks.display.view import LOW_COVERAGE, layers_of_low_coverage
from tensorstate_callbacks.errors import list_some
from tensorstate_callbacks.metrics.neurons import neuron_rows
from tensorstate_callbacks.reports.layer_report import LayerReport

_OF_NEURONS = {
    "never fired": "Neurons that never fired:",
    "always fired": "Neurons that fired in every state:",
    "agree": "Neurons that fired in exactly the same states:",
    "oppose": "Neurons of which one fired exactly where another did not:",
}
# Share of the labels' entropy that shuffled ones seem to be told of by chance.
_MOST_BY_CHANCE = 0.5


def describe_limits(
    layers: Mapping[str, LayerReport], accuracy: float | None, alpha: float
) -> list[str]:
    """Return what a reader of the metrics must know to read them right.

    Args:
        layers: Layer name to report, in forward order.
        accuracy: Accuracy on the same data, share 0 to 1; None where there was none.
        alpha: Order of the Rényi entropy.

    Returns:
        One sentence or more per limit, naming the layers it holds for; empty where there is none.
    """
    found = [
        describe_low_coverage(layers, alpha),
        _one_state(layers),
        _constant(layers),
        _few_units(layers),
        *_neurons(layers),
        _alike_on_probe(layers),
        _few_for_classes(layers),
    ]
    if accuracy is None:
        found.append("There is no accuracy, so there is no aIQ.")
    return [note for note in found if note is not None]


def describe_low_coverage(
    layers: Mapping[str, LayerReport], alpha: float, more: str = "more validation data"
) -> str | None:
    """Return what is to be said about layers of which too little was seen; None if there are none.

    Such a layer's Good-Turing coverage is below 0.5: had more samples been shown, more than half of
    their states would have been new ones.

    Args:
        layers: Layer name to report, in forward order.
        alpha: Order of the Rényi entropy.
        more: What to give for more states to be seen.
    """
    low = layers_of_low_coverage(layers)
    if not low:
        return None
    seen = ", ".join(f"{name} ({coverage:.2f})" for name, coverage in low.items())
    order = "" if alpha == 1 else " by Shannon entropy"
    sizes = [layers[name].group_size for name in low]
    fewer = max(min(size or 16 for size in sizes) // 2, 1)
    return (
        f"Coverage is below {LOW_COVERAGE} in {seen}: most states were seen only once there, so "
        "the efficiency tells how much data there was, not what the layer does. Count groups of "
        f"{fewer} neurons (group_size={fewer}), give {more}, or read "
        f"report.layers[{next(iter(low))!r}].interval(): it estimates the efficiency{order}, "
        "unseen states included."
    )


def _one_state(layers: Mapping[str, LayerReport]) -> str | None:
    names = [name for name, layer in layers.items() if layer.n_distinct == 1]
    if not names:
        return None
    return (
        f"Only one state was seen in {', '.join(names)}: efficiency 0 there makes network "
        "efficiency and aIQ 0 too. Probe the input of such a layer, set another threshold, or "
        "exclude it."
    )


def _few_for_classes(layers: Mapping[str, LayerReport]) -> str | None:
    found = {
        name: layer.classes
        for name, layer in layers.items()
        if layer.classes is not None
        and layer.classes.shuffled_information > _MOST_BY_CHANCE * layer.classes.label_entropy > 0
    }
    if not found:
        return None
    seen = ", ".join(
        f"{name} ({classes.shuffled_information:.2f} of {classes.label_entropy:.2f} bits)"
        for name, classes in found.items()
    )
    sizes = [layers[name].group_size for name in found]
    fewer = max(min(size or 16 for size in sizes) // 2, 1)
    return (
        f"Even of shuffled labels the states tell most in {seen}, since most of them were seen in "
        "few samples only: too little was seen there to tell classes apart. Count the layers in "
        f"groups of {fewer} neurons (group_size={fewer}), of which few states suffice, or give "
        "more validation data; and read the metrics of classes beside those of shuffled labels."
    )


def _constant(layers: Mapping[str, LayerReport]) -> str | None:
    shares = ", ".join(
        f"{name} ({layer.n_never} never, {layer.n_always} always, of {layer.n_neurons})"
        for name, layer in layers.items()
        if layer.n_distinct > 1 and 2 * (layer.n_never + layer.n_always) > layer.n_neurons
    )
    if not shares:
        return None
    return (
        "More than half of the neurons never fired or always did, and carry no information, in "
        f"{shares}."
    )


def _neurons(layers: Mapping[str, LayerReport]) -> list[str]:
    """Return a sentence of each thing there is to say of single neurons, where that was asked."""
    found: dict[str, list[str]] = {}
    for name, layer in layers.items():
        if layer.neurons is not None and layer.neurons.followed:
            for row in neuron_rows(layer.neurons):
                found.setdefault(row.what, []).append(f"{name} ({row.number:,}: {row.which})")
    return [
        f"{_OF_NEURONS[what]} {list_some(found[what])}." for what in _OF_NEURONS if what in found
    ]


def _few_units(layers: Mapping[str, LayerReport]) -> str | None:
    sizes = {
        name: layer.group_size
        for name, layer in layers.items()
        if layer.n_units > 1 and layer.neurons is not None and layer.neurons.agreement is not None
    }
    if not sizes:
        return None
    return (
        f"Which neurons agree or oppose each other is known within each unit only in "
        f"{list_some(f'{name} (units of {size})' for name, size in sizes.items())}: leave "
        "group_size out to compare all of a layer."
    )


def _alike_on_probe(layers: Mapping[str, LayerReport]) -> str | None:
    names = [
        name
        for name, layer in layers.items()
        if layer.probe is not None and layer.probe.naswot == -math.inf
    ]
    if not names:
        return None
    return (
        f"NASWOT's score is minus infinity in {', '.join(names)}: at the beginning two samples of "
        "probe_data had the same states there, or there are more samples than the layer can tell "
        "apart. Give fewer samples, or others, to compare it."
    )

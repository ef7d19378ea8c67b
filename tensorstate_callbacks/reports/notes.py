"""A report in; sentences that say what limits its figures out."""

from collections.abc import Iterable

from tensorstate_callbacks.display.columns import LOW_COVERAGE
from tensorstate_callbacks.reports.layer_report import LayerReport
from tensorstate_callbacks.reports.report import EfficiencyReport


def notes(report: EfficiencyReport) -> list[str]:
    """Return what a reader of the report must know to read its figures right.

    Args:
        report: The figures of one evaluation pass.

    Returns:
        One sentence or more per limit, naming the layers it holds for; empty where there is none.
    """
    found = [low_coverage(report), _one_state(report), _constant(report)]
    if report.accuracy is None:
        found.append("There is no accuracy, so there is no aIQ.")
    return [note for note in found if note is not None]


def low_coverage(report: EfficiencyReport) -> str | None:
    """Return what is to be said about layers of which too little was seen; None if there are none.

    Such a layer's Good-Turing coverage is below 0.5: had more samples been shown, more than half of
    their states would have been new ones.
    """
    layers = [layer for layer in report.layers.values() if layer.coverage < LOW_COVERAGE]
    if not layers:
        return None
    seen = ", ".join(f"{layer.name} ({layer.coverage:.2f})" for layer in layers)
    order = "" if report.alpha == 1 else " by Shannon entropy"
    return (
        f"Coverage is below {LOW_COVERAGE} in {seen}: most states were seen only once there, so "
        "the efficiency tells how many were seen rather than what the layer does. More validation "
        f"data or fewer neurons would be needed. Until then read the efficiency{order} that "
        f"report.layers[{layers[0].name!r}].interval() estimates, and its range: they allow for "
        "unseen states (Chao-Shen). Compare runs on the same number of samples only."
    )


def _one_state(report: EfficiencyReport) -> str | None:
    layers = [layer for layer in report.layers.values() if layer.n_distinct == 1]
    if not layers:
        return None
    return (
        f"Only one state was seen in {_names(layers)}: efficiency 0 there makes network efficiency "
        "and aIQ 0 too. Probe the input of such a layer, set another threshold, or exclude it."
    )


def _constant(report: EfficiencyReport) -> str | None:
    layers = [
        layer
        for layer in report.layers.values()
        if layer.n_distinct > 1 and 2 * (layer.n_never + layer.n_always) > layer.n_neurons
    ]
    if not layers:
        return None
    shares = ", ".join(
        f"{layer.name} ({layer.n_never} never, {layer.n_always} always, of {layer.n_neurons})"
        for layer in layers
    )
    return (
        f"More than half of the neurons never fired or always did, and tell nothing, in {shares}."
    )


def _names(layers: Iterable[LayerReport]) -> str:
    return ", ".join(layer.name for layer in layers)

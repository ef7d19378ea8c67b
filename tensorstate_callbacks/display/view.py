"""What tables and plots read of evaluations: of fresh reports, and of finished runs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tensorstate_callbacks.errors import StatesNotAvailableError, list_some
from tensorstate_callbacks.metrics.classes import ClassMetrics
from tensorstate_callbacks.metrics.lifelines import Lifelines
from tensorstate_callbacks.metrics.neurons import NeuronCounts
from tensorstate_callbacks.states.spectrum import Spectrum

# Below it, more than half of what the next sample shows was never seen.
LOW_COVERAGE = 0.5


class LayerView(Protocol):
    """A layer in one evaluation: a `LayerReport`, or a layer of a finished run."""

    @property
    def efficiency(self) -> float | None:
        """Bits per neuron, 0 to 1; None where it wasn't logged."""

    @property
    def ceiling(self) -> float | None:
        """The highest efficiency that so few states can show; None where it isn't known."""

    @property
    def rate_bound(self) -> float | None:
        """Efficiency if the neurons fired independently, 0 to 1; None where it isn't known."""

    @property
    def coverage(self) -> float | None:
        """Good-Turing coverage, share 0 to 1; None where it isn't known."""

    @property
    def spectrum(self) -> Spectrum | None:
        """Frequency spectrum of its states; None where it isn't known."""

    @property
    def neurons(self) -> NeuronCounts | None:
        """How often each neuron fired, and which agree; None where it isn't known."""

    @property
    def classes(self) -> ClassMetrics | None:
        """What its states tell of classes; None where that isn't known."""

    def metrics(self) -> dict[str, Any]:
        """Return its metrics under the names of `tables.COLUMNS`, as far as known."""


class EvaluationView(Protocol):
    """An evaluation: an `EfficiencyReport`, or one of a finished run."""

    @property
    def epoch(self) -> int | None:
        """Epoch counted from 0; None outside training."""

    @property
    def accuracy(self) -> float | None:
        """Share, 0 to 1; None where there was none."""

    @property
    def efficiency(self) -> float | None:
        """Network efficiency, share 0 to 1; None where it wasn't logged."""

    @property
    def aiq(self) -> float | None:
        """Share, 0 to 1; None where there is no accuracy."""

    @property
    def layers(self) -> Mapping[str, LayerView]:
        """Layer name to layer, in forward order."""

    def facts(self) -> list[str]:
        """Return in a few words each how the metrics were made, as far as known."""

    def notes(self) -> list[str]:
        """Return what limits the metrics, in sentences, as far as known."""


def positions(history: Sequence[EvaluationView]) -> tuple[str, list[int]]:
    """Return the unit of a training's time axis, and the place of each evaluation on it.

    Epochs count from 1, as both frameworks print them. Over several fits, or without epochs, the
    evaluations are counted.
    """
    epochs = [report.epoch + 1 for report in history if report.epoch is not None]
    if len(epochs) == len(history) and epochs == sorted(set(epochs)):
        return "epoch", epochs
    return "evaluation", list(range(1, len(history) + 1))


def best_evaluation(history: Sequence[EvaluationView]) -> int | None:
    """Return the index of the highest aIQ, the first of equals; None where there is no aIQ."""
    known = [(report.aiq, -index) for index, report in enumerate(history) if report.aiq is not None]
    return -max(known)[1] if known else None


def best_and_last(history: Sequence[EvaluationView]) -> list[tuple[int, str]]:
    """Return the index of the evaluation with the best aIQ and of the last, and which they are.

    They may be one.
    """
    best, last = best_evaluation(history), len(history) - 1
    if best is None:
        return [(last, "last")]
    return [(last, "best aIQ and last")] if best == last else [(best, "best aIQ"), (last, "last")]


def layer_names(history: Sequence[EvaluationView]) -> list[str]:
    """Return the names of all layers, in forward order."""
    return list(dict.fromkeys(name for report in history for name in report.layers))


def efficiencies(history: Sequence[EvaluationView], layer: str) -> list[float | None]:
    """Return a layer's efficiency in each evaluation; None where it wasn't probed or logged."""
    return [
        report.layers[layer].efficiency if layer in report.layers else None for report in history
    ]


def ceilings(history: Sequence[EvaluationView], layer: str) -> list[float | None]:
    """Return a layer's ceiling in each evaluation; None where it isn't known."""
    return [report.layers[layer].ceiling if layer in report.layers else None for report in history]


def lifelines(history: Sequence[EvaluationView], layer: str) -> Lifelines:
    """Return how often each neuron of a layer fired in each evaluation; see `History.lifelines`."""
    found = [report.layers.get(layer) for report in history]
    if not any(found):
        raise ValueError(
            f"no evaluation has a layer named {layer!r}; there are "
            f"{list_some(layer_names(history)) or 'none'}"
        )
    unit, where = positions(history)
    seen = [(at, each) for at, each in zip(where, found, strict=True) if each is not None]
    lacking = [str(at) for at, each in seen if each.neurons is None]
    if lacking:
        raise StatesNotAvailableError(
            f"how often each neuron of {layer!r} fired isn't known of {unit} {list_some(lacking)}: "
            "checkpoints, files and copies keep that of recordings with neurons=True only. Give "
            "neurons=True to the callback or recording, or ask for the lifelines of history[n:], "
            "the evaluations of which it is known"
        )
    counts = [None if each is None else each.neurons for each in found]
    widths = sorted({len(each.fired) for each in counts if each is not None})
    if len(widths) > 1:
        raise ValueError(
            f"{layer!r} has {' and '.join(map(str, widths))} neurons in different evaluations, so "
            "its neurons can't be followed: ask for the lifelines of a slice of the history"
        )
    rates = np.full((widths[0], len(history)), np.nan)
    for place, each in enumerate(counts):
        if each is not None:
            rates[:, place] = each.rates
    return Lifelines(layer, unit, np.array(where), rates)


def followed_to_the_end(history: Sequence[EvaluationView], layer: str) -> list[EvaluationView]:
    """Return the latest evaluations, all of which know of the same neurons of a layer."""
    found: list[EvaluationView] = []
    width = None
    for report in reversed(history):
        neurons = report.layers[layer].neurons if layer in report.layers else None
        if neurons is None or len(neurons.fired) != (width or len(neurons.fired)):
            break
        width = len(neurons.fired)
        found.append(report)
    return found[::-1]


def layers_of_low_coverage(layers: Mapping[str, LayerView]) -> dict[str, float]:
    """Return the coverage of each layer whose efficiency tells more of the number of samples."""
    known = {name: layer.coverage for name, layer in layers.items()}
    return {name: x for name, x in known.items() if x is not None and x < LOW_COVERAGE}


def printable(text: str) -> str:
    r"""Return a name or sentence in one line that every file, terminal and page takes.

    What can't be shown, such as line breaks, NUL and lone surrogates, stands as Python writes it.

    Examples:
        >>> print(printable("a\nb\udc80"))
        a\nb\udc80
    """
    if text.isprintable():
        return text
    return "".join(
        # Joiners part or bind letters of many scripts.
        sign if sign.isprintable() or sign in "\u200c\u200d" else _escaped(sign)
        for sign in text
    )


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def short(name: str, length: int = 40) -> str:
    """Return the name, something in its middle left out if it is longer than `length`.

    Examples:
        >>> short("encoder.layer.11.attention.output.dense", 30)
        'encoder.la…ention.output.dense'
    """
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[head + 1 - length :]}"


def short_names(names: Iterable[str], length: int) -> list[str]:
    """Return names that are printable and short; those that become alike have a number in front.

    Examples:
        >>> short_names(["encoder.1.attention.dense", "encoder.2.attention.dense", "head"], 16)
        ['1:enco…ion.dense', '2:enco…ion.dense', 'head']
    """
    originals = list(map(printable, names))
    shortened = [short(name, length) for name in originals]
    often = Counter(shortened)
    found: list[str] = []
    for number, (name, brief) in enumerate(zip(originals, shortened, strict=True), start=1):
        if often[brief] > 1:
            mark = f"{number}:"
            brief = mark + short(name, length - len(mark))
        found.append(brief)
    return found

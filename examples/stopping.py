"""Stop trainings early by several rules, and compare the weights that each restores."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from epoch_metrics import curve
from seed_intervals import Interval, interval_of

Mode = Literal["min", "max"]

GROUPED_AIQ = "grouped aIQ"
GROUPED_EFFICIENCY = "grouped efficiency"

# The metric that each rule monitors, and whether lower or higher is better.
RULES: dict[str, tuple[str, Mode]] = {
    GROUPED_AIQ: ("grouped/aiq", "max"),
    GROUPED_EFFICIENCY: ("grouped/efficiency", "max"),
    "aIQ": ("aiq", "max"),
    "validation accuracy": ("val_accuracy", "max"),
    "validation loss": ("val_loss", "min"),
}
NO_STOP = "no stopping"
ORACLE = "best epoch by test accuracy"
# What each of the two rules of groups is compared with.
OTHERS = ("aIQ", "validation accuracy", "validation loss", NO_STOP)


class Stop(NamedTuple):
    """What early stopping makes of a training; epochs count from 0.

    Attributes:
        best: The epoch whose weights are restored.
        last: The epoch after which training ends.
        early: Whether that is for want of progress, and not because the epochs are over.
    """

    best: int
    last: int
    early: bool


def stop_early(values: Sequence[float], mode: Mode, patience: int) -> Stop:
    """Return where `EarlyStopping(mode=mode, patience=patience)` ends a training.

    Keras's and Lightning's agree: only a value better than all before counts as progress, and
    training ends with the `patience`-th epoch in a row that brings none.

    Args:
        values: The monitored metric of each epoch.
        mode: Whether lower or higher is better.
        patience: Epochs without progress to put up with.

    Raises:
        ValueError: There is no value, or one is NaN.
    """
    if not values or any(math.isnan(value) for value in values):
        raise ValueError(f"early stopping needs a number for each epoch; got {values}")
    best = 0
    for epoch, value in enumerate(values):
        if value > values[best] if mode == "max" else value < values[best]:
            best = epoch
        if epoch - best >= max(patience, 1):
            return Stop(best, epoch, early=True)
    return Stop(best, len(values) - 1, early=False)


def stop_by(run: dict[str, Any], rule: str, patience: int) -> Stop:
    """Return where a rule stops a training, or one of the two that rules are measured by.

    Args:
        run: The training.
        rule: A key of `RULES`, `NO_STOP` or `ORACLE`.
        patience: Epochs without progress to put up with.
    """
    tested = curve(run, "test_accuracy")
    end = len(tested) - 1
    if rule == NO_STOP:
        return Stop(end, end, early=False)
    if rule == ORACLE:
        return Stop(tested.index(max(tested)), end, early=False)
    metric, mode = RULES[rule]
    return stop_early(curve(run, metric), mode, patience)


def restored(runs: Sequence[dict[str, Any]], rule: str, patience: int) -> list[float]:
    """Return each seed's test accuracy with the weights that the rule restores."""
    return [curve(run, "test_accuracy")[stop_by(run, rule, patience).best] for run in runs]


def gains(runs: Sequence[dict[str, Any]], rule: str, other: str, patience: int) -> list[float]:
    """Return by how much a rule beats another in test accuracy, seed by seed."""
    pairs = zip(restored(runs, rule, patience), restored(runs, other, patience), strict=True)
    return [ours - theirs for ours, theirs in pairs]


def describe_stops(runs: Sequence[dict[str, Any]], rule: str, patience: int) -> list[str]:
    """Return the cells of a table that say where a rule stops, and what it leads to.

    They are the epoch restored and the test accuracy there, the last epoch and the test accuracy
    then, and what the rule falls short of the best epoch by.
    """
    stops = [stop_by(run, rule, patience) for run in runs]
    cells = [_mean_epoch([stop.best for stop in stops]), str(_accuracy(runs, rule, patience))]
    if rule in RULES:
        at_stop = [
            curve(run, "test_accuracy")[stop.last] for run, stop in zip(runs, stops, strict=True)
        ]
        cells += [_mean_epoch([stop.last for stop in stops]), str(interval_of(at_stop))]
    else:
        cells += ["", ""]
    behind = "" if rule == ORACLE else interval_of(gains(runs, rule, ORACLE, patience)).signed()
    return [*cells, behind]


def _mean_epoch(epochs: Sequence[int]) -> str:
    return f"{sum(epochs) / len(epochs) + 1:.1f}"


def _accuracy(runs: Sequence[dict[str, Any]], rule: str, patience: int) -> Interval:
    return interval_of(restored(runs, rule, patience))

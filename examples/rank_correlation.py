"""Correlate what is measured on noisy labels with the accuracy on true ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from epoch_metrics import curve
from scipy.stats import rankdata

GROUPED_CONV_3 = "grouped efficiency, conv_3"
GROUPED_NETWORK = "grouped efficiency, network"

# The metric of each signal, and the sign that makes more of it better.
SIGNALS: dict[str, tuple[str, int]] = {
    GROUPED_CONV_3: ("grouped/layers/conv_3/efficiency", 1),
    GROUPED_NETWORK: ("grouped/efficiency", 1),
    "the paper's efficiency": ("efficiency", 1),
    "validation accuracy": ("val_accuracy", 1),
    "low validation loss": ("val_loss", -1),
}
# What each of the two signals of groups is compared with.
RIVALS = tuple(SIGNALS)[2:]


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return Spearman's rank correlation, -1 to 1; ties share the mean of their ranks.

    0 where one of both is constant: it tells nothing of the other.

    Args:
        xs: Some values.
        ys: As many others.
    """
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (xs, ys)]
    lengths = [np.linalg.norm(rank) for rank in ranks]
    if not all(lengths):
        return 0.0
    return float(ranks[0] @ ranks[1] / (lengths[0] * lengths[1]))


def correlate(runs: Sequence[dict[str, Any]], signal: str) -> list[float]:
    """Return each seed's correlation, over the epochs, of a signal with test accuracy.

    Args:
        runs: The trainings.
        signal: A key of `SIGNALS`.
    """
    metric, sign = SIGNALS[signal]
    return [
        spearman([sign * value for value in curve(run, metric)], curve(run, "test_accuracy"))
        for run in runs
    ]


def correlation_gains(runs: Sequence[dict[str, Any]], signal: str, rival: str) -> list[float]:
    """Return by how much a signal's correlation is above a rival's, seed by seed."""
    pairs = zip(correlate(runs, signal), correlate(runs, rival), strict=True)
    return [ours - theirs for ours, theirs in pairs]

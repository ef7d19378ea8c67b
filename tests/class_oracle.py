"""What states tell of classes, by NumPy alone, and labels that are really shuffled by sample."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Firing = npt.NDArray[np.bool_]


class Told(NamedTuple):
    """Figures as in `ClassMetrics`, without those of shuffled labels."""

    n_states: npt.NDArray[Any]
    n_distinct: npt.NDArray[Any]
    entropy: npt.NDArray[Any]
    information: float
    overlap: npt.NDArray[Any]
    divergence: npt.NDArray[Any]


def entropy(counts: npt.NDArray[Any]) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def told(fires: Firing, labels: npt.NDArray[Any], group_size: int | None = None) -> Told:
    """Compute them.

    Args:
        fires: Shape (samples, positions, neurons).
        labels: Of the samples.
        group_size: Neurons of a unit; None: all.
    """
    n_neurons = fires.shape[-1]
    size = group_size or n_neurons
    units = [of_unit(fires[..., at : at + size], labels) for at in range(0, n_neurons, size)]
    n = len(units)
    return Told(
        units[0].n_states,
        np.sum([unit.n_distinct for unit in units], axis=0),
        np.sum([unit.entropy for unit in units], axis=0),
        sum(unit.information for unit in units) / n,
        np.sum([unit.overlap for unit in units], axis=0) / n,
        np.sum([unit.divergence for unit in units], axis=0) / n,
    )


def of_unit(fires: Firing, labels: npt.NDArray[Any]) -> Told:
    """Compute them of one unit.

    Args:
        fires: Shape (samples, positions, neurons), or (states, neurons).
        labels: Of the samples, or the states.
    """
    rows = np.packbits(fires.reshape(-1, fires.shape[-1]), axis=1)
    _, states = np.unique(rows, axis=0, return_inverse=True)
    classes, numbers = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(classes), states.max() + 1), np.int64)
    np.add.at(counts, (np.repeat(numbers, len(rows) // len(labels)), states.reshape(-1)), 1)
    shares = counts / counts.sum(axis=1, keepdims=True)
    entropies = np.array([entropy(row) for row in counts])
    return Told(
        counts.sum(axis=1),
        (counts > 0).sum(axis=1),
        entropies,
        entropy(counts.sum(axis=0)) + entropy(counts.sum(axis=1)) - entropy(counts.reshape(-1)),
        np.array([[a[b > 0].sum() for b in shares] for a in shares]),
        np.array(
            [
                [
                    entropy((p + q) / 2) - (entropies[a] + entropies[b]) / 2
                    for b, q in enumerate(shares)
                ]
                for a, p in enumerate(shares)
            ]
        ),
    )


def shuffled(
    fires: Firing,
    labels: npt.NDArray[Any],
    rng: np.random.Generator,
    times: int,
    group_size: int | None = None,
) -> list[Told]:
    """Compute them for labels that are dealt out anew to the samples, several times."""
    return [told(fires, rng.permutation(labels), group_size) for _ in range(times)]


def packed(fires: Firing) -> npt.NDArray[np.uint8]:
    """Return the states as counters take them."""
    return np.packbits(fires.reshape(-1, fires.shape[-1]), axis=1, bitorder="little")

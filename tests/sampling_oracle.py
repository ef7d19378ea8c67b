"""Efficiency of groups of neurons at chosen positions, by NumPy alone."""

import numpy as np

from tensorstate_callbacks.states.positions import spread_positions


def sampled_efficiency(
    values: np.ndarray, grid: tuple[int, ...], group_size: int | None, positions: int | None
) -> tuple[float, int]:
    """Return a layer's efficiency and how many states it was made from.

    Args:
        values: Activations, shape (samples, positions or the axes of `grid`, neurons).
        grid: Sizes of the axes of positions.
        group_size: Neurons of a unit; None: all.
        positions: Of each sample; None: all.
    """
    n_neurons = values.shape[-1]
    by_sample = values.reshape(len(values), -1, n_neurons)
    if positions is not None:
        by_sample = by_sample[:, spread_positions(grid, positions)]
    fires = by_sample.reshape(-1, n_neurons) > 0
    bits = 0.0
    for first in range(0, n_neurons, group_size or n_neurons):
        unit = fires[:, first : first + (group_size or n_neurons)]
        shares = np.unique(unit, axis=0, return_counts=True)[1] / len(fires)
        bits -= (shares * np.log2(shares)).sum()
    return bits / n_neurons, len(fires)

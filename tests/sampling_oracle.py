"""Groups of neurons at chosen positions, by NumPy alone, and counters without memory."""

from typing import Any

import numpy as np
import pytest

from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
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


def fail_to_count(monkeypatch: pytest.MonkeyPatch, n_neurons: int, after: int = 1) -> None:
    """Let counters of so many neurons find no memory for states after the first calls.

    What was counted elsewhere comes in one call, which finds none.
    """
    for kind in (StateCounter, GroupCounter):
        for name in ("update", "update_packed", "add_tables"):
            n_calls = iter(range(after if name == "add_tables" else 0, 10**6))
            original = getattr(kind, name, None)
            if original is None:
                continue

            def update(
                self: Any,
                *args: Any,
                n_calls: Any = n_calls,
                original: Any = original,
                **kwargs: Any,
            ) -> None:
                if self.n_neurons == n_neurons and next(n_calls) >= after:
                    raise MemoryError("no room")
                original(self, *args, **kwargs)

            monkeypatch.setattr(kind, name, update)

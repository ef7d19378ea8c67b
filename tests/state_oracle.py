"""States of activations counted by NumPy, to compare with."""

from collections.abc import Iterable

import numpy as np
import torch

from tensorstate_callbacks import StateCounter


def expected_states(
    batches: Iterable[torch.Tensor], channel_axis: int, threshold: float = 0.0
) -> dict[bytes, int]:
    """Packed state to how often it was seen, of batches of any real dtype."""
    rows = []
    for batch in batches:
        fired = (batch.detach().double() > threshold).numpy()
        moved = np.moveaxis(fired, channel_axis, -1)
        rows.append(np.packbits(moved.reshape(-1, moved.shape[-1]), axis=1, bitorder="little"))
    states, counts = np.unique(np.concatenate(rows), axis=0, return_counts=True)
    return {s.tobytes(): int(n) for s, n in zip(states, counts, strict=True)}


def counted_states(counter: StateCounter) -> dict[bytes, int]:
    states, counts = counter.states(), counter.counts()
    return {s.tobytes(): int(n) for s, n in zip(states, counts, strict=True)}

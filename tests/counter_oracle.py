"""What tests of StateCounter share: states that recur, and what plain Python counts in them."""

from collections import Counter

import numpy as np
import pytest

from tensorstate_callbacks.states.counter import StateCounter, available_kernels, use_kernel

WIDTHS = (1, 2, 7, 8, 9, 20, 22, 23, 63, 64, 65, 127, 128, 129, 256, 512, 1024, 2048)
every_kernel = pytest.mark.parametrize("kernel", available_kernels())
native_kernels = pytest.mark.parametrize("kernel", available_kernels()[:-1])


def new_counter(kernel: str, n_neurons: int) -> StateCounter:
    with use_kernel(kernel):
        return StateCounter(n_neurons)


def expected_states(activations, channel_axis, threshold=0.0):
    """(positions, neurons) bool, compared as exact numbers rather than in the array's dtype."""
    moved = np.moveaxis(activations, channel_axis, -1)
    with np.errstate(invalid="ignore"):  # NaN
        exact = moved.astype(np.float64) if moved.dtype.kind in "fVb" else moved
        if moved.dtype.kind in "iu" or isinstance(threshold, int):
            exact = exact.astype(object)  # Python compares an int with a float exactly
        return (exact > threshold).astype(bool).reshape(-1, moved.shape[-1])


def assert_counts(counter, states):
    rows = np.packbits(states, axis=1, bitorder="little")
    expected = Counter(row.tobytes() for row in rows)
    assert counter.n_states == len(rows)
    assert counter.n_distinct == len(expected)
    assert [row.tobytes() for row in counter.states()] == sorted(expected)
    assert counter.counts().tolist() == [expected[row] for row in sorted(expected)]
    assert counter.states().dtype == np.uint8
    assert counter.counts().dtype == counter.fired().dtype == np.uint64
    assert counter.fired().tolist() == states.sum(axis=0).tolist()
    values, multiplicities = counter.spectrum()
    assert dict(zip(values.tolist(), multiplicities.tolist(), strict=True)) == Counter(
        expected.values()
    )
    assert values.tolist() == sorted(values.tolist())


def recurring(n_positions, n_neurons, seed=0):
    """(positions, neurons) float32 in which some states come back, with other numbers."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 0.0, 1.0], (max(2, n_positions // 3), n_neurons))
    chosen = signs[rng.integers(0, len(signs), n_positions)]
    return (chosen * rng.uniform(0.1, 3, chosen.shape)).astype(np.float32)


def large_batch(width, layout="NCHW"):
    """Activations of a layer that several threads work on, and their channel axis."""
    side = 17 if width > 300 else 57
    batch = recurring(12 * side * side, width).reshape(12, side, side, width)
    if layout == "NHWC":
        return batch, -1
    if layout == "HWNC":
        return batch.transpose(1, 2, 0, 3), 3
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2)), 1

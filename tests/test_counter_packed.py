"""Packed rows read where they lie: padding in any block, any address, a state that prevails."""

from collections import Counter

import numpy as np
import pytest
from counter_oracle import WIDTHS, assert_counts, every_kernel, new_counter

PADDED = [width for width in WIDTHS if width % 8]


def packed(states):
    return np.packbits(states, axis=1, bitorder="little")


def some_states(n_states, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (max(2, n_states // 4), width), bool)[
        rng.integers(0, max(2, n_states // 4), n_states)
    ]


@every_kernel
@pytest.mark.parametrize("width", PADDED)
@pytest.mark.parametrize("place", [0, 511, 512, 1500, -1])
def test_a_bit_beyond_the_neurons_in_any_row_leaves_the_counter_as_it_was(kernel, width, place):
    counter, before = new_counter(kernel, width), some_states(700, width)
    counter.update_packed(packed(before))
    rows = packed(some_states(3000, width, seed=1))
    wrong = rows.copy()
    wrong[place, -1] |= 128
    with pytest.raises(ValueError, match=f"bits set beyond their {width} neurons"):
        counter.update_packed(wrong)
    with pytest.raises(ValueError, match=f"bits set beyond their {width} neurons"):
        counter.add_counts(wrong, np.full(len(wrong), 300, np.uint64))
    never = np.ones(len(wrong), np.uint64)
    never[place] = 0
    with pytest.raises(ValueError, match=f"bits set beyond their {width} neurons"):
        counter.add_counts(wrong, never)
    assert_counts(counter, before)
    counter.update_packed(rows)
    assert_counts(counter, np.concatenate([before, some_states(3000, width, seed=1)]))


@every_kernel
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0, 1, 4, 8])
def test_rows_at_any_address_are_counted_alike(kernel, width, offset):
    states = some_states(2000, width)
    rows = packed(states)
    memory = np.zeros(rows.size + 64, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    lying = memory[start : start + rows.size].reshape(rows.shape)
    lying[:] = rows
    counter = new_counter(kernel, width)
    counter.update_packed(lying)
    assert_counts(counter, states)
    assert np.array_equal(lying, rows)


@every_kernel
@pytest.mark.parametrize("width", [3, 8, 12, 16, 20, 22])
def test_whichever_state_prevails_each_is_counted_exactly(kernel, width):
    # Lengths around those in which blocks are sifted, of states that come in runs or one by one.
    counter, expected = new_counter(kernel, width), Counter()
    rng = np.random.default_rng(width)
    kept = []
    for size in (1, 15, 16, 511, 513, 1000, 5000):
        for state in rng.integers(0, 2**width, 3):
            numbers = np.full(size, state)
            others = rng.random(size) < rng.choice([0, 0.05, 0.6])
            numbers[others] = rng.integers(0, 2**width, others.sum())
            numbers = np.repeat(numbers, rng.choice([1, 2, 40]))
            rows = numbers.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : -(-width // 8)]
            counter.update_packed(rows)
            kept.append(rows)
            expected.update(numbers.tolist())
            # Read in between: the state that prevails is counted beside the others.
            assert dict(zip(*sorted_counts(counter), strict=True)) == expected
    twin = new_counter(kernel, width)
    twin.merge(counter)
    twin.merge(twin)
    counter.merge(twin)
    assert dict(zip(*sorted_counts(counter), strict=True)) == {
        state: 3 * count for state, count in expected.items()
    }
    assert counter.n_distinct == len(expected)
    counter.reset()
    assert (counter.n_states, counter.n_distinct) == (0, 0)
    counter.update_packed(np.concatenate(kept))
    assert dict(zip(*sorted_counts(counter), strict=True)) == expected


def sorted_counts(counter):
    states = counter.states()
    numbers = np.zeros((len(states), 4), np.uint8)
    numbers[:, : states.shape[1]] = states
    return numbers.view("<u4").ravel().tolist(), counter.counts().tolist()

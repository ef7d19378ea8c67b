"""Counted states are cut into shares that are disjoint, complete and the same everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorstate_callbacks import StateCounter
from tensorstate_callbacks.recording.pass_counts import ProbeCounts, merge_counts, merge_orders
from tensorstate_callbacks.states.partition import join_states, part_of, partition_states


def states_of(n_neurons: int, m: int, seed: int) -> np.ndarray:
    bits = np.random.default_rng(seed).random((m, n_neurons)) < 0.5
    return np.packbits(bits, axis=1, bitorder="little")


def mixed(word: int) -> int:
    """SplitMix64 in Python's integers: no overflow, no byte order."""
    word = (word + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def expected_share(state: np.ndarray, n_parts: int) -> int:
    number, h = int.from_bytes(state.tobytes(), "little"), 0
    for word in range(-(-len(state) // 8)):
        h = mixed(h + (number >> 64 * word) % 2**64)
    return (h >> 32) * n_parts >> 32


@given(
    n_neurons=st.integers(1, 200), n_parts=st.integers(1, 70_000), seed=st.integers(0, 2**32 - 1)
)
def test_share_depends_on_the_bits_alone(n_neurons: int, n_parts: int, seed: int) -> None:
    states = states_of(n_neurons, 20, seed)
    expected = [expected_share(state, n_parts) for state in states]
    assert part_of(states, n_parts).tolist() == expected
    # Memory in any layout.
    assert part_of(np.asfortranarray(states), n_parts).tolist() == expected


@given(
    n_neurons=st.integers(1, 200),
    n_parts=st.integers(1, 9),
    m=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_state_goes_to_one_share_with_its_count(
    n_neurons: int, n_parts: int, m: int, seed: int
) -> None:
    states = np.unique(states_of(n_neurons, m, seed), axis=0)
    # Counts above 2**63 survive the way through int64.
    counts = np.random.default_rng(seed).integers(1, 2**64, len(states), np.uint64)
    table, sizes = partition_states(states, counts, n_parts)
    assert (table.dtype, sizes.sum()) == (np.int64, len(states))
    found = {}
    for share, rows in enumerate(np.split(table, np.cumsum(sizes)[:-1])):
        its_states, its_counts = join_states(rows, n_neurons)
        assert part_of(its_states, n_parts).tolist() == [share] * len(rows)
        pairs = zip(map(bytes, its_states), its_counts.tolist(), strict=True)
        found.update(dict(pairs))
    assert found == dict(zip(map(bytes, states), counts.tolist(), strict=True))


def test_shares_are_even() -> None:
    states = np.arange(60_000, dtype="<u4").view(np.uint8).reshape(-1, 4)
    sizes = np.bincount(part_of(states, 6))
    # Five standard deviations of a binomial.
    assert abs(sizes - 10_000).max() < 5 * np.sqrt(10_000 * 5 / 6)


@pytest.mark.parametrize("n_neurons", [3, 20, 64, 70])
def test_shares_of_several_processes_add_up_to_one_process(n_neurons: int) -> None:
    parts = [states_of(n_neurons, m, seed) for seed, m in enumerate((500, 0, 300))]
    one, counters = StateCounter(n_neurons), []
    for part in parts:
        one.update_packed(part)
        counters.append(StateCounter(n_neurons))
        counters[-1].update_packed(part)
    shares = []
    for share, counter in enumerate(counters):
        own = StateCounter(n_neurons)
        for other in counters:
            table, sizes = partition_states(*other.snapshot(), len(counters))
            own.add_counts(*join_states(np.split(table, np.cumsum(sizes)[:-1])[share], n_neurons))
        shares.append(ProbeCounts(own.spectrum(), counter.fired()))
    merged = merge_counts(shares)
    assert merged.counted == one.spectrum()
    np.testing.assert_array_equal(merged.fired, one.fired())


def test_probes_are_united_in_the_order_of_the_lowest_process() -> None:
    assert merge_orders([["a", "c"], [], ["b", "a", "c"], ["c", "d"]]) == ["a", "c", "b", "d"]

"""States whose hashes are alike: told apart bit by bit, up to an error that changes nothing."""

import numpy as np
import pytest
from counter_oracle import assert_counts, native_kernels, new_counter

from tensorstate_callbacks.states.counter import StateCounter

WORD = 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # what engine.hpp multiplies with
# In reach of a bucket, its own included: 32 of them, of 6 or 7 states.
IN_REACH = {64: 192, 128: 224, 192: 224}


def mixed(key):
    """The hash of engine.hpp."""
    key = key * FIRST % WORD
    key = (key ^ key >> 32) * SECOND % WORD
    return key ^ key >> 32


INVERSES = {factor: pow(factor, -1, WORD) for factor in (FIRST, SECOND, 0x9E3779B97F4A7C15)}


def unmixed(mix):
    """The key whose hash is `mix`."""
    key = (mix ^ mix >> 32) * INVERSES[SECOND] % WORD
    return (key ^ key >> 32) * INVERSES[FIRST] % WORD


def hashed_to(width, hashes):
    """(n, width // 8) rows that have these hashes, of 64 bits; of wide rows the upper 32 count."""
    states = []
    for number, hashed in enumerate(hashes):
        if width == 64:
            words = [unmixed(hashed)]
        elif width == 128:
            words = [number * 77, mixed(number * 77) ^ unmixed(hashed)]
        else:  # the first word makes the product of the first two 0
            start = 0x243F6A8885A308D3
            start = (start << 29 | start >> 35) % WORD
            last = (start ^ unmixed(hashed)) * INVERSES[0x9E3779B97F4A7C15] % WORD
            words = [0x9E3779B97F4A7C15, 5, last]
        states.append(words)
    return np.array(states, "<u8").view(np.uint8)


def colliding(width, n_states):
    """(n_states, width // 8) rows that all belong in the last bucket a search can begin at."""
    return hashed_to(width, [0x5A5AFFFF << 32 | 0xFFFFFF00 + n for n in range(n_states)])


def bits_of(rows):
    return np.unpackbits(rows, axis=1, bitorder="little").astype(bool)


def test_the_hash_is_turned_round():
    assert [unmixed(mixed(key)) for key in (0, 1, 12345, WORD - 1)] == [0, 1, 12345, WORD - 1]


@native_kernels
@pytest.mark.parametrize("width", [64, 128, 192])
def test_as_many_colliding_states_as_a_search_reaches_are_counted_exactly(kernel, width):
    rows = colliding(width, IN_REACH[width])
    counter = new_counter(kernel, width)
    for part in np.array_split(rows, 5):
        counter.update_packed(part)
    assert_counts(counter, bits_of(rows))
    counter.update_packed(rows[::-1])
    others = np.random.default_rng(4).integers(0, 256, (20_000, width // 8), np.uint8)
    counter.update_packed(others)
    assert_counts(counter, bits_of(np.concatenate([rows, rows, others])))


@native_kernels
@pytest.mark.parametrize("width", [64, 128, 192])
def test_one_colliding_state_too_many_is_an_error_that_changes_nothing(kernel, width):
    rows = colliding(width, IN_REACH[width] + 1)
    others = np.random.default_rng(4).integers(0, 256, (3000, width // 8), np.uint8)
    counter = new_counter(kernel, width)
    counter.update_packed(rows[:100])
    counter.update_packed(others)
    for _ in range(2):
        with pytest.raises(MemoryError):
            counter.update_packed(np.concatenate([rows, others]))
        assert_counts(counter, bits_of(np.concatenate([rows[:100], others])))
    assert counter.nbytes < 100 * 2**20
    counter.update_packed(np.concatenate([others, rows[:100]]))
    assert counter.n_states == 2 * counter.n_distinct == 2 * 3100


@native_kernels
@pytest.mark.parametrize("width", [64, 128, 192])
def test_a_table_grows_where_its_states_are_whatever_its_other_parts_did(kernel, width):
    # First all states share their leading bits, so that one part splits again and again; then the
    # others split, for each of which the directory has many entries.
    random = np.random.default_rng(width)
    first, rest = (random.integers(0, 2**64, n, np.uint64) for n in (25_000, 40_000))
    first >>= np.uint64(6)
    counter = new_counter(kernel, width)
    expected = [hashed_to(width, part.tolist()) for part in (first, rest)]
    for rows in (*expected, *expected):
        counter.update_packed(rows)
    assert_counts(counter, bits_of(np.concatenate(expected * 2)))


def test_among_a_million_wide_states_hashes_of_32_bits_collide_and_states_do_not():
    # More than a hundred pairs have the same hash, whatever the hash is.
    rows = np.random.default_rng(5).integers(0, 256, (2**20, 20), np.uint8)
    rows[:, :4] = np.arange(2**20, dtype="<u4").view(np.uint8).reshape(-1, 4)
    counter = StateCounter(160)
    counter.update_packed(rows)
    counter.update_packed(rows[::-1])
    assert counter.n_distinct == 2**20
    values, multiplicities = counter.spectrum()
    assert (values.tolist(), multiplicities.tolist()) == ([2], [2**20])

"""Several threads work on one batch: the same counts as one thread's, and the same roll-back."""

import numpy as np
import pytest
from counter_oracle import large_batch, recurring
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorstate_callbacks import GroupCounter, StateCounter
from tensorstate_callbacks.states.counter import available_kernels
from tensorstate_callbacks.states.positions import PositionPacker, spread_positions

if not available_kernels()[:-1]:
    pytest.skip("NumPy counts on one thread", allow_module_level=True)
_counter = pytest.importorskip("tensorstate_callbacks._native._counter")

# Large enough to be shared, in all ways in which tables are made: an array, keys, wide rows.
WIDTHS = (12, 20, 50, 64, 100, 256, 700)


def content(counter: StateCounter) -> tuple[list, list]:
    return counter.states().tolist(), counter.counts().tolist()


def unit_tables(fired: np.ndarray, group_size: int) -> np.ndarray:
    units = [fired[:, first : first + group_size] for first in range(0, fired.shape[1], group_size)]
    return np.concatenate(
        [
            np.bincount(unit @ (1 << np.arange(unit.shape[1])), minlength=1 << unit.shape[1])
            for unit in units
        ]
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "HWNC"])
def test_states_are_those_that_one_thread_counts(width, layout):
    batch, axis = large_batch(width, layout)
    several, one = StateCounter(width, n_threads=3), StateCounter(width)
    # Before and after tables were divided.
    small = batch[:1]
    for part in (small, batch, small, batch):
        several.update(part, axis, 0.25)
        one.update(part, axis, 0.25)
    assert content(several) == content(one)
    assert several.fired().tolist() == one.fired().tolist()
    assert [list(part) for part in several.spectrum()] == [list(part) for part in one.spectrum()]
    assert several.n_states == one.n_states == 2 * (len(batch) + 1) * batch[0].size // width
    assert several.n_distinct == one.n_distinct


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("group_size", [1, 3, 8, 16])
def test_units_are_those_of_a_bincount(width, group_size):
    batch, axis = large_batch(width)
    counter, packed = (GroupCounter(width, group_size, n_threads=3) for _ in range(2))
    counter.update(batch, axis)
    fired = np.moveaxis(batch > 0, axis, -1).reshape(-1, width)
    expected = unit_tables(fired, group_size)
    assert counter.tables().tolist() == expected.tolist()
    packed.update_packed(np.packbits(fired, axis=1, bitorder="little"))
    assert packed.tables().tolist() == expected.tolist()
    counter.update(batch, axis)
    assert counter.tables().tolist() == (2 * expected).tolist()
    assert counter.n_states == 2 * len(fired)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("count", [5, 1000, None])
def test_rows_are_those_that_one_thread_packs(width, layout, count):
    batch, axis = large_batch(width, layout)
    side = batch.shape[2]
    places = None if count is None else spread_positions((side, side), min(count, side * side - 1))
    several, one = (
        PositionPacker(width, n_threads=threads).pack(batch, axis, places=places)
        for threads in (3, 1)
    )
    assert np.array_equal(several, one)
    assert len(one) == 12 * (side * side if places is None else len(places))


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.integers(1, 4000), st.integers(1, 6)), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_calls_of_all_kinds_and_sizes_add_up(width, calls, seed):
    rng = np.random.default_rng(seed)
    several, one, other = (StateCounter(width, n_threads=n) for n in (2, 1, 4))
    for n_rows, factor in calls:
        rows = np.packbits(rng.random((n_rows, width)) < rng.random(), axis=1, bitorder="little")
        counts = rng.integers(0, 5, n_rows).astype(np.uint64)
        many = np.tile(rows, (factor * 4, 1))
        for counter in (several, one):
            counter.update_packed(many)
            counter.add_counts(rows, counts)
        other.update_packed(many)
        several.merge(other)
        one.merge(other)
        several.merge(several)
        one.merge(one)
    assert content(several) == content(one)


@pytest.mark.parametrize("width", [23, 50, 64, 100, 256, 700])
@pytest.mark.parametrize("few", [1, 7, 100])
def test_few_states_are_merged_into_divided_tables(width, few):
    batch, axis = large_batch(width)
    several, one = StateCounter(width, n_threads=2), StateCounter(width)
    other = StateCounter(width)
    other.update(recurring(few, width, seed=5), 1)
    for counter in (several, one):
        counter.update(batch, axis)
        counter.merge(other)
        counter.add_counts(other.states(), other.counts())
    assert content(several) == content(one)
    # And out of divided tables, few states in each.
    small = StateCounter(width, n_threads=8)
    small.update_packed(np.tile(other.states(), (60_000, 1)))
    one.merge(small)
    several.merge(small)
    assert content(several) == content(one)


@pytest.mark.parametrize("width", [23, 50, 100, 256])
@pytest.mark.parametrize("known", [0, 300, 60000])
def test_a_call_that_finds_no_memory_leaves_the_counter_as_it_was(width, known):
    batch, axis = large_batch(width)
    counter = StateCounter(width, n_threads=2)
    # Single states before tables are divided, or a batch that divides them.
    before = recurring(known, width, seed=3)
    if known:
        counter.update(before, 1)
    content_before, states_before = content(counter), counter.n_states
    failed = 0
    for number in range(1, 400, 3):
        _counter.fail_allocation(number)
        try:
            counter.update(batch, axis)
        except MemoryError:
            failed += 1
            assert counter.n_states == states_before
            if failed % 10 == 1:
                assert content(counter) == content_before
        else:
            break
        finally:
            _counter.fail_allocation(0)
    assert failed > 3
    counter.reset()
    counter.update(batch, axis)
    fresh = StateCounter(width)
    fresh.update(batch, axis)
    assert content(counter) == content(fresh)


def test_no_rows_add_nothing_to_divided_tables():
    batch, axis = large_batch(64)
    counter = StateCounter(64, n_threads=2)
    counter.update(batch, axis)
    before = content(counter)
    counter.update(batch[:0], axis)
    counter.update_packed(np.empty((0, 8), np.uint8))
    counter.merge(StateCounter(64))
    assert content(counter) == before


def test_rows_with_bits_beyond_the_neurons_are_refused_whole():
    rows = np.zeros((60_000, 7), np.uint8)
    counter, groups = StateCounter(50, n_threads=2), GroupCounter(50, 8, n_threads=2)
    for each in (counter, groups):
        each.update_packed(rows)
        wrong = rows.copy()
        wrong[-1, -1] = 0x80
        with pytest.raises(ValueError, match="bits set beyond their 50 neurons"):
            each.update_packed(wrong)
        assert each.n_states == 60_000
    assert content(counter) == ([[0] * 7], [60_000])


@pytest.mark.parametrize("wrong", [0, -1])
def test_there_is_at_least_one_thread(wrong):
    for make in (
        lambda: StateCounter(8, n_threads=wrong),
        lambda: GroupCounter(8, 4, n_threads=wrong),
        lambda: PositionPacker(8, n_threads=wrong),
    ):
        with pytest.raises(ValueError, match=f"n_threads must be at least 1, not {wrong}"):
            make()
    with pytest.raises(TypeError, match="n_threads must be an integer"):
        StateCounter(8, n_threads=2.5)


@pytest.mark.parametrize("width", [23, 50, 64, 100, 256, 1024])
@pytest.mark.parametrize("n_threads", [2, 4])
def test_divided_tables_hold_little_more_than_one(width, n_threads, rng):
    rows = np.packbits(rng.random((100_000, width)) < 0.5, axis=1, bitorder="little")
    several, one = StateCounter(width, n_threads=n_threads), StateCounter(width)
    for part in np.split(rows, 4):
        several.update_packed(part)
        one.update_packed(part)
    assert several.n_distinct == one.n_distinct
    assert several.nbytes <= 1.2 * one.nbytes


def test_a_table_that_holds_much_is_not_copied_into_several(rng):
    drawn = np.packbits(rng.random((86_000, 256)) < 0.5, axis=1, bitorder="little")
    # Batches that one thread counts, and then a large one.
    parts = np.split(drawn, range(2000, 38_000, 2000))
    counters = several, one, divided = [StateCounter(256, n_threads=n) for n in (2, 1, 2)]
    for counter in counters:
        for part in parts[::-1] if counter is divided else parts:
            counter.update_packed(part)
    assert content(several) == content(one) == content(divided)
    assert several.nbytes == one.nbytes
    assert divided.nbytes > one.nbytes

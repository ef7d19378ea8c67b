"""Groups counted by several threads, beside forks, and where memory runs out."""

import os
import signal
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
from counter_oracle import every_kernel, native_kernels, recurring
from group_oracle import assert_groups, held, new_groups, packed
from test_counter_races import at_once, writing_to

from tensorstate_callbacks._native import fallback
from tensorstate_callbacks._native.arguments import check_padding

some_sizes = pytest.mark.parametrize("size", [1, 3, 8, 12])


def assert_sound(counter, n_states):
    """All units have seen as many states."""
    assert counter.n_states == n_states
    assert [spectrum.n_states for spectrum in counter.spectra()] == [n_states] * counter.n_units


@every_kernel
@some_sizes
def test_writers_and_readers_at_once_see_whole_batches_only(kernel, size):
    counter, other = new_groups(kernel, 30, size), new_groups(kernel, 30, size)
    batch = recurring(300, 30)
    other.update(batch, 1)
    rows, tables = packed(batch > 0), other.tables()

    def read():
        assert (counter.tables() % tables.clip(1) == 0).all()
        assert counter.n_states % 300 == 0
        assert isinstance(counter.nbytes, int)

    at_once(
        lambda: counter.update(batch, 1),
        lambda: counter.update_packed(rows),
        lambda: counter.add_counts(rows, np.ones(300, np.uint64)),
        lambda: counter.merge(other),
        lambda: counter.add_tables(tables, 300),
        lambda: other.merge(new_groups(kernel, 30, size)),
        read,
    )
    assert counter.n_states == 100 * 300
    assert counter.tables().tolist() == (tables * np.uint64(100)).tolist()


@every_kernel
def test_resets_between_writers_leave_whole_batches(kernel):
    counter, batch = new_groups(kernel, 30, 8), recurring(500, 30)
    at_once(lambda: counter.update(batch, 1), lambda: counter.update(batch, 1), counter.reset)
    assert counter.n_states % 500 == 0
    assert_sound(counter, counter.n_states)
    counter.reset()
    counter.update(batch, 1)
    assert_groups(counter, batch > 0)


@every_kernel
def test_counters_merged_into_each_other_at_once_do_not_block(kernel):
    first, second = new_groups(kernel, 20, 8), new_groups(kernel, 20, 8)
    first.update(recurring(200, 20), 1)
    at_once(lambda: first.merge(second), lambda: second.merge(first))
    assert_sound(first, first.n_states)
    assert_sound(second, second.n_states)


@every_kernel
@some_sizes
def test_a_thread_that_writes_into_rows_and_counts_falsifies_nothing_else(kernel, size):
    counter = new_groups(kernel, 30, size)
    rows, counts = np.zeros((3000, 4), np.uint8), np.ones(3000, np.uint64)
    tables = counter.tables()
    with writing_to(rows[:, :3], 0, 255), writing_to(counts, 0, 3), writing_to(tables, 0, 2):
        for done in range(1, 5):
            counter.update_packed(rows)
            assert_sound(counter, done * 3000)
        for _ in range(4):
            counter.add_counts(rows, counts)
            assert_sound(counter, counter.n_states)
        for n_states in (0, 1, 3, 4):
            with suppress(ValueError):
                counter.add_tables(tables, n_states)
            assert_sound(counter, counter.n_states)


@every_kernel
def test_bits_beyond_the_neurons_that_come_while_rows_are_counted_count_nowhere(kernel):
    counter, rows = new_groups(kernel, 12, 8), np.zeros((4000, 2), np.uint8)
    counted = 0
    with writing_to(rows[-1:, 1:], 0, 20):
        for _ in range(100):
            with suppress(ValueError):
                counter.update_packed(rows)
                counted += 4000
            assert_sound(counter, counted)


@every_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_its_parent_counts_can_count(kernel):
    counter, batch = new_groups(kernel, 60, 8), recurring(2000, 60)
    stop = threading.Event()

    def count():
        while not stop.is_set():
            counter.update(batch, 1)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        for _ in range(10):
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(20)
                    before = counter.n_states
                    counter.update(batch, 1)
                    assert before % 2000 == 0
                    assert_sound(counter, before + 2000)
                    status = 0
                except BaseException:  # noqa: BLE001 - a child must not go on in its parent's test
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
    assert_sound(counter, counter.n_states)


@native_kernels
@some_sizes
@pytest.mark.parametrize("large", [False, True])
def test_whichever_allocation_fails_nothing_changes(kernel, size, large):
    from tensorstate_callbacks._native._counter import fail_allocation

    states = recurring(5000, 20) > 0
    rows, times = packed(states), np.full(5000, 2, np.uint64)
    other = new_groups(kernel, 20, size)
    other.update(states, 1)
    if large:  # counts of 32 bits no longer hold what is added
        times[0] = 2**33
        other.add_counts(rows[:1], np.array([2**32 - 6000], np.uint64))
    full = new_groups(kernel, 20, size)
    full.add_counts(rows[:1], np.array([2**32 - 5 if large else 5], np.uint64))
    for add in (
        lambda counter: counter.update(states, 1),
        lambda counter: counter.update_packed(rows),
        lambda counter: counter.add_counts(rows, times),
        lambda counter: counter.merge(other),
        lambda counter: counter.add_tables(other.tables(), other.n_states),
        lambda counter: counter.merge(counter),
        lambda counter: counter.reset(),
    ):
        counter, whole = new_groups(kernel, 20, size), new_groups(kernel, 20, size)
        counter.merge(full)
        whole.merge(full)
        before, nbytes, failures = held(counter), counter.nbytes, 0
        add(whole)
        try:
            while True:
                fail_allocation(failures + 1)
                try:
                    add(counter)
                    break
                except MemoryError:
                    failures += 1
                fail_allocation(0)
                assert held(counter) == before
                assert counter.nbytes == nbytes
        finally:
            fail_allocation(0)
        assert held(counter) == held(whole)
        assert counter.nbytes == whole.nbytes
    fail_allocation(1)
    with pytest.raises(MemoryError, match=rf"groups of {size} of 20 neurons"):
        new_groups(kernel, 20, size)
    fail_allocation(0)


def test_what_numpy_checked_is_what_it_counts(monkeypatch):
    rows = np.zeros((3, 2), np.uint8)

    def check_and_write(given, n_neurons):
        check_padding(given, n_neurons)
        rows[:] = 255  # as another thread may

    monkeypatch.setattr(fallback, "check_padding", check_and_write)
    counter = new_groups("numpy", 12, 8)
    counter.update_packed(rows)
    assert_groups(counter, np.zeros((3, 12), bool))


def test_what_ends_numpy_halfway_changes_nothing(monkeypatch):
    counter, states = new_groups("numpy", 12, 1), recurring(2**16, 12) > 0
    counter.update_packed(packed(states[:100]))
    before, places = held(counter), iter([fallback.NumpyGroupEngine._places])

    def fail_at_the_second_block(engine, rows):
        for real in places:
            return real(engine, rows)
        raise MemoryError

    monkeypatch.setattr(fallback.NumpyGroupEngine, "_places", fail_at_the_second_block)
    with pytest.raises(MemoryError):
        counter.update_packed(packed(states))
    assert held(counter) == before

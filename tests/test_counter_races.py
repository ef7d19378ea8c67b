"""Every operation of a counter at once from several threads: nothing is lost, nothing is torn."""

import os
import signal
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from counter_oracle import every_kernel, native_kernels, new_counter, recurring

ROUNDS = 20


def at_once(*calls):
    """Run all of `calls` in threads of their own, ROUNDS times each; their errors raise here."""
    start, errors = threading.Barrier(len(calls)), []

    def repeat(call):
        try:
            start.wait()
            for _ in range(ROUNDS):
                call()
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


@every_kernel
@pytest.mark.parametrize("width", [12, 50, 100])
def test_writers_and_readers_at_once_see_whole_batches_only(kernel, width):
    counter, other = new_counter(kernel, width), new_counter(kernel, width)
    batch = recurring(700, width)
    other.update(batch, 1)
    rows, counts = other.states(), other.counts()

    def read():
        assert int(counter.counts().sum()) % 700 == 0
        assert int(counter.fired()[0]) % int(other.fired()[0]) == 0
        values, multiplicities = counter.spectrum()
        assert int(values @ multiplicities) % 700 == 0
        assert counter.n_states % 700 == 0
        assert counter.n_distinct in (0, len(rows))
        assert isinstance(counter.nbytes, int)

    at_once(
        lambda: counter.update(batch, 1),
        lambda: counter.update_packed(np.repeat(rows, counts.astype(int), axis=0)),
        lambda: counter.add_counts(rows, counts),
        lambda: counter.merge(other),
        read,
    )
    assert counter.states().tolist() == rows.tolist()
    assert counter.counts().tolist() == (counts * np.uint64(4 * ROUNDS)).tolist()
    assert counter.n_states == 4 * ROUNDS * 700


@every_kernel
def test_resets_between_writers_leave_whole_batches(kernel):
    counter = new_counter(kernel, 30)
    batch = recurring(500, 30)
    at_once(lambda: counter.update(batch, 1), lambda: counter.update(batch, 1), counter.reset)
    assert counter.n_states % 500 == 0
    assert int(counter.counts().sum()) == counter.n_states
    counter.reset()
    counter.update(batch, 1)
    assert counter.n_states == 500


@contextmanager
def writing_to(array, low, high):
    """Have another thread write numbers into `array` all the time."""
    stop = threading.Event()
    numbers = np.random.default_rng(9).integers(low, high, (7, *array.shape), array.dtype)

    def write():
        while not stop.is_set():
            for some in numbers:
                array[...] = some

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def assert_sound(counter, n_states):
    states, counts = counter.snapshot()
    assert counter.n_states == n_states == int(counts.sum())
    assert counter.n_distinct == len({row.tobytes() for row in states}) == len(states)
    assert (counts > 0).all()
    again = new_counter(counter.kernel, counter.n_neurons)
    again.add_counts(states, counts)
    assert np.array_equal(again.fired(), counter.fired())


@every_kernel
@pytest.mark.parametrize("width", [12, 20, 62, 64, 100, 256])
def test_a_thread_that_writes_into_rows_and_counts_falsifies_nothing_else(kernel, width):
    counter, row_bytes = new_counter(kernel, width), -(-width // 8)
    rows = np.zeros((6000, row_bytes), np.uint8)
    with writing_to(rows[:, : min(width // 8, 3)], 0, 4):
        for done in range(1, 9):
            counter.update_packed(rows)
            assert_sound(counter, done * 6000)
    counts = np.ones(6000, np.uint64)
    with writing_to(counts, 0, 3):
        for _ in range(8):
            counter.add_counts(rows, counts)
            assert_sound(counter, counter.n_states)


@native_kernels
@pytest.mark.parametrize("width", [12, 20, 62, 100, 256])
@pytest.mark.parametrize("counted", [True, False])
def test_what_is_taken_back_is_what_was_added_while_a_thread_writes(kernel, width, counted):
    from tensorstate_callbacks._native._counter import fail_allocation

    rows = np.zeros((40_000, -(-width // 8)), np.uint8)
    counts = np.full(len(rows), 2, np.uint64)

    def fresh():
        counter = new_counter(kernel, width)
        counter.add_counts(np.zeros_like(rows[:1]), np.array([7], np.uint64))
        return counter

    counter, refused = fresh(), 0
    with writing_to(rows[:-1, : width // 8], 0, 4), writing_to(counts, 1, 5):
        for number in range(1, 40):
            # The last row has a bit beyond the neurons, or there is no memory on the way to it.
            rows[-1, -1] = 0x80 if width % 8 else 0
            fail_allocation(number)
            try:
                if counted:
                    counter.add_counts(rows, counts)
                else:
                    counter.update_packed(rows)
                done = True
            except (MemoryError, ValueError):
                done = False
            finally:
                fail_allocation(0)
            if done:
                assert_sound(counter, counter.n_states)
                counter = fresh()
            refused += not done
            assert_sound(counter, 7)
            assert not counter.states().any()
    assert refused >= 3


@every_kernel
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_its_parent_counts_can_count(kernel):
    counter, batch = new_counter(kernel, 60), recurring(4000, 60)
    stop = threading.Event()

    def count():
        while not stop.is_set():
            counter.update(batch, 1)

    threads = [threading.Thread(target=count, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                status = 1
                try:
                    signal.alarm(20)
                    before = counter.n_states
                    counter.update(batch, 1)
                    assert before % 4000 == 0
                    assert_sound(counter, before + 4000)
                    status = 0
                except BaseException:  # noqa: BLE001 - a child must not go on in its parent's test
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert_sound(counter, counter.n_states)

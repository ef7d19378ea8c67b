"""Every operation of a counter at once from several threads: nothing is lost, nothing is torn."""

import threading

import numpy as np
import pytest
from counter_oracle import every_kernel, new_counter, recurring

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

"""Several threads at one counter, once per kernel."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from counter_oracle import (
    assert_counts,
    every_kernel,
    native_kernels,
    new_counter,
    recurring,
)


@every_kernel
@pytest.mark.parametrize("width", [8, 50, 100])
def test_threads_feeding_one_counter_lose_nothing(kernel, width):
    counter = new_counter(kernel, width)
    parts = [recurring(2000, width, seed) for seed in range(4)]
    start = threading.Barrier(4)

    def feed(part):
        start.wait()
        for batch in np.array_split(part, 20):
            counter.update(batch, 1)
            assert counter.n_distinct <= counter.n_states
            counter.counts()

    threads = [threading.Thread(target=feed, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_counts(counter, np.concatenate(parts) > 0)


@native_kernels
def test_counters_of_several_threads_share_no_memory(kernel):
    # Memory that one of them gives back is used by the next, of any thread.
    def count(seed):
        rng = np.random.default_rng(seed)
        for width in (40, 200):
            rows = rng.integers(0, 2, (12_000, width // 8), np.uint8) + np.uint8(2 * seed)
            counter = new_counter(kernel, width)
            for part in np.array_split(rows, 6):
                counter.update_packed(part)
            expected, counts = np.unique(rows, axis=0, return_counts=True)
            assert np.array_equal(counter.states(), expected)
            assert np.array_equal(counter.counts(), counts)
            counter.reset()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count, seed) for seed in range(6)]:
            done.result()


@every_kernel
def test_counters_merged_into_each_other_at_once_do_not_block(kernel):
    counters = [new_counter(kernel, 30) for _ in range(2)]
    for seed, counter in enumerate(counters):
        counter.update(recurring(200, 30, seed), 1)

    def merge(target, source):
        for _ in range(15):
            target.merge(source)

    threads = [
        threading.Thread(target=merge, args=pair, daemon=True)
        for pair in (counters, counters[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
    assert counters[0].n_states == int(counters[0].counts().sum())


@native_kernels
def test_other_threads_run_while_states_are_counted(kernel):
    counter = new_counter(kernel, 1)
    huge = np.broadcast_to(np.float32(1), (2**26, 1))
    thread = threading.Thread(target=counter.update, args=(huge, 1))
    thread.start()
    turns = 0
    while thread.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 5
    assert counter.counts().tolist() == [2**26]

"""Threads that help with a batch: one call's at a time, a child's own, or an OpenMP runtime's."""

import ctypes
import os
import threading

import pytest
from counter_oracle import large_batch

from tensorstate_callbacks import GroupCounter, StateCounter
from tensorstate_callbacks.states.counter import available_kernels, use_openmp
from tensorstate_callbacks.states.positions import PositionPacker, spread_positions

if not available_kernels()[:-1]:
    pytest.skip("NumPy counts on one thread", allow_module_level=True)


def test_threads_that_count_at_once_share_the_helpers():
    batch, axis = large_batch(64)
    counters = [StateCounter(64, n_threads=2), GroupCounter(64, 8, n_threads=2)]
    threads = [
        threading.Thread(target=lambda c=counter: [c.update(batch, axis) for _ in range(4)])
        for counter in counters
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    one, groups = StateCounter(64), GroupCounter(64, 8)
    one.update(batch, axis)
    groups.update(batch, axis)
    assert counters[0].counts().tolist() == (8 * one.counts()).tolist()
    assert counters[1].tables().tolist() == (8 * groups.tables()).tolist()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_has_helpers_of_its_own():
    batch, axis = large_batch(64)
    counter, one = StateCounter(64, n_threads=2), StateCounter(64)
    counter.update(batch, axis)
    one.update(batch, axis)
    expected = (2 * one.counts()).tolist()
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            counter.update(batch, axis)
            ended = 0 if counter.counts().tolist() == expected else 2
        finally:
            os._exit(ended)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    counter.update(batch, axis)
    assert counter.counts().tolist() == expected


def test_the_threads_of_an_openmp_runtime_help():
    """Imitated: it runs what it is given on two threads of its own, as GOMP_parallel does."""
    runs = []
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(given, data, threads, flags):
        runs.append((threads, flags))
        helper = threading.Thread(target=function(given), args=(data,))
        helper.start()
        function(given)(data)
        helper.join()

    batch, axis = large_batch(100)
    counter, one = StateCounter(100, n_threads=2), StateCounter(100)
    one.update(batch, axis)
    use_openmp(ctypes.cast(parallel, ctypes.c_void_p).value)
    try:
        counter.update(batch, axis)
    finally:
        use_openmp(0)
    assert runs
    assert set(runs) == {(2, 0)}
    assert counter.counts().tolist() == one.counts().tolist()


@pytest.mark.parametrize("width", [20, 64, 256])
def test_what_helpers_write_is_seen_by_the_caller(width):
    """For a sanitizer of threads, too."""
    batch, axis = large_batch(width)
    results = []
    for threads in (1, 3):
        counter, groups = (
            StateCounter(width, n_threads=threads),
            GroupCounter(width, 8, n_threads=threads),
        )
        for _ in range(2):
            counter.update(batch, axis)
            groups.update(batch, axis)
        rows = PositionPacker(width, n_threads=threads).pack(
            batch, axis, places=spread_positions((57, 57), 900)
        )
        results.append((counter.counts().tolist(), groups.tables().tolist(), rows.tolist()))
    assert results[0] == results[1]

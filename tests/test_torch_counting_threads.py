"""Threads count what came from devices: once, in order, over forks and at the interpreter's end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from state_oracle import counted_states, expected_states

from tensorstate_callbacks.torch import row_transfers, tensor_recorder
from tensorstate_callbacks.torch.counting_threads import CountingThreads, Job, Part
from tensorstate_callbacks.torch.tensor_recorder import TensorRecorder

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def no_error(name: str, error: Exception) -> None:
    raise AssertionError(name) from error


def job(run: Callable[[str], None], names: str, n_bytes: int = 1) -> Job:
    return Job([Part(name, name, partial(run, name)) for name in names], n_bytes)


def test_parts_of_a_layer_are_counted_in_order_and_layers_at_once() -> None:
    done: list[tuple[str, int]] = []
    both = threading.Barrier(2, timeout=30)

    def run(number: int, name: str) -> None:
        if number == 0:
            both.wait()
        time.sleep(0.001)
        done.append((name, number))

    threads = CountingThreads(no_error, 2)
    for number in range(20):
        threads.put(job(partial(run, number), "ab"))
    threads.wait()
    for layer in "ab":
        assert [n for name, n in done if name == layer] == list(range(20))


def test_a_job_is_counted_once_however_often_it_is_handed_over() -> None:
    done: list[str] = []
    threads = CountingThreads(no_error, 3)
    once = job(done.append, "ab")
    for _ in range(5):
        threads.put(once)
        threads.put(once)
        threads.wait()
    assert sorted(done) == ["a", "b"]


def test_waiting_leaves_no_more_than_was_asked_for() -> None:
    goes_on = threading.Semaphore(0)
    threads = CountingThreads(no_error, 1)
    for _ in range(4):
        threads.put(job(lambda _: goes_on.acquire(timeout=30), "a", 10))
    for n_left in (3, 2, 0):
        for _ in range(4 - n_left - threads_done(threads)):
            goes_on.release()
        threads.wait(n_left * 10)
        assert threads._n_bytes == n_left * 10
    threads.wait()
    # There is nothing to do, so nobody waits for it.
    assert not threads._threads


def threads_done(threads: CountingThreads) -> int:
    left = threads._n_bytes + sum(each.n_bytes for each in threads._jobs)
    return 4 - left // 10


def test_an_error_is_told_of_and_the_rest_is_counted() -> None:
    done: list[str] = []
    errors: list[tuple[str, str]] = []

    def run(name: str) -> None:
        if name == "b":
            raise ValueError("no such state")
        done.append(name)

    threads = CountingThreads(lambda name, error: errors.append((name, str(error))), 1)
    threads.put(job(run, "abc"))
    threads.put(job(run, "ab"))
    threads.wait()
    assert sorted(done) == ["a", "a", "c"]
    assert errors == [("b", "no such state")] * 2


def test_threads_that_were_stopped_finish_what_they_began() -> None:
    done: list[str] = []
    began, goes_on = threading.Event(), threading.Event()

    def run(name: str) -> None:
        began.set()
        goes_on.wait(30)
        done.append(name)

    threads = CountingThreads(no_error, 1)
    threads.put(job(run, "ab"))
    began.wait(30)
    threading.Timer(0.05, goes_on.set).start()
    threads.stop()
    assert done == ["a"]
    with pytest.raises(RuntimeError, match="while the interpreter ends"):
        threads.wait()


# Python's own warning of forks beside threads, which is what this is about.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@needs_fork
@forks
def test_a_fork_waits_for_the_part_that_is_being_counted() -> None:
    done: list[str] = []
    began = threading.Event()

    def run(name: str) -> None:
        done.append(name)
        began.set()
        time.sleep(0.2)

    threads = CountingThreads(no_error, 1)
    threads.put(job(run, "ab"))
    began.wait(30)
    pid = os.fork()
    if not pid:
        try:
            threads.wait()
        finally:
            os._exit(0 if done == ["a", "b"] else 1)
    threads.wait()
    assert done == ["a", "b"]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@needs_fork
@forks
def test_a_child_and_its_parent_count_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_recorder, "lies_on_device", lambda tensor: True)
    monkeypatch.setattr(row_transfers, "COPY_BYTES", 2000)
    drawn = torch.Generator().manual_seed(0)
    batches = [torch.randn(50, 6, 70, generator=drawn) for _ in range(30)]
    for at in range(0, 30, 3):
        recorder = TensorRecorder(["a", "b"])
        children = []
        for number, batch in enumerate(batches):
            for name in "ab":
                recorder.observe_tensor(name, batch, -1)
            if number == at:
                pid = os.fork()
                if not pid:
                    exit_child(recorder, batches, number)
                children.append(pid)
        expected = expected_states(batches, -1)
        assert all(counted_states(recorder.counters[name]) == expected for name in "ab")
        for pid in children:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def exit_child(recorder: Any, batches: list[torch.Tensor], number: int) -> None:
    code = 1
    try:
        counters = recorder.counters
        expected = expected_states(batches[: number + 1], -1)
        code = 0 if all(counted_states(counters[name]) == expected for name in "ab") else 2
    finally:
        os._exit(code)


END = """
import sys, time, torch
from tensorstate_callbacks.torch import row_transfers, tensor_recorder

tensor_recorder.lies_on_device = lambda tensor: True
row_transfers.COPY_BYTES = 1
recorder = tensor_recorder.TensorRecorder(["a", "b"])
for _ in range(200):
    for name in "ab":
        recorder.observe_tensor(name, torch.randn(2000, 100), -1)
if sys.argv[1] == "error":
    raise SystemExit(3)
print("end")
"""


@pytest.mark.parametrize("way", ["plain", "error"])
def test_an_interpreter_that_ends_with_states_uncounted_just_ends(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", END, way], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == (3 if way == "error" else 0)
    assert (done.stdout, done.stderr) == ("" if way == "error" else "end\n", "")

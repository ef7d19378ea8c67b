"""Time calls in turn, and return the median duration of each."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Clock = Callable[[], float]


def medians(
    calls: Mapping[str, Callable[[], Any]],
    runs: int,
    clock: Clock = time.perf_counter,
    repeats: int = 1,
) -> dict[str, float]:
    """Return the median duration of each call in seconds.

    The calls run in turn (a, b, c, a, b, c, ...), so that what slows the machine down for a while
    slows all of them down. Each runs once before, unmeasured. What a call returns is dropped after
    the clock has stopped.

    Args:
        calls: The calls under their names.
        runs: Measured runs of each.
        clock: Wall clock, or `time.process_time`.
        repeats: Times that a call is made in one run, where one is too short to be measured.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            for name, call in calls.items():
                began = clock()
                for _ in range(repeats):
                    result = call()
                taken[name].append((clock() - began) / repeats)
                del result
    finally:
        gc.enable()
    return {name: statistics.median(durations) for name, durations in taken.items()}


@contextmanager
def timed_calls(owner: Any, name: str) -> Iterator[list[float]]:
    """Collect the seconds of the processor that each call of a method takes in its own thread.

    Differences of whole passes can't tell one per cent on a machine that others use; this can.
    """
    method, spent = getattr(owner, name), []

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.thread_time() - began)

    setattr(owner, name, timed)
    try:
        yield spent
    finally:
        setattr(owner, name, method)

"""Measure the time and the memory that each of ever more distinct states takes."""

import time
from functools import partial

import numpy as np

from benchmarks.competitors import WAYS, as_keys
from benchmarks.footprint import Growth, in_child
from benchmarks.rows import Options, Row, not_installed, speed_up
from benchmarks.states import distinct_states
from tensorstate_callbacks.states.counter import StateCounter

BATCH = 65536
NEURONS = 64
SORT = WAYS["np.sort and diff"]


def run(options: Options) -> list[Row]:
    """Measure 10⁴ to 10⁸ distinct states."""
    if not Growth.measurable():
        return [not_installed("growth", "all", "a system that tells a process's peak (Linux)")]
    return [_measure(10**power, options) for power in range(4, 6 if options.quick else 9)]


def _measure(size: int, options: Options) -> Row:
    # Short runs often, the long ones once.
    runs = options.runs(5) if size < 10**7 else 1
    ours, theirs, held = [], [], []
    for _ in range(runs):
        seconds, nbytes, n_distinct = in_child(partial(_count, size))
        if n_distinct != size:
            raise RuntimeError(f"{n_distinct} of {size} distinct states were counted")
        ours.append(seconds / size * 1e9)
        held.append(nbytes / size)
        theirs.append(in_child(partial(_sort, size)) / size * 1e9)
    case = f"{size:,} distinct states, {NEURONS} bit"
    note = f"{held[-1]:.1f} B/state"
    return speed_up(
        "growth", case, "np.sort and diff", float(np.median(ours)), float(np.median(theirs)),
        "ns/state", None, note,
    )  # fmt: skip


def _count(size: int) -> tuple[float, int, int]:
    counter, seconds = StateCounter(NEURONS), 0.0
    for start in range(0, size, BATCH):
        rows = distinct_states(NEURONS, min(BATCH, size - start), start)
        began = time.perf_counter()
        counter.update_packed(rows)
        seconds += time.perf_counter() - began
    return seconds, counter.nbytes, counter.n_distinct


def _sort(size: int) -> float:
    keys = as_keys(distinct_states(NEURONS, size))
    began = time.perf_counter()
    found = SORT.count(SORT.prepare(keys))
    seconds = time.perf_counter() - began
    if len(found) != size:
        raise RuntimeError(f"np.sort found {len(found)} of {size} distinct states")
    return seconds

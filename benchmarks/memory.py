"""Measure the bytes that a counter takes for each distinct state, at any number of them."""

from functools import partial

import numpy as np

from benchmarks.competitors import as_keys
from benchmarks.footprint import Growth, in_child
from benchmarks.rows import Options, Row, Target, not_installed, relative
from benchmarks.states import distinct_states
from tensorstate_callbacks.states.counter import StateCounter

BATCH = 65536
# Neurons to how many distinct states are counted; the worst from a tenth of them on is told.
SIZES = {24: 5_000_000, 50: 5_000_000, 64: 5_000_000, 128: 2_000_000, 512: 1_000_000}


def run(options: Options) -> list[Row]:
    """Measure each width: what the counter says it holds, and what the process grew by."""
    if not Growth.measurable():
        return [not_installed("memory", "all", "a system that tells a process's peak (Linux)")]
    return [row for neurons, size in SIZES.items() for row in _measure(neurons, size, options)]


def _measure(neurons: int, size: int, options: Options) -> list[Row]:
    size = size // 20 if options.quick else size
    held, grown, n_distinct = in_child(partial(_worst, neurons, size))
    unique = in_child(partial(_unique, neurons, size))
    if n_distinct != size:
        raise RuntimeError(f"{n_distinct} of {size} distinct states of {neurons} bit were counted")
    # Above 64 neurons a state has to be kept beside its number.
    row_bytes = 0 if neurons <= 64 else neurons // 8
    target = Target(30, False, "B") if neurons <= 64 else Target(row_bytes + 40, False, "B")
    case = f"{neurons} bit, worst of {size // 10:,} to {size:,} states"
    return [
        relative("memory", f"{case}, {what}", "np.unique's peak", ours, unique, "B/state", target)
        for what, ours in (("nbytes", held), ("the process's peak", grown))
    ]


def _worst(neurons: int, size: int) -> tuple[float, float, int]:
    counter, growth = StateCounter(neurons), Growth()
    held, grown = 0.0, 0.0
    batch_bytes = 0
    for start in range(0, size, BATCH):
        rows = distinct_states(neurons, min(BATCH, size - start), start)
        batch_bytes = batch_bytes or growth.peak()
        counter.update_packed(rows)
        if counter.n_distinct * 10 >= size:
            held = max(held, counter.nbytes / counter.n_distinct)
            grown = max(grown, (growth.peak() - batch_bytes) / counter.n_distinct)
    return held, grown, counter.n_distinct


def _unique(neurons: int, size: int) -> float:
    keys = as_keys(np.concatenate([
        distinct_states(neurons, min(BATCH, size - start), start)
        for start in range(0, size, BATCH)
    ]))  # fmt: skip
    growth = Growth()
    found, _ = np.unique(keys, return_counts=True)
    if len(found) != size:
        raise RuntimeError(f"np.unique found {len(found)} of {size} distinct states")
    return growth.peak() / size

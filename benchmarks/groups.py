"""Compare counting groups of neurons with counting whole states, and with NumPy's bincount."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.count import BATCH, count
from benchmarks.rows import Options, Row, speed_up
from benchmarks.states import Rows, batches, distinct_states
from benchmarks.timing import medians
from tensorstate_callbacks.states.group_counter import GroupCounter

# Neurons to states.
SIZES = {64: 400_000, 512: 100_000, 2048: 50_000}


def run(options: Options) -> list[Row]:
    """Measure groups of 8 and 16, where states are all distinct and where one prevails."""
    found = []
    for neurons, size in SIZES.items():
        distinct = distinct_states(neurons, 2000 if options.quick else size)
        prevailing = distinct.copy()
        # Some rows after the other, as images have background.
        background = np.random.default_rng(0).random(len(distinct) // 4 + 1) < 0.7
        prevailing[background.repeat(4)[: len(distinct)]] = 0
        for name, rows in {"distinct": distinct, "one state prevails": prevailing}.items():
            found += _compare(f"{neurons} neurons, {name}", neurons, rows, options)
    return found


def _compare(case: str, neurons: int, rows: Rows, options: Options) -> list[Row]:
    calls: dict[str, Callable[[], object]] = {
        name: call
        for group in (8, 16)
        for name, call in {
            f"groups of {group}": partial(_count, neurons, group, rows),
            f"np.bincount of {group}": partial(_bincount, group, rows),
        }.items()
    }
    for group in (8, 16):
        if not np.array_equal(_count(neurons, group, rows).tables(), _bincount(group, rows)):
            raise RuntimeError(f"{case}: np.bincount counts otherwise than groups of {group}")
    taken = medians(
        {**calls, "StateCounter": partial(count, neurons, rows)},
        options.runs(7),
        time.process_time,
    )
    return [
        speed_up("groups", f"{case}, groups of {group}", against,
                 taken[f"groups of {group}"] / len(rows) * 1e9, taken[key] / len(rows) * 1e9,
                 "ns/state")
        for group in (8, 16)
        for against, key in (
            ("StateCounter", "StateCounter"),
            ("np.bincount of each column", f"np.bincount of {group}"),
        )
    ]  # fmt: skip


def _count(neurons: int, group: int, rows: Rows) -> GroupCounter:
    counter = GroupCounter(neurons, group)
    for batch in batches(rows, BATCH):
        counter.update_packed(batch)
    return counter


def _bincount(group: int, rows: Rows) -> NDArray[np.intp]:
    columns = rows if group == 8 else rows.view("<u2")
    return np.concatenate([np.bincount(column, minlength=1 << group) for column in columns.T])

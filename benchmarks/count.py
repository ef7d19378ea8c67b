"""Compare the counter on packed states with the public ways to count the same keys.

By the processor's time: all of them run on one thread, and no other process counts.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.competitors import WAYS, as_keys
from benchmarks.rows import Options, Row, Target, not_installed, speed_up
from benchmarks.states import Rows, batches, distinct_states, lenet5_states
from benchmarks.timing import medians
from tensorstate_callbacks.states.counter import StateCounter

# A counter gets its states batch by batch; the others get all at once.
BATCH = 65536
NARROW = ("np.sort and diff", "np.unique", "torch.unique", "pandas value_counts")


class Case(NamedTuple):
    """States to count.

    Attributes:
        name: What they are.
        load: Returns the number of neurons and the packed states.
        against: The ways to compare with.
        targets: What is to be reached against some of them.
        cheap: Whether a quick run takes it.
    """

    name: str
    load: Callable[[Options], tuple[int, Rows]]
    against: tuple[str, ...]
    targets: dict[str, Target]
    cheap: bool = True


def _layer(name: str, options: Options) -> tuple[int, Rows]:
    neurons, rows = lenet5_states(name)
    return neurons, rows[:20_000] if options.quick else rows


def _distinct(neurons: int, size: int, options: Options) -> tuple[int, Rows]:
    return neurons, distinct_states(neurons, min(size, 20_000) if options.quick else size)


BINCOUNT, SORT, POLARS = "np.bincount", "np.sort and diff", "polars value_counts"
CASES = (
    Case("LeNet-5 conv_1, 20 bit", partial(_layer, "conv_1"), (BINCOUNT, *NARROW, POLARS),
         {BINCOUNT: Target(3)}),
    Case("distinct, 20 bit", partial(_distinct, 20, 1 << 20), (BINCOUNT, *NARROW, POLARS),
         {BINCOUNT: Target(3)}),
    Case("LeNet-5 conv_2, 50 bit", partial(_layer, "conv_2"), (*NARROW, POLARS),
         {SORT: Target(2)}),
    Case("distinct, 50 bit", partial(_distinct, 50, 1_000_000), (*NARROW, POLARS),
         {SORT: Target(2)}),
    Case("distinct, 64 bit", partial(_distinct, 64, 1_000_000), (*NARROW, POLARS),
         {SORT: Target(2.5)}),
    Case("LeNet-5 conv_3, 100 bit", partial(_layer, "conv_3"), ("np.unique", POLARS), {}),
    Case("distinct, 128 bit", partial(_distinct, 128, 500_000), ("np.unique", POLARS), {}),
    Case("distinct, 512 bit", partial(_distinct, 512, 200_000), ("np.unique", POLARS),
         {"np.unique": Target(9), POLARS: Target(3)}),
)  # fmt: skip


def count(neurons: int, rows: Rows) -> StateCounter:
    """Count packed states as they come from a layer, batch by batch."""
    counter = StateCounter(neurons)
    for batch in batches(rows, BATCH):
        counter.update_packed(batch)
    return counter


def run(options: Options) -> list[Row]:
    """Measure all cases; every way has to find the same counts."""
    return [row for case in CASES for row in _compare(case, options)]


def _compare(case: Case, options: Options) -> list[Row]:
    neurons, rows = case.load(options)
    keys = as_keys(rows)
    calls: dict[str, Callable[[], object]] = {"ours": partial(count, neurons, rows)}
    expected = np.sort(count(neurons, rows).counts())
    for name in case.against:
        way = WAYS[name]
        if way.installed:
            call = partial(way.count, way.prepare(keys))
            found = call()
            if not np.array_equal(np.sort(found[found > 0]), expected):
                raise RuntimeError(f"{case.name}: {name} counts otherwise than StateCounter")
            calls[name] = call
    taken = medians(calls, options.runs(9), time.process_time)
    size = len(rows)
    title = f"{case.name}: {size:,} states, {len(expected):,} distinct"
    return [
        speed_up("count", title, name, taken["ours"] / size * 1e9, taken[name] / size * 1e9,
                 "ns/state", case.targets.get(name))
        if name in taken
        else not_installed("count", title, name, case.targets.get(name))
        for name in case.against
    ]  # fmt: skip

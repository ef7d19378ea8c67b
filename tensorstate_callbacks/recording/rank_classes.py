"""Merge what ranks counted by class: of each state, all of its classes on one rank.

A share of the states then has all that metrics of classes and of shuffled labels depend on, and
what is made of the shares adds up to what one process would have, to the bit.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from tensorstate_callbacks.metrics.class_tables import Integers
from tensorstate_callbacks.metrics.classes import ClassMetrics, class_metrics
from tensorstate_callbacks.recording.budget import Budget, counter_bytes, kept_levels
from tensorstate_callbacks.recording.class_counts import Classed
from tensorstate_callbacks.recording.class_labels import MOST_CLASSES
from tensorstate_callbacks.recording.class_problems import FEWER, MANY, SHORT, THINNED
from tensorstate_callbacks.recording.pass_counts import (
    PassCounts,
    ProbeCounts,
    Width,
    merge_orders,
)
from tensorstate_callbacks.recording.rank_exchange import Exchange
from tensorstate_callbacks.states.class_counter import ClassCounter


class RankClasses(NamedTuple):
    """What one rank tells the others of what it counted by class.

    Attributes:
        n_rows: How many rows the class counter of each probe holds.
        n_samples: How many samples each class had, by label.
        group_sizes: Neurons of a unit; None where the layer is one unit.
        problems: Why other probes have no class counter.
        memory: What class counters may hold together, in bytes; None where there is no limit.
    """

    n_rows: dict[Width, int]
    n_samples: dict[Width, dict[int, int]]
    group_sizes: dict[Width, int | None]
    problems: dict[Width, str]
    memory: int | None

    @classmethod
    def of(cls, classed: Classed, budget: Budget | None) -> "RankClasses":
        """Return what a rank tells of what it counted."""
        counters = classed.counters
        return cls(
            {width: counter.n_rows for width, counter in counters.items()},
            {width: dict(counter.n_samples) for width, counter in counters.items()},
            {width: counter.group_size for width, counter in counters.items()},
            dict(classed.problems),
            None if budget is None else budget.n_bytes,
        )


def merge_classes(
    sums: PassCounts,
    counters: Mapping[Width, ClassCounter],
    told: Sequence[RankClasses],
    exchange: Exchange,
) -> PassCounts:
    """Return what all ranks counted together, with what it tells of classes; a collective.

    Args:
        sums: What they counted of all classes together.
        counters: What this rank counted by class.
        told: What each rank tells of that.
        exchange: Carries what the ranks counted.
    """
    problems = {
        width: next(its.problems[width] for its in told if width in its.problems)
        for width in merge_orders(its.problems for its in told)
        if width in sums.probes
    }
    widths = [w for w in sums.probes if w not in problems and any(w in its.n_rows for its in told)]
    shares: dict[Width, ClassCounter] = {}
    for width in widths:
        n_samples = _samples(width, told)
        if len(n_samples) > MOST_CLASSES:
            problems[width] = MANY
        else:
            shares[width] = _share(width, counters.get(width), n_samples, told, exchange)
    gathered = exchange.gather({w: (c.n_rows, c.n_counted) for w, c in shares.items()})
    numbers = {
        w: [sum(column) for column in zip(*(g[w] for g in gathered), strict=True)] for w in shares
    }
    found: dict[Width, ClassMetrics] = {}
    for width in _kept(shares, {w: n_rows for w, (n_rows, _) in numbers.items()}, told):
        share, (_, n_counted) = shares.pop(width), numbers[width]
        if n_counted != ProbeCounts.of(sums.probes[width]).n_states * share.n_units:
            problems[width] = THINNED if sums.thinned else FEWER
        else:
            found[width] = class_metrics(share, add=partial(_add, exchange))
    problems |= dict.fromkeys(shares, SHORT)
    return sums._replace(classes=found, class_problems=problems)


def _samples(width: Width, told: Sequence[RankClasses]) -> dict[int, int]:
    """Return how many samples each class has on all ranks."""
    summed: dict[int, int] = {}
    for its in told:
        for label, number in its.n_samples.get(width, {}).items():
            summed[label] = summed.get(label, 0) + number
    return summed


def _share(
    width: Width,
    own: ClassCounter | None,
    n_samples: dict[int, int],
    told: Sequence[RankClasses],
    exchange: Exchange,
) -> ClassCounter:
    """Return all that the ranks counted of the states that belong to this one."""
    group_size = next(its.group_sizes[width] for its in told if width in its.group_sizes)
    counter = own or ClassCounter(width.n_neurons, group_size)
    most = max(its.n_rows.get(width, 0) for its in told)
    joint = exchange.own_share(counter.joint, most, counter.key_bytes)
    return ClassCounter.of_joint(width.n_neurons, group_size, joint, n_samples)


def _kept(
    shares: Mapping[Width, ClassCounter], n_rows: Mapping[Width, int], told: Sequence[RankClasses]
) -> list[Width]:
    """Return the probes whose class counters one process would have kept."""
    memory = min((its.memory for its in told if its.memory is not None), default=None)
    sizes = {w: [counter_bytes(c.joint.n_neurons, n_rows[w])] for w, c in shares.items()}
    levels = kept_levels(sizes, math.inf if memory is None else memory)
    return [width for width, level in levels.items() if level is not None]


def _add(exchange: Exchange, own: Integers) -> Integers:
    return np.asarray(np.sum(exchange.gather(own), axis=0), np.int64)

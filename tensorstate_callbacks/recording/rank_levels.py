"""Exchange the counters of all ranks, at as many levels as the memory of a pass may need."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.budget import COUNT_BYTES, kept_levels, level_sizes
from tensorstate_callbacks.recording.pass_counts import (
    PassCounts,
    ProbeCounts,
    Width,
    merge_counts,
    merge_orders,
    name_widths,
)
from tensorstate_callbacks.recording.probe_counter import Counter, ProbeCounter, thinned_to
from tensorstate_callbacks.recording.rank_classes import RankClasses
from tensorstate_callbacks.recording.rank_exchange import Exchange
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.spectrum import Spectrum


class Seen(NamedTuple):
    """What one rank saw of a probe.

    Attributes:
        distinct: Distinct states at each level, see `recording.budget`; None at those that were
            given up, and in groups 0.
        group_size: Neurons of a unit; None where the layer is one unit.
        n_wanted: Positions of a sample that were to be read.
    """

    distinct: tuple[int | None, ...]
    group_size: int | None
    n_wanted: int


Levels: TypeAlias = Mapping[Width, Sequence[Counter | None]]
"""The counters of each probe at each level, None at those that were given up."""


class Level(NamedTuple):
    """One of the counters of a probe; see `recording.budget`.

    Attributes:
        width: The probe, and its number of neurons.
        number: 0 for the counter of all positions.
    """

    width: Width
    number: int


class RankPass(NamedTuple):
    """What one rank sends the others before states are exchanged.

    Attributes:
        settings: What it records with, as texts that are equal where the settings are.
        names: Its probes.
        dropped: The probes that it forgot, since they turned out not to be meant.
        seen: What each probe saw, and with how many neurons, in the order it saw them.
        memory: What its counters may hold together, in bytes; None where there is no limit.
        most_taken: What they hold at most, in bytes; infinite where something had to be given up.
        accuracy: The accuracy it found.
        weight: How much of the data that accuracy is of.
        doubts: What it had to assume, for each probe where that was so.
        failure: Why it can't go on, or None.
        neurons: Whether reports are to tell which neurons agree.
        classes: What it counted by class; None where that isn't asked for.
    """

    settings: Mapping[str, str]
    names: tuple[str, ...]
    dropped: frozenset[str]
    seen: dict[Width, "Seen"]
    memory: int | None
    most_taken: float
    accuracy: FoundAccuracy
    weight: float
    doubts: Mapping[str, str]
    failure: str | None
    neurons: bool
    classes: RankClasses | None = None


def merge_levels(counters: Levels, passes: Sequence[RankPass], exchange: Exchange) -> PassCounts:
    """Return what all ranks counted together; a collective.

    Args:
        counters: What this rank counted.
        passes: Of all ranks.
        exchange: Carries what the ranks counted.
    """
    widths = probed_widths(passes)
    budget = min((p.memory for p in passes if p.memory is not None), default=None)
    most_taken = sum(p.most_taken for p in passes)
    is_short = most_taken == math.inf or (budget is not None and most_taken > budget)
    neurons = any(p.neurons for p in passes)
    own: dict[Level, ProbeCounts] = {}
    merged: dict[Level, ProbeCounts] = {}
    for width, group_size in widths.items():
        if group_size is None:
            for level, share in exchange_levels(width, counters, passes, exchange, every=is_short):
                own[level] = ProbeCounts.of(share, neurons=neurons)
        elif all(None not in p.seen[width].distinct for p in passes if width in p.seen):
            tables = group_counter(width, group_size, counters)
            merged[Level(width, 0)] = exchange.sum_tables(tables)
    gathered = exchange.gather(own)
    merged |= {key: merge_counts([part[key] for part in gathered]) for key in own}
    kept: dict[Width, int | None] = dict.fromkeys(widths, 0)
    if is_short:
        sizes = {width: _sizes_of(width, merged) for width in widths}
        kept = kept_levels(sizes, math.inf if budget is None else budget)
    wanted = n_wanted(widths, passes)
    left_out = {width.probe for width, level in kept.items() if level is None}
    thinned = {w: to for w, level in kept.items() if (to := thinned_to(level, wanted[w]))}
    names, _ = probe_names(passes)
    return PassCounts(
        tuple(name for name in names if name not in left_out),
        {w: merged[Level(w, level)] for w, level in kept.items() if level is not None},
        name_widths(thinned),
        neurons,
    )


def probe_names(passes: Sequence[RankPass]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the probes of all ranks, and those that some rank forgot.

    A rank without data doesn't find out which layer makes the output.
    """
    dropped = frozenset(name for p in passes for name in p.dropped)
    names = merge_orders(p.names for p in passes)
    return tuple(name for name in names if name not in dropped), dropped


def probed_widths(passes: Sequence[RankPass]) -> dict[Width, int | None]:
    """Return what some rank saw, in one order, and the size of its units; None for the layer."""
    _, dropped = probe_names(passes)
    return {
        width: next((p.seen[width].group_size for p in passes if width in p.seen), None)
        for width in merge_orders(p.seen for p in passes)
        if width.probe not in dropped
    }


def n_wanted(widths: Iterable[Width], passes: Sequence[RankPass]) -> dict[Width, int]:
    """Return the positions of a sample that each probe was to be read at."""
    return {w: max(p.seen[w].n_wanted for p in passes if w in p.seen) for w in widths}


def exchange_levels(
    width: Width,
    counters: Levels,
    passes: Sequence[RankPass],
    exchange: Exchange,
    *,
    every: bool,
) -> Iterator[tuple[Level, StateCounter]]:
    """Yield this rank's share of what all ranks counted at the levels that none has given up.

    Args:
        width: The probe, whose layer is one unit.
        counters: This rank's.
        passes: Of all ranks.
        exchange: Exchanges the states.
        every: Whether other levels than the first may be needed.
    """
    seen = [p.seen[width] for p in passes if width in p.seen]
    levels = counters.get(width, ())
    for level in range(max(len(each.distinct) for each in seen) if every else 1):
        # Of one position, a further level would read the same.
        distinct = [each.distinct[min(level, len(each.distinct) - 1)] for each in seen]
        if None not in distinct:
            counter = levels[min(level, len(levels) - 1)] if levels else None
            if not isinstance(counter, StateCounter):
                counter = StateCounter(width.n_neurons)
            share = exchange.own_share(counter, max(filter(None, distinct), default=0))
            yield Level(width, level), share


def group_counter(width: Width, group_size: int, counters: Levels) -> GroupCounter:
    """Return this rank's counter of a layer's groups, an empty one where it saw none."""
    own = next(iter(counters.get(width, ())), None)
    return own if isinstance(own, GroupCounter) else GroupCounter(width.n_neurons, group_size)


def _sizes_of(width: Width, merged: Mapping[Level, ProbeCounts]) -> list[int | None]:
    counted = {key.number: counts.counted for key, counts in merged.items() if key.width == width}
    tables = counted.get(0)
    if isinstance(tables, np.ndarray):
        return [COUNT_BYTES * len(tables)]
    distinct = [
        spectrum.n_distinct if isinstance(spectrum := counted.get(number), Spectrum) else None
        for number in range(max(counted, default=-1) + 1)
    ]
    # Some rank may have had to give up all of them.
    return level_sizes(width.n_neurons, distinct) or [None]


def seen_by(levels: Sequence[Counter | None], probe: ProbeCounter) -> Seen:
    """Return what a rank tells the others of a probe's counters."""
    distinct = [c.n_distinct if isinstance(c, StateCounter) else 0 for c in levels if c is not None]
    gone: list[int | None] = [None] * (len(levels) - len(distinct))
    group_size = next((c.group_size for c in levels if isinstance(c, GroupCounter)), None)
    return Seen((*gone, *distinct), group_size, probe.n_wanted)

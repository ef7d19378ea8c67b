"""Let the ranks of a process group fill one window together, to the very numbers of one process.

States are exchanged batch by batch: each rank's window then holds all ranks' counts of the states
that belong to it, and what a window has counted is summed up without exchanging its states again.
"""

import math
from collections.abc import Mapping

from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.budget import COUNT_BYTES, kept_levels, level_sizes
from tensorstate_callbacks.recording.pass_counts import (
    PassCounts,
    ProbeCounts,
    Width,
    merge_counts,
)
from tensorstate_callbacks.recording.probe_counter import Counter
from tensorstate_callbacks.recording.rank_levels import (
    Levels,
    RankPass,
    exchange_levels,
    group_counter,
    n_wanted,
    probe_names,
    probed_widths,
)
from tensorstate_callbacks.recording.rank_passes import pass_of
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.recording.windows import BatchCounts, StateWindow
from tensorstate_callbacks.states.group_counter import GroupCounter, table_size
from tensorstate_callbacks.torch.distributed.process_groups import ProcessGroup, wait_for_ranks
from tensorstate_callbacks.torch.distributed.ranks import gathered_passes
from tensorstate_callbacks.torch.distributed.state_exchange import StateExchange


def add_over_ranks(
    window: StateWindow,
    recorder: Recorder,
    group: ProcessGroup,
    settings: Mapping[str, str],
) -> PassCounts:
    """Add a training batch to the window that the ranks of a group fill together: a collective.

    Args:
        window: Each rank's, of all batches so far.
        recorder: What this rank recorded of its part of the batch.
        group: The ranks.
        settings: What this rank records with; see `check_settings`.

    Returns:
        What one process would have counted in the window; the same on all ranks.

    Raises:
        ProbeError: A layer could not be counted on this rank; names it.
        RankError: Another rank failed, records otherwise, or is gone; the message names it.
    """
    wait_for_ranks(group)
    own = pass_of(recorder, FoundAccuracy(None), None, None, {}, settings)
    with gathered_passes(own.told, group, own.failure) as (passes, carrier):
        window.add(_share(own.counters, passes, carrier))
        return _sum(window.counts(), carrier)


def _share(counters: Levels, passes: list[RankPass], group: ProcessGroup) -> BatchCounts:
    """Exchange a batch: of whole layers this rank gets its share of the states, at all levels."""
    exchange = StateExchange(group)
    widths = probed_widths(passes)
    levels: dict[Width, dict[int, Counter]] = {width: {} for width in widths}
    for width, group_size in widths.items():
        if group_size is None:
            # Another batch of the window may have been read at another level.
            shares = exchange_levels(width, counters, passes, exchange, every=True)
            levels[width] = {level.number: share for level, share in shares}
        elif all(None not in p.seen[width].distinct for p in passes if width in p.seen):
            # Of groups each rank keeps its own: their tables are as large however few states.
            levels[width] = {0: group_counter(width, group_size, counters)}
    kept = _kept(levels, passes, group)
    names, dropped = probe_names(passes)
    return BatchCounts(
        names,
        dropped,
        {
            width: [found.get(n) if n >= kept[width] else None for n in range(max(found) + 1)]
            if found
            else [None]
            for width, found in levels.items()
        },
        n_wanted(widths, passes),
        any(p.neurons for p in passes),
    )


def _kept(
    levels: Mapping[Width, Mapping[int, Counter]], passes: list[RankPass], group: ProcessGroup
) -> dict[Width, float]:
    """Return the first level of each probe that the memory of a batch has room for."""
    own = {
        (w, n): counter.n_distinct
        for w, found in levels.items()
        for n, counter in found.items()
        if not isinstance(counter, GroupCounter)
    }
    gathered = StateExchange(group).gather(own)
    sizes: dict[Width, list[int | None]] = {}
    for width, found in levels.items():
        tables = found.get(0)
        if isinstance(tables, GroupCounter):
            sizes[width] = [COUNT_BYTES * table_size(width.n_neurons, tables.group_size)]
            continue
        distinct = [
            sum(part[width, n] for part in gathered) if n in found else None
            for n in range(max(found, default=-1) + 1)
        ]
        sizes[width] = level_sizes(width.n_neurons, distinct) or [None]
    budget = min((p.memory for p in passes if p.memory is not None), default=math.inf)
    kept = kept_levels(sizes, budget)
    return {width: math.inf if level is None else level for width, level in kept.items()}


def _sum(counts: PassCounts, group: ProcessGroup) -> PassCounts:
    """Sum up what the ranks' windows hold."""
    tables = {w: c for w, c in counts.probes.items() if isinstance(c, GroupCounter)}
    states = {
        w: ProbeCounts.of(c, neurons=counts.neurons)
        for w, c in counts.probes.items()
        if w not in tables
    }
    exchange, merged = StateExchange(group), {}
    gathered = exchange.gather((states, [*tables], dict(counts.thinned)))
    # On some rank there may have been no memory for the sum of the batches.
    everywhere = {*counts.probes}.intersection(*({*s, *t} for s, t, _ in gathered))
    for width in (width for width in counts.probes if width in everywhere):
        if width in tables:
            merged[width] = exchange.sum_tables(tables[width])
        else:
            merged[width] = merge_counts([part[width] for part, _, _ in gathered])
    thinned = {name: to for _, _, its in gathered for name, to in its.items()}
    gone = {width.probe for width in counts.probes if width not in merged}
    names = tuple(name for name in counts.names if name not in gone)
    lost = dict.fromkeys(gone, (0, 0))
    return PassCounts(names, merged, thinned | lost, counts.neurons)

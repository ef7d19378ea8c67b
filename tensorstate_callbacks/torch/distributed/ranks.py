"""Merge what the ranks of a process group recorded into one pass, the same on all of them."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist

from tensorstate_callbacks.errors import ProbeError, RankError, TensorStateWarning
from tensorstate_callbacks.metrics.efficiency import aIQ
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, merge_accuracies
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
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.states.group_counter import GroupCounter
from tensorstate_callbacks.states.spectrum import Spectrum
from tensorstate_callbacks.torch.distributed.process_groups import (
    ProcessGroup,
    host_group,
    mark_known,
    ranks_of,
    wait_for_ranks,
)
from tensorstate_callbacks.torch.distributed.state_exchange import StateExchange


class MergedPass(NamedTuple):
    """One evaluation pass of all ranks, the same on all of them.

    Attributes:
        sums: To the bit what one process would have recorded of all ranks' data.
        accuracy: The accuracy over all of it.
        doubts: What some rank had to assume of a probe, in sentences.
    """

    sums: PassCounts
    accuracy: FoundAccuracy
    doubts: list[str]


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


def merge_passes(
    recorder: Recorder,
    group: ProcessGroup,
    accuracy: FoundAccuracy,
    weight: float | None = None,
    failure: Exception | None = None,
    doubts: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> MergedPass:
    """Merge what the ranks of a group recorded: a collective, after `wait_for_ranks`.

    Args:
        recorder: What this rank recorded; it stays as it is.
        group: The ranks.
        accuracy: The accuracy that this rank found.
        weight: How many samples that accuracy is of; None: as many states as it saw.
        failure: What went wrong on this rank, if it can't go on.
        doubts: What this rank had to assume, for each probe where that was so.
        settings: What this rank records with; see `check_settings`.

    Raises:
        RankError: Another rank can't go on, records otherwise, or is gone; the message names it.
        Exception: `failure`, or the recorder's error.
    """
    counters: Mapping[Width, list[Counter | None]] = {}
    seen, n_states = {}, 0
    try:
        probes = {w: c for w, c in recorder.probe_counters().items() if c.has_seen}
        n_states = sum(c.counter.n_states for c in probes.values())
        counters = {width: probe.levels() for width, probe in probes.items()}
        seen = {width: _seen(counters[width], probe) for width, probe in probes.items()}
    except ProbeError as error:
        failure = failure or error
    failure = failure or recorder.error
    budget = recorder.budget
    gave_up = any(None in each.distinct for each in seen.values())
    gave_up = gave_up or (budget is not None and budget.was_short)
    own = RankPass(
        dict(settings),
        recorder.names,
        recorder.dropped,
        seen,
        None if budget is None else budget.n_bytes,
        math.inf if gave_up else 0 if budget is None else budget.most_taken,
        accuracy,
        n_states if weight is None else weight,
        dict(doubts),
        None if failure is None else f"{type(failure).__name__}: {failure}",
    )
    with host_group(group) as carrier:
        try:
            passes = _gather(own, carrier)
            if failure is not None:
                raise mark_known(failure)
            _check(dict(zip(ranks_of(group), passes, strict=True)))
            _check_alike(ranks_of(group), _settings_of(passes))
            sums = _exchange(counters, passes, carrier)
        except RuntimeError as error:
            if isinstance(error, (RankError, ProbeError)) or error is failure:
                raise
            # A rank that is gone doesn't come here any more.
            wait_for_ranks(group)
            raise RankError(
                f"the exchange of counted states between the ranks {ranks_of(group)} broke off, "
                f"though all of them are there: {error}"
            ) from error
    merged = merge_accuracies([p.accuracy for p in passes], [p.weight for p in passes])
    all_doubts = {name: doubt for p in passes for name, doubt in p.doubts.items()}
    return MergedPass(sums, merged, list(all_doubts.values()))


def merge_report(
    recorder: Recorder,
    group: ProcessGroup,
    accuracy: float | None,
    doubts: Mapping[str, str],
    settings: Mapping[str, str],
) -> tuple[PassCounts, float | None]:
    """Merge what the ranks recorded, and their accuracies; see `Recording.report`.

    Raises:
        RankError: A rank failed, records otherwise, or didn't come within the group's timeout.
        ValueError: `accuracy` is not a share, or this process is not in the group.

    Warns:
        TensorStateWarning: Some rank had doubts.
    """
    wait_for_ranks(group)
    failure = None
    try:
        if accuracy is not None:
            aIQ(1.0, accuracy)
    except ValueError as error:
        failure = error
    merged = merge_passes(recorder, group, FoundAccuracy(accuracy), None, failure, doubts, settings)
    if merged.doubts and dist.get_rank(group) == 0:
        warnings.warn(describe_doubts(merged.doubts), TensorStateWarning, stacklevel=3)
    return merged.sums, merged.accuracy.value


def check_settings(settings: Mapping[str, str], group: ProcessGroup) -> None:
    """Check that all ranks of a group record alike: a collective, on all of them.

    Args:
        settings: What this rank records with, under names; see `Settings.comparable`.
        group: The ranks.

    Raises:
        RankError: On every rank: some record otherwise; names them, and what differs. Or a rank
            failed, or didn't come within the group's timeout.
    """
    wait_for_ranks(group)
    with host_group(group) as carrier:
        gathered = _gather(dict(settings), carrier)
    _check_alike(ranks_of(group), gathered)


def describe_doubts(doubts: Iterable[str]) -> str:
    """Return the warning of repeated samples that could not be left out for certain."""
    return (
        "the ranks don't divide the samples, so a DistributedSampler or Accelerate repeats some, "
        f"and where these are in the activations had to be assumed: {'; '.join(doubts)}. Evaluate "
        "a number of samples that the ranks divide, or exclude these layers"
    )


def _seen(levels: Sequence[Counter | None], probe: ProbeCounter) -> Seen:
    distinct = [c.n_distinct if isinstance(c, StateCounter) else 0 for c in levels if c is not None]
    gone: list[int | None] = [None] * (len(levels) - len(distinct))
    group_size = next((c.group_size for c in levels if isinstance(c, GroupCounter)), None)
    return Seen((*gone, *distinct), group_size, probe.n_wanted)


def _exchange(
    counters: Mapping[Width, Sequence[Counter | None]],
    passes: Sequence[RankPass],
    group: ProcessGroup,
) -> PassCounts:
    exchange = StateExchange(group)
    # A rank without data doesn't find out which layer makes the output.
    dropped = {name for p in passes for name in p.dropped}
    widths = [w for w in merge_orders(p.seen for p in passes) if w.probe not in dropped]
    budget = min((p.memory for p in passes if p.memory is not None), default=None)
    most_taken = sum(p.most_taken for p in passes)
    is_short = most_taken == math.inf or (budget is not None and most_taken > budget)
    own: dict[Level, ProbeCounts] = {}
    merged: dict[Level, ProbeCounts] = {}
    for width in widths:
        seen = [p.seen[width] for p in passes if width in p.seen]
        group_size = next((each.group_size for each in seen if each.group_size), None)
        levels = counters.get(width, ())
        if group_size is not None:
            if any(None in each.distinct for each in seen):
                continue
            own_tables = levels[0] if levels else None
            if not isinstance(own_tables, GroupCounter):
                own_tables = GroupCounter(width.n_neurons, group_size)
            merged[Level(width, 0)] = exchange.sum_tables(own_tables)
            continue
        for level in range(max(len(each.distinct) for each in seen) if is_short else 1):
            # Of one position, a further level would read the same.
            distinct = [each.distinct[min(level, len(each.distinct) - 1)] for each in seen]
            if None not in distinct:
                counter = levels[min(level, len(levels) - 1)] if levels else None
                if not isinstance(counter, StateCounter):
                    counter = StateCounter(width.n_neurons)
                spectrum = exchange.own_share(counter, max(filter(None, distinct))).spectrum()
                own[Level(width, level)] = ProbeCounts(spectrum, counter.fired())
    gathered = _gather(own, group)
    merged |= {key: merge_counts([part[key] for part in gathered]) for key in own}
    kept: dict[Width, int | None] = dict.fromkeys(widths, 0)
    if is_short:
        sizes = {width: _sizes_of(width, merged) for width in widths}
        kept = kept_levels(sizes, math.inf if budget is None else budget)
    n_wanted = {w: max(p.seen[w].n_wanted for p in passes if w in p.seen) for w in widths}
    left_out = {width.probe for width, level in kept.items() if level is None}
    thinned = {w: to for w, level in kept.items() if (to := thinned_to(level, n_wanted[w]))}
    names = merge_orders(p.names for p in passes)
    return PassCounts(
        tuple(name for name in names if name not in dropped | left_out),
        {w: merged[Level(w, level)] for w, level in kept.items() if level is not None},
        name_widths(thinned),
    )


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


def _gather(value: Any, group: ProcessGroup) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def _check(passes: Mapping[int, RankPass]) -> None:
    for rank, its in passes.items():
        if its.failure is not None:
            raise RankError(
                f"rank {rank} can't merge its counts of states with the others: {its.failure}"
            )


def _settings_of(passes: Sequence[RankPass]) -> list[dict[str, str]]:
    # A rank without data doesn't find out which layer makes the output.
    probes = [{*its.names, *its.dropped} for its in passes]
    common = set.intersection(*probes)
    return [
        {**its.settings, "probes that others don't have": ", ".join(sorted(own - common))}
        for its, own in zip(passes, probes, strict=True)
    ]


def _check_alike(ranks: Sequence[int], settings: Sequence[Mapping[str, str]]) -> None:
    differences = []
    for name in merge_orders(settings):
        holders: dict[str | None, list[int]] = {}
        for rank, its in zip(ranks, settings, strict=True):
            holders.setdefault(its.get(name), []).append(rank)
        if len(holders) > 1:
            which = (
                f"{value or 'none'} on rank{'s' * (len(those) > 1)} {', '.join(map(str, those))}"
                for value, those in holders.items()
            )
            differences.append(f"{name}: {'; '.join(which)}")
    if differences:
        raise RankError(
            "the ranks don't record alike, so their counts of states can't be merged. "
            f"{'. '.join(differences)}. Give all ranks the same arguments"
        )

"""What ranks tell each other of a pass that they recorded together, and what they make of it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tensorstate_callbacks.errors import ProbeError, RankError
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, merge_accuracies
from tensorstate_callbacks.recording.class_counts import Classed
from tensorstate_callbacks.recording.pass_counts import PassCounts, Width, merge_orders
from tensorstate_callbacks.recording.rank_classes import RankClasses, merge_classes
from tensorstate_callbacks.recording.rank_exchange import Exchange
from tensorstate_callbacks.recording.rank_levels import (
    Levels,
    RankPass,
    merge_levels,
    seen_by,
)
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.states.class_counter import ClassCounter


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


class OwnPass(NamedTuple):
    """One evaluation pass of this rank.

    Attributes:
        told: What it tells the others.
        counters: What it counted.
        classes: What it counted by class.
        failure: Why it can't go on, or None.
    """

    told: RankPass
    counters: Levels
    classes: Mapping[Width, ClassCounter]
    failure: Exception | None


def pass_of(
    recorder: Recorder,
    accuracy: FoundAccuracy,
    weight: float | None,
    failure: Exception | None,
    doubts: Mapping[str, str],
    settings: Mapping[str, str],
) -> OwnPass:
    """Return what this rank recorded, and tells the others of it."""
    counters: Levels = {}
    classed = Classed({}, {})
    seen, n_states = {}, 0
    try:
        probes = {w: c for w, c in recorder.probe_counters().items() if c.has_seen}
        n_states = sum(c.counter.n_states for c in probes.values())
        counters = {width: probe.levels() for width, probe in probes.items()}
        seen = {width: seen_by(counters[width], probe) for width, probe in probes.items()}
        classed = recorder.class_results()
    except ProbeError as error:
        failure = failure or error
    failure = failure or recorder.error
    budget, classes = recorder.budget, recorder.classes
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
        recorder.finds_neurons,
        None if classes is None else RankClasses.of(classed, classes.budget),
    )
    return OwnPass(own, counters, classed.counters, failure)


def merge_gathered(own: OwnPass, passes: Sequence[RankPass], exchange: Exchange) -> MergedPass:
    """Merge what the ranks recorded, once each knows what the others tell: a collective.

    Args:
        own: What this rank recorded.
        passes: What all ranks tell.
        exchange: Carries what the ranks counted.
    """
    sums = merge_levels(own.counters, passes, exchange)
    told = [p.classes for p in passes if p.classes is not None]
    if len(told) == len(passes):
        sums = merge_classes(sums, own.classes, told, exchange)
    merged = merge_accuracies([p.accuracy for p in passes], [p.weight for p in passes])
    all_doubts = {name: doubt for p in passes for name, doubt in p.doubts.items()}
    return MergedPass(sums, merged, list(all_doubts.values()))


def check_passes(ranks: Sequence[int], passes: Sequence[RankPass]) -> None:
    """Raise `RankError` if a rank can't go on, or records otherwise than others.

    Args:
        ranks: Their numbers.
        passes: Of all ranks.
    """
    for rank, its in zip(ranks, passes, strict=True):
        if its.failure is not None:
            raise RankError(
                f"rank {rank} can't merge its counts of states with the others: {its.failure}"
            )
    check_alike(ranks, _settings_of(passes))


def _settings_of(passes: Sequence[RankPass]) -> list[dict[str, str]]:
    # A rank without data doesn't find out which layer makes the output.
    probes = [{*its.names, *its.dropped} for its in passes]
    common = set.intersection(*probes)
    return [
        {**its.settings, "probes that others don't have": ", ".join(sorted(own - common))}
        for its, own in zip(passes, probes, strict=True)
    ]


def check_alike(ranks: Sequence[int], settings: Sequence[Mapping[str, str]]) -> None:
    """Raise `RankError` if ranks record otherwise than others; names them, and what differs.

    Args:
        ranks: Their numbers.
        settings: What each records with, under names; see `Settings.comparable`.
    """
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

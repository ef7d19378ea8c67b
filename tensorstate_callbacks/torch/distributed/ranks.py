"""Merge what the ranks of a process group recorded into one pass, the same on all of them."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import torch.distributed as dist

from tensorstate_callbacks.errors import ProbeError, RankError, TensorStateWarning
from tensorstate_callbacks.metrics.efficiency import aIQ
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, merge_accuracies
from tensorstate_callbacks.recording.pass_counts import PassCounts, merge_orders
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.distributed.process_groups import (
    ProcessGroup,
    host_group,
    mark_known,
    ranks_of,
    wait_for_ranks,
)
from tensorstate_callbacks.torch.distributed.rank_levels import (
    Levels,
    RankPass,
    gather,
    merge_levels,
    seen_by,
)


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
    own, counters, failure = pass_of(recorder, accuracy, weight, failure, doubts, settings)
    with gathered_passes(own, group, failure) as (passes, carrier):
        sums = merge_levels(counters, passes, carrier)
    merged = merge_accuracies([p.accuracy for p in passes], [p.weight for p in passes])
    all_doubts = {name: doubt for p in passes for name, doubt in p.doubts.items()}
    return MergedPass(sums, merged, list(all_doubts.values()))


def pass_of(
    recorder: Recorder,
    accuracy: FoundAccuracy,
    weight: float | None,
    failure: Exception | None,
    doubts: Mapping[str, str],
    settings: Mapping[str, str],
) -> tuple[RankPass, Levels, Exception | None]:
    """Return what this rank tells the others, its counters, and why it can't go on, or None."""
    counters: Levels = {}
    seen, n_states = {}, 0
    try:
        probes = {w: c for w, c in recorder.probe_counters().items() if c.has_seen}
        n_states = sum(c.counter.n_states for c in probes.values())
        counters = {width: probe.levels() for width, probe in probes.items()}
        seen = {width: seen_by(counters[width], probe) for width, probe in probes.items()}
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
    return own, counters, failure


@contextmanager
def gathered_passes(
    own: RankPass, group: ProcessGroup, failure: Exception | None
) -> Iterator[tuple[list[RankPass], ProcessGroup]]:
    """Give the passes of all ranks, and a group that carries their counters inside the block.

    Raises:
        RankError: Another rank can't go on, records otherwise, or is gone; the message names it.
        Exception: `failure`.
    """
    with host_group(group) as carrier:
        try:
            passes = gather(own, carrier)
            if failure is not None:
                raise mark_known(failure)
            _check(dict(zip(ranks_of(group), passes, strict=True)))
            _check_alike(ranks_of(group), _settings_of(passes))
            yield passes, carrier
        except RuntimeError as error:
            if isinstance(error, (RankError, ProbeError)) or error is failure:
                raise
            # A rank that is gone doesn't come here any more.
            wait_for_ranks(group)
            raise RankError(
                f"the exchange of counted states between the ranks {ranks_of(group)} broke off, "
                f"though all of them are there: {error}"
            ) from error


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
        gathered = gather(dict(settings), carrier)
    _check_alike(ranks_of(group), gathered)


def describe_doubts(doubts: Iterable[str]) -> str:
    """Return the warning of repeated samples that could not be left out for certain."""
    return (
        "the ranks don't divide the samples, so a DistributedSampler or Accelerate repeats some, "
        f"and where these are in the activations had to be assumed: {'; '.join(doubts)}. Evaluate "
        "a number of samples that the ranks divide, or exclude these layers"
    )


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

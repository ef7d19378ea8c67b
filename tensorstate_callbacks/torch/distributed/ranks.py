"""Merge what the ranks of a process group recorded into one pass, the same on all of them."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch.distributed as dist

from tensorstate_callbacks.errors import ProbeError, RankError, TensorStateWarning
from tensorstate_callbacks.metrics.efficiency import aIQ
from tensorstate_callbacks.metrics.turnover import ProbeChange
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.pass_counts import PassCounts
from tensorstate_callbacks.recording.probe_states import Outcome
from tensorstate_callbacks.recording.rank_levels import RankPass
from tensorstate_callbacks.recording.rank_passes import (
    MergedPass,
    check_alike,
    check_passes,
    merge_gathered,
    pass_of,
)
from tensorstate_callbacks.recording.recorder import Recorder
from tensorstate_callbacks.torch.distributed.process_groups import (
    ProcessGroup,
    host_group,
    mark_known,
    ranks_of,
    wait_for_ranks,
)
from tensorstate_callbacks.torch.distributed.state_exchange import StateExchange


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
    own = pass_of(recorder, accuracy, weight, failure, doubts, settings)
    with gathered_passes(own.told, group, own.failure) as (passes, carrier):
        return merge_gathered(own, passes, StateExchange(carrier))


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
            passes = StateExchange(carrier).gather(own)
            if failure is not None:
                raise mark_known(failure)
            check_passes(ranks_of(group), passes)
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
        gathered = StateExchange(carrier).gather(dict(settings))
    check_alike(ranks_of(group), gathered)


def gather_outcomes(outcome: Outcome, group: ProcessGroup) -> list[Outcome]:
    """Return what each rank of a group made of its run over the probe data, by rank: a collective.

    What went wrong says on which rank.

    Raises:
        RankError: A rank failed, or didn't come within the group's timeout; names it.
    """
    wait_for_ranks(group)
    with host_group(group) as carrier:
        gathered: list[Outcome] = StateExchange(carrier).gather(outcome)
    return [
        each if each.problem is None else each._replace(problem=f"on rank {rank}, {each.problem}")
        for rank, each in zip(ranks_of(group), gathered, strict=True)
    ]


def share_changes(
    changes: Mapping[str, ProbeChange], group: ProcessGroup
) -> Mapping[str, ProbeChange]:
    """Return how states of probe data have changed on the first rank: a collective.

    Nothing where they aren't known on all of them.
    """
    outcomes = gather_outcomes(Outcome(dict(changes)), group)
    found = [each.changes or {} for each in outcomes]
    return found[0] if all(found) else {}


def describe_doubts(doubts: Iterable[str]) -> str:
    """Return the warning of repeated samples that could not be left out for certain."""
    return (
        "the ranks don't divide the samples, so a DistributedSampler or Accelerate repeats some, "
        f"and where these are in the activations had to be assumed: {'; '.join(doubts)}. Evaluate "
        "a number of samples that the ranks divide, or exclude these layers"
    )

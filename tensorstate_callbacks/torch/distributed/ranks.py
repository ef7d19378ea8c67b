"""Merge what the ranks of a process group recorded into one pass, the same on all of them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch.distributed as dist

from tensorstate_callbacks.errors import ProbeError, RankError
from tensorstate_callbacks.recording.accuracy import FoundAccuracy, merge_accuracies
from tensorstate_callbacks.recording.recorder import (
    PassCounts,
    ProbeCounts,
    Recorder,
    Width,
    merge_orders,
    merge_ranks,
)
from tensorstate_callbacks.states.counter import StateCounter
from tensorstate_callbacks.torch.distributed.barrier import mark_known, wait_for_ranks
from tensorstate_callbacks.torch.distributed.exchange import StateExchange
from tensorstate_callbacks.torch.distributed.process_groups import (
    ProcessGroup,
    host_group,
    ranks_of,
)


class MergedPass(NamedTuple):
    """One evaluation pass of all ranks, the same on all of them.

    Attributes:
        figures: To the bit what one process would have recorded of all ranks' data.
        accuracy: The accuracy over all of it.
        doubts: What some rank had to assume of a probe, in sentences.
    """

    figures: PassCounts
    accuracy: FoundAccuracy
    doubts: list[str]


class RankPass(NamedTuple):
    """What one rank tells the others before states are exchanged.

    Attributes:
        names: Its probes.
        dropped: The probes that it forgot, since they turned out not to be meant.
        distinct: How many distinct states each probe saw, and with how many neurons, in the order
            it saw them.
        accuracy: The accuracy it found.
        weight: How much of the data that accuracy is of.
        doubts: What it had to assume, for each probe where that was so.
        failure: Why it can't go on, or None.
    """

    names: tuple[str, ...]
    dropped: frozenset[str]
    distinct: dict[Width, int]
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
) -> MergedPass:
    """Merge what the ranks of a group recorded: a collective, after `wait_for_ranks`.

    Args:
        recorder: What this rank recorded; it stays as it is.
        group: The ranks.
        accuracy: The accuracy that this rank found.
        weight: How many samples that accuracy is of; None: as many states as it saw.
        failure: What went wrong on this rank, if it can't go on.
        doubts: What this rank had to assume, for each probe where that was so.

    Raises:
        RankError: Another rank can't go on, or is gone; the message names it.
        Exception: `failure`, or the recorder's error.
    """
    counters: Mapping[Width, StateCounter] = {}
    try:
        counters = {width: c for width, c in recorder.by_width().items() if c.n_states}
    except ProbeError as error:
        failure = failure or error
    failure = failure or recorder.error
    own = RankPass(
        recorder.names,
        recorder.dropped,
        {width: counter.n_distinct for width, counter in counters.items()},
        accuracy,
        sum(c.n_states for c in counters.values()) if weight is None else weight,
        dict(doubts),
        None if failure is None else f"{type(failure).__name__}: {failure}",
    )
    with host_group(group) as carrier:
        try:
            passes = _gather(own, carrier)
            if failure is not None:
                raise mark_known(failure)
            _check(dict(zip(ranks_of(group), passes, strict=True)))
            figures = _exchange(counters, passes, carrier)
        except RuntimeError as error:
            if isinstance(error, (RankError, ProbeError)) or error is failure:
                raise
            # Whoever is gone doesn't come here any more.
            wait_for_ranks(group)
            raise RankError(
                f"the exchange of counted states between the ranks {ranks_of(group)} broke off, "
                f"though all of them are there: {error}"
            ) from error
    merged = merge_accuracies([p.accuracy for p in passes], [p.weight for p in passes])
    united = {name: doubt for p in passes for name, doubt in p.doubts.items()}
    return MergedPass(figures, merged, list(united.values()))


def _exchange(
    counters: Mapping[Width, StateCounter], passes: Sequence[RankPass], group: ProcessGroup
) -> PassCounts:
    exchange, own = StateExchange(group), {}
    # A rank without data doesn't find out which layer makes the output.
    dropped = {name for p in passes for name in p.dropped}
    for width in merge_orders(p.distinct for p in passes):
        if width.probe in dropped:
            continue
        counter = counters.get(width) or StateCounter(width.n_neurons)
        most = max(p.distinct.get(width, 0) for p in passes)
        spectrum = exchange.own_share(counter, most).spectrum()
        own[width] = ProbeCounts(spectrum, counter.fired())
    figures = _gather(own, group)
    shares = {width: [part[width] for part in figures] for width in own}
    names = merge_orders(p.names for p in passes)
    return merge_ranks([name for name in names if name not in dropped], shares)


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

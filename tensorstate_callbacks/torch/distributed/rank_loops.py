"""Evaluate in a loop of one's own on several ranks: count each one's samples, merge the pass."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch.distributed as dist

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.metrics.efficiency import aIQ
from tensorstate_callbacks.recording.accuracy import FoundAccuracy
from tensorstate_callbacks.recording.recorder import PassCounts, Recorder
from tensorstate_callbacks.torch.distributed.barrier import wait_for_ranks
from tensorstate_callbacks.torch.distributed.own_samples import ALL_OWN, BatchSamples, OwnSamples
from tensorstate_callbacks.torch.distributed.process_groups import ProcessGroup
from tensorstate_callbacks.torch.distributed.ranks import merge_passes

Batch = TypeVar("Batch")


def own_batches(
    loader: Iterable[Batch],
    group: ProcessGroup | None,
    begin: Callable[[BatchSamples | None], None],
) -> Iterator[Batch]:
    """Yield a loader's batches, and tell before each how much of it is this rank's own.

    Args:
        loader: The loader.
        group: The ranks that share the data; None means all of them.
        begin: Called before each batch, and with None after the last.

    Warns:
        TensorStateWarning: That can't be known.
    """
    there = dist.is_available() and dist.is_initialized()
    n_ranks = dist.get_world_size(group) if there else 1
    own = OwnSamples(loader, n_ranks) if n_ranks > 1 else None
    if own is not None and own.problem is not None and dist.get_rank(group) == 0:
        warnings.warn(own.problem, TensorStateWarning, stacklevel=2)
    try:
        for index, batch in enumerate(loader):
            begin(None if own is None else own.of_batch(index) or ALL_OWN)
            yield batch
    finally:
        begin(None)


def merge_report(
    recorder: Recorder, group: ProcessGroup, accuracy: float | None, doubts: Mapping[str, str]
) -> tuple[PassCounts, float | None]:
    """Merge what the ranks recorded, and their accuracies; see `Recording.report`.

    Raises:
        RankError: A rank failed, or didn't come within the group's timeout.
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
    merged = merge_passes(recorder, group, FoundAccuracy(accuracy), None, failure, doubts)
    if merged.doubts and dist.get_rank(group) == 0:
        warnings.warn(describe_doubts(merged.doubts), TensorStateWarning, stacklevel=3)
    return merged.figures, merged.accuracy.value


def describe_doubts(doubts: Iterable[str]) -> str:
    """Return what to tell of repeated samples that could not be left out for certain."""
    return (
        "the ranks don't divide the samples, so a DistributedSampler or Accelerate repeats some, "
        f"and where these are in the activations had to be assumed: {'; '.join(doubts)}. Evaluate "
        "a number of samples that the ranks divide, or exclude these layers"
    )

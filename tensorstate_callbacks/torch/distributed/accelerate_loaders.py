"""Find the samples that Accelerate's data loaders repeat to give all processes equally many.

A prepared loader deals whole batches, or parts of each, to the processes in turn, and fills its
last ones up with the first samples. Of the processes' batches at one step, one after the other, the
first so many are data and the rest repeats: what `Accelerator.gather_for_metrics` keeps.
"""

import sys
from collections.abc import Callable, Sized
from typing import Any, NamedTuple, cast

from torch.utils.data import BatchSampler, IterableDataset


class Deal(NamedTuple):
    """How a loader deals samples to processes.

    Attributes:
        n_ranks: How many processes.
        of_batch: How many samples this process's batch has, and how many from the first on are its
            own; takes the batch's index, or None for the batch that is under way. None where that
            isn't known.
    """

    n_ranks: int
    of_batch: Callable[[int | None], tuple[int, int] | None]


def active_loader() -> Any:
    """Return the loader of Accelerate's that a loop takes its batches from now, or None."""
    # Whoever has such a loader has imported it.
    state: Any = sys.modules.get("accelerate.state")
    return None if state is None else state.GradientState().active_dataloader


def n_begun(loader: Any) -> int:
    """Return how many loops over a loader of Accelerate's have begun and didn't come to its end.

    A loop that was broken off counts until one over the same loader ends.
    """
    state: Any = sys.modules.get("accelerate.state")
    under_way = [] if state is None else state.GradientState().dataloader_references
    return sum(each is loader for each in under_way)


def find_deal(loader: Any) -> Deal | str | None:
    """Return how a loader of Accelerate's deals its samples, or why that can't be known.

    Args:
        loader: Any loader; None is returned for one that isn't Accelerate's, or isn't dealt.
    """
    accelerate: Any = sys.modules.get("accelerate.data_loader")
    if accelerate is None or not isinstance(loader, accelerate.DataLoaderStateMixin):
        return None
    if isinstance(loader, accelerate.DataLoaderDispatcher):
        return _dispatched(loader)
    if isinstance(loader.dataset, accelerate.IterableDatasetShard):
        return _stream(loader, loader.dataset)
    sampler = loader.sampler if isinstance(loader.sampler, BatchSampler) else loader.batch_sampler
    n_skipped = 0
    while isinstance(sampler, accelerate.SkipBatchSampler):
        n_skipped += sampler.skip_batches
        sampler = sampler.batch_sampler
    if isinstance(sampler, accelerate.BatchSamplerShard):
        return _shard(loader, sampler, n_skipped)
    n_ranks = accelerate.PartialState().num_processes
    if n_ranks == 1:
        return None
    if isinstance(loader.dataset, IterableDataset):
        return f"the dataset, {type(loader.dataset).__name__}, is an IterableDataset"
    return f"the batch sampler is a {type(sampler).__name__}"


def _shard(loader: Any, shard: Any, n_skipped: int) -> Deal | str:
    batches = shard.batch_sampler
    if type(batches) is not BatchSampler:
        return f"the batch sampler is a {type(batches).__name__}"
    if hasattr(batches.sampler, "num_replicas"):
        return f"Accelerate deals what a {type(batches.sampler).__name__} has dealt already"
    size, sampler = _part(batches.batch_size, shard), cast("Sized", batches.sampler)
    return _in_turn(loader, shard, size, len(sampler), n_skipped)


def _stream(loader: Any, shard: Any) -> Deal | str:
    if loader.num_workers > 1:
        return "the workers of an IterableDataset deal its samples too"
    size = _part(shard.batch_size, shard)
    try:
        # Without the last incomplete batches there are no repeats.
        n_data = sys.maxsize if shard.drop_last else len(shard.dataset)
    except TypeError:
        return f"the dataset, {type(shard.dataset).__name__}, is an IterableDataset without length"
    return _in_turn(loader, shard, size, n_data)


def _part(batch_size: int, shard: Any) -> int:
    return batch_size // shard.num_processes if shard.split_batches else batch_size


def _in_turn(loader: Any, shard: Any, size: int, n_data: int, n_skipped: int = 0) -> Deal:
    """How batches of one size are dealt, in the order of the data.

    Args:
        loader: What gives them.
        shard: What deals them.
        size: Samples of each process's whole batches.
        n_data: Samples of all processes, without repeats.
        n_skipped: How many of the process's batches the shard gives and the loader doesn't.
    """
    n_ranks, rank = int(shard.num_processes), int(shard.process_index)
    even = getattr(shard, "even_batches", True)
    # From the data, since lengths of shards are not the number of their batches: those that split
    # batches give ones of their own. Incomplete batches that are dropped leave whole ones.
    n_dealt = 1 if shard.drop_last else n_data - (0 if even else rank * size)
    last = -(-n_dealt // (size * n_ranks)) - 1

    def of_batch(index: int | None) -> tuple[int, int]:
        if index is None:
            # Only a loader's last batch may be another than its whole ones.
            index = last if loader.end_of_dataloader else 0
        else:
            index += loader.skip_batches + n_skipped
        n_own = max(0, min(size, n_data - (index * n_ranks + rank) * size))
        return (size if even else n_own), n_own

    return Deal(n_ranks, of_batch)


def _dispatched(loader: Any) -> Deal:
    """How batches are dealt that the first process reads for all."""
    n_ranks, rank = int(loader.state.num_processes), int(loader.state.process_index)

    def of_batch(index: int | None) -> tuple[int, int] | None:
        if loader.end_of_dataloader:
            # Here the loader says how many samples the processes' last batches have together.
            size = -(-loader.remainder // n_ranks)
            return size, max(0, min(size, loader.remainder - rank * size))
        batch_size = getattr(loader.batch_sampler, "batch_size", None)
        if batch_size is None:
            return None
        size = batch_size // n_ranks if loader.split_batches else batch_size
        return size, size

    return Deal(n_ranks, of_batch)

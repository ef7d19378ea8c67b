"""Count the samples of a loader's batch that are this rank's own, not repeated.

`DistributedSampler` gives all ranks equally many samples: where the ranks don't divide the data,
the last samples of some ranks are repeats of others' first ones. Of `n` samples on `W` ranks, rank
`r` has `ceil((n - r) / W)` of its own, and they come first. Accelerate's loaders repeat samples in
a way of their own.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from tensorstate_callbacks.errors import TensorStateWarning
from tensorstate_callbacks.torch.distributed.accelerate_loaders import (
    Deal,
    active_loader,
    find_deal,
    n_begun,
)
from tensorstate_callbacks.torch.distributed.process_groups import ProcessGroup

Batch = TypeVar("Batch")


class BatchSamples(NamedTuple):
    """Samples of one batch.

    Attributes:
        n_all: How many it has.
        n_own: How many of them, from the first on, are the rank's own.
    """

    n_all: int
    n_own: int


# Of a batch of which it isn't known: all that comes is taken for the rank's own.
ALL_OWN = BatchSamples(0, 0)


class OwnSamples:
    """Counts a loader's own samples, which come before those it repeats.

    Args:
        loader: What the batches come from, in its order.
        n_ranks: How many ranks evaluate together.

    Attributes:
        problem: Why that can't be known, in a sentence that says what to do; None where it can.
    """

    def __init__(self, loader: Any, n_ranks: int) -> None:
        deal = find_deal(loader)
        self._deal = deal if isinstance(deal, Deal) else None
        self.problem = _find_problem(loader, n_ranks, deal)
        if self.problem is None and self._deal is None:
            sampler = _sampler(loader)
            self._n_all = self._n_own = len(sampler)
            if n_ranks > 1:
                # Without drop_last the padding, with it nothing, is beyond the data.
                dealt = range(sampler.rank, len(sampler.dataset), n_ranks)
                self._n_own = min(self._n_all, len(dealt))
            batches = loader.batch_sampler
            self._batch_size = 1 if batches is None else int(batches.batch_size)

    def of_batch(self, index: int) -> BatchSamples | None:
        """Return what a batch has; None where it isn't known.

        Args:
            index: Its index, counted from 0; a loader that Accelerate dispatches from one process
                knows only the batch that it gave last.
        """
        if self.problem is not None:
            return None
        if self._deal is not None:
            counted = self._deal.of_batch(index)
            return None if counted is None else BatchSamples(*counted)
        start = index * self._batch_size
        n_all = max(0, min(self._batch_size, self._n_all - start))
        return BatchSamples(n_all, max(0, min(n_all, self._n_own - start)))


def own_samples(loader: Any, batch_idx: int) -> int:
    """Return how many samples of a batch, from the first on, are this rank's own.

    Use it for an accuracy that leaves out the samples that `DistributedSampler` or Accelerate
    repeats, so that several processes get exactly the aIQ of one:
    `metric.update(scores[:k], y[:k])`. Where one process evaluates alone, all samples are its own.

    Args:
        loader: The rank's DataLoader; of a Lightning Trainer, `trainer.val_dataloaders`.
        batch_idx: Index of the batch under way, counted from 0.

    Raises:
        ValueError: The loader doesn't let it be known; the message says why.
    """
    deal = find_deal(loader)
    # A batch sampler of a stream has no length, and so no truth value.
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader if batches is None else batches, "sampler", None)
    n_ranks = deal.n_ranks if isinstance(deal, Deal) else getattr(sampler, "num_replicas", 0)
    known = OwnSamples(loader, n_ranks or _count_ranks(None))
    samples = known.of_batch(batch_idx)
    if samples is None:
        raise ValueError(known.problem or "the size of the loader's batches isn't known")
    return samples.n_own


def own_batches(
    loader: Iterable[Batch],
    group: ProcessGroup | None,
    begin: Callable[[BatchSamples | None, Any], None],
) -> Iterator[Batch]:
    """Yield a loader's batches, each after a call with the samples of it that are this rank's own.

    Args:
        loader: The loader.
        group: The ranks that share the data; None means all of them.
        begin: Takes a batch's samples, and the batch, before it is given on; called with None and
            None after the last.

    Warns:
        TensorStateWarning: That can't be known.
    """
    n_ranks = _count_ranks(group)
    own = OwnSamples(loader, n_ranks) if n_ranks > 1 else None
    within = ActiveLoader()
    try:
        for index, batch in enumerate(loader):
            problem = own.problem if own is not None and index == 0 else None
            if problem is not None:
                if not isinstance(loader, DataLoader) and within.is_known():
                    # A progress bar, say, around a loader that tells of itself.
                    own = None
                elif dist.get_rank(group) == 0:
                    warnings.warn(problem, TensorStateWarning, stacklevel=2)
            begin(None if own is None else own.of_batch(index) or ALL_OWN, batch)
            yield batch
    finally:
        begin(None, None)


class ActiveLoader:
    """Counts the own samples of a loop that takes its batches from a loader of Accelerate's.

    Such a loader says that it is under way, so that it need not be named. One that was under way
    before is another loop's, since evaluations are made within a training loop, until a loop over
    it begins anew: one that was broken off, or `next(iter(loader))`, leaves it under way.
    """

    def __init__(self) -> None:
        before = active_loader()
        self._before, self._n_before = _weakly(before), n_begun(before)
        self._seen = _weakly(None)
        self._deal: Deal | None = None

    def is_known(self) -> bool:
        """Tell whether there is such a loader, of which it is known how it deals its samples."""
        return isinstance(find_deal(self._under_way()), Deal)

    def samples(self) -> BatchSamples | None:
        """Return what the batch under way has; None where there is no such loader.

        Warns:
            TensorStateWarning: Which samples the loader repeats can't be known.
        """
        loader = self._under_way()
        if loader is None:
            return None
        if loader is not self._seen():
            self._seen, deal = _weakly(loader), find_deal(loader)
            self._deal = deal if isinstance(deal, Deal) and deal.n_ranks > 1 else None
            if isinstance(deal, str):
                warnings.warn(_describe_unknown("the", deal), TensorStateWarning, stacklevel=2)
        counted = None if self._deal is None else self._deal.of_batch(None)
        return None if counted is None else BatchSamples(*counted)

    def _under_way(self) -> Any:
        """The loader; None where there is none but the one from before."""
        before = self._before()
        if before is not None and n_begun(before) != self._n_before:
            before, self._before = None, _weakly(None)
        loader = active_loader()
        return None if loader is before else loader


def _count_ranks(group: ProcessGroup | None) -> int:
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size(group) if there else 1


def _weakly(loader: Any) -> Any:
    # A loader that nothing else holds is no more under way.
    return (lambda: None) if loader is None else weakref.ref(loader)


def _sampler(loader: DataLoader[Any]) -> Any:
    # A batch sampler of its own leaves a DataLoader with a sampler that it doesn't use.
    batches: Any = loader.batch_sampler
    return loader.sampler if batches is None else getattr(batches, "sampler", None)


def _find_problem(loader: Any, n_ranks: int, deal: Deal | str | None) -> str | None:
    if isinstance(deal, Deal):
        found = None if deal.n_ranks == n_ranks else f"Accelerate deals to {deal.n_ranks}"
    else:
        found = deal or _unknown_order(loader, n_ranks)
    return None if found is None else _describe_unknown(f"the {n_ranks}", found)


def _describe_unknown(which: str, reason: str) -> str:
    return (
        f"which samples {which} processes have in common can't be known: {reason}. States are "
        "counted as they come, so a sample that several processes see counts several times; a "
        "DataLoader with a torch DistributedSampler lets repeats be left out"
    )


def _unknown_order(loader: Any, n_ranks: int) -> str | None:
    if not isinstance(loader, DataLoader):
        return f"the loader is a {type(loader).__name__}, no torch DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"the dataset, {type(loader.dataset).__name__}, is an IterableDataset"
    if not (loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler):
        return f"the batch sampler is a {type(loader.batch_sampler).__name__}"
    sampler = _sampler(loader)
    if n_ranks == 1:
        return None
    if not _deals_in_turn(sampler):
        return f"the sampler is a {type(sampler).__name__}"
    if sampler.num_replicas != n_ranks:
        return f"the DistributedSampler deals to {sampler.num_replicas}"
    if loader.num_workers and not getattr(loader, "in_order", True):
        return "the DataLoader has in_order=False"
    return None


def _deals_in_turn(sampler: Any) -> bool:
    if not isinstance(sampler, DistributedSampler):
        return False
    # Lightning's own subclasses only choose what is dealt, or don't repeat.
    origin = type(sampler).__module__.partition(".")[0]
    return type(sampler).__iter__ is DistributedSampler.__iter__ or origin in (
        "lightning",
        "pytorch_lightning",
        "lightning_fabric",
    )

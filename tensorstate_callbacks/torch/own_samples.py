"""A data loader in; how many samples of each batch are this rank's own, not repeated, out.

`DistributedSampler` gives all ranks equally many samples: where the ranks don't divide the data,
the last samples of some ranks are repeats of others' first ones. Of `n` samples on `W` ranks, rank
`r` has `ceil((n - r) / W)` of its own, and they come first.
"""

from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset


class BatchSamples(NamedTuple):
    """Samples of one batch.

    Attributes:
        n_all: How many it has.
        n_own: How many of them, from the first on, are the rank's own.
    """

    n_all: int
    n_own: int


class OwnSamples:
    """Tells a loader's own samples from those it repeats.

    Args:
        loader: What the batches come from, in its order.
        n_ranks: How many ranks evaluate together.

    Attributes:
        problem: Why that can't be known, in a sentence that says what to do; None where it can.
    """

    def __init__(self, loader: Any, n_ranks: int) -> None:
        self.problem = _find_problem(loader, n_ranks)
        if self.problem is None:
            sampler = _sampler(loader)
            self._n_all = len(sampler)
            # Without drop_last the padding, with it nothing, is beyond the data.
            n_data = len(sampler.dataset)
            self._n_own = min(self._n_all, len(range(sampler.rank, n_data, sampler.num_replicas)))
            batches = loader.batch_sampler
            self._batch_size = 1 if batches is None else int(batches.batch_size)

    def of_batch(self, index: int) -> BatchSamples | None:
        """Return what the batch of that index, counted from 0, has; None where it isn't known."""
        if self.problem is not None:
            return None
        start = index * self._batch_size
        n_all = max(0, min(self._batch_size, self._n_all - start))
        return BatchSamples(n_all, max(0, min(n_all, self._n_own - start)))


def own_samples(loader: Any, batch_idx: int) -> int:
    """Return how many samples of a batch, from the first on, are this rank's own.

    For an accuracy that leaves out what `DistributedSampler` repeats, so that several processes
    have the very aIQ of one: `metric.update(scores[:k], y[:k])`.

    Args:
        loader: The rank's DataLoader; of a Lightning Trainer, `trainer.val_dataloaders`.
        batch_idx: Index of the batch, counted from 0.

    Raises:
        ValueError: That can't be known of this loader; the message says why.
    """
    sampler = getattr(getattr(loader, "batch_sampler", None) or loader, "sampler", None)
    known = OwnSamples(loader, getattr(sampler, "num_replicas", 1))
    samples = known.of_batch(batch_idx)
    if samples is None:
        raise ValueError(known.problem)
    return samples.n_own


def _sampler(loader: DataLoader[Any]) -> Any:
    # A batch sampler of its own leaves a DataLoader with a sampler that it doesn't use.
    batches: Any = loader.batch_sampler
    return loader.sampler if batches is None else getattr(batches, "sampler", None)


def _find_problem(loader: Any, n_ranks: int) -> str | None:
    found = _unknown_order(loader, n_ranks)
    if found is None:
        return None
    return (
        f"which samples the {n_ranks} processes have in common can't be known: {found}. States "
        "are counted as they come, so a sample that several processes see counts several times; "
        "a DataLoader with a torch DistributedSampler lets repeats be left out"
    )


def _unknown_order(loader: Any, n_ranks: int) -> str | None:
    if not isinstance(loader, DataLoader):
        return f"the loader is a {type(loader).__name__}, no torch DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"the dataset, {type(loader.dataset).__name__}, is an IterableDataset"
    if not (loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler):
        return f"the batch sampler is a {type(loader.batch_sampler).__name__}"
    sampler = _sampler(loader)
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

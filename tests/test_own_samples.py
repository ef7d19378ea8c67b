"""What `DistributedSampler` repeats is told from a rank's own samples, and left out."""

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from tensorstate_callbacks.torch import own_samples
from tensorstate_callbacks.torch.batch_rows import BatchRows
from tensorstate_callbacks.torch.distributed.own_samples import BatchSamples, OwnSamples


def loader(n: int, n_ranks: int, rank: int, batch_size: int | None, **options: Any) -> Any:
    drop_last = options.pop("drop_last_batch", False)
    sampler = DistributedSampler(range(n), n_ranks, rank, **options)
    if batch_size is None:
        return DataLoader(range(n), None, sampler=sampler)
    return DataLoader(range(n), batch_size, sampler=sampler, drop_last=drop_last)


@given(
    n=st.integers(1, 40),
    n_ranks=st.integers(1, 6),
    batch_size=st.one_of(st.none(), st.integers(1, 7)),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_own_samples_of_all_ranks_are_each_sample_once(
    n: int, n_ranks: int, batch_size: int | None, shuffle: bool, drop_last: bool
) -> None:
    own, dealt = [], set()
    for rank in range(n_ranks):
        one = loader(n, n_ranks, rank, batch_size, shuffle=shuffle, drop_last=drop_last)
        known = OwnSamples(one, n_ranks)
        assert known.problem is None
        for index, batch in enumerate(one):
            samples = [batch] if batch_size is None else batch.tolist()
            found = known.of_batch(index)
            assert found is not None
            assert found.n_all == len(samples)
            assert own_samples(one, index) == found.n_own
            own += samples[: found.n_own]
            dealt |= set(samples)
    assert sorted(own) == sorted(dealt)
    if not drop_last:
        assert dealt == set(range(n))


def test_batches_that_are_left_out_change_nothing_before_them() -> None:
    whole, cut = (loader(11, 4, 3, 2, drop_last_batch=drop) for drop in (False, True))
    assert (len(whole), len(cut)) == (2, 1)
    # Rank 3 of 4 has samples 3 and 7 of its own, and one repeated.
    assert [own_samples(whole, index) for index in range(2)] == [2, 0]
    assert own_samples(cut, 0) == 2


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


class Shuffled(DistributedSampler[int]):
    def __iter__(self) -> Any:
        return reversed(list(super().__iter__()))


class Grouped(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("one", "problem"),
    [
        ([1, 2], "is a list, no torch DataLoader"),
        (DataLoader(Stream(), 2), "Stream, is an IterableDataset"),
        (DataLoader(range(4), 2), "the sampler is a SequentialSampler"),
        (DataLoader(range(4), 2, sampler=RandomSampler(range(4))), "sampler is a RandomSampler"),
        (DataLoader(range(4), sampler=Shuffled(range(4), 2, 0)), "the sampler is a Shuffled"),
        (
            DataLoader(range(4), batch_sampler=Grouped(SequentialSampler(range(4)), 2, False)),
            "the batch sampler is a Grouped",
        ),
        (loader(4, 4, 0, 2), "the DistributedSampler deals to 4"),
    ],
)
def test_order_that_is_not_known_is_a_problem(one: Any, problem: str) -> None:
    known = OwnSamples(one, 2)
    assert known.problem is not None
    assert problem in known.problem
    assert known.of_batch(0) is None


def test_own_samples_says_why_it_can_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Stream, is an IterableDataset"):
        own_samples(DataLoader(Stream(), 2), 0)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
    with pytest.raises(ValueError, match="the sampler is a SequentialSampler"):
        own_samples(DataLoader(range(4), 2), 0)


@pytest.mark.parametrize("batch_size", [None, 3])
def test_all_samples_are_those_of_a_process_that_is_alone(batch_size: int | None) -> None:
    for options in ({}, {"shuffle": True}):
        alone: Any = DataLoader(range(7), batch_size, **options)
        sizes = [torch.as_tensor(batch).numel() for batch in alone]
        assert [own_samples(alone, index) for index in range(len(alone))] == sizes


def rows(samples: BatchSamples, *before: torch.Tensor) -> BatchRows:
    """About to get a batch, after others of four samples."""
    found = BatchRows()
    found.samples = samples
    for tensor in before:
        found.samples = BatchSamples(4, 4)
        assert found.own("probe", nn.Linear(2, 2), tensor, -1) is tensor
    found.samples = samples
    return found


@pytest.mark.parametrize(
    ("module", "shape", "channel_axis", "axis", "n"),
    [
        (nn.Linear(2, 5), (3, 5), -1, 0, 2),
        (nn.Linear(2, 5), (7, 3, 5), -1, 1, 2),
        (nn.Linear(2, 3), (3, 3), -1, 0, 2),
        # A convolution's batch comes first, whatever its other axes have.
        (nn.Conv2d(1, 3, 1), (3, 3, 3, 3), 1, 0, 2),
        (nn.BatchNorm1d(3), (3, 3), 1, 0, 2),
        (nn.LSTM(2, 5), (3, 3, 5), -1, 1, 2),
        (nn.LSTM(2, 5, batch_first=True), (3, 3, 5), -1, 0, 2),
        (nn.MultiheadAttention(4, 2), (3, 3, 4), -1, 1, 2),
        (nn.LayerNorm((6, 5)), (3, 6, 5), 1, 0, 2),
    ],
)
def test_batch_axis_is_found(
    module: nn.Module, shape: tuple[int, ...], channel_axis: int, axis: int, n: int
) -> None:
    tensor, found = torch.rand(shape), rows(BatchSamples(3, n))
    kept = found.own("probe", module, tensor, channel_axis)
    assert kept is not None
    assert torch.equal(kept, tensor.index_select(axis, torch.arange(n)))
    assert found.doubts == {}


def test_batch_axis_shows_in_earlier_batches() -> None:
    # In the last batch three samples meet a sequence of three.
    found = rows(BatchSamples(3, 1), torch.rand(3, 4, 5))
    tensor = torch.rand(3, 3, 5)
    kept = found.own("probe", nn.Linear(2, 5), tensor, -1)
    assert kept is not None
    assert torch.equal(kept, tensor[:, :1])
    assert found.doubts == {}


def test_whole_batches_stay_and_repeated_ones_go() -> None:
    tensor, found = torch.rand(3, 5), BatchRows()
    assert found.own("probe", nn.Linear(2, 5), tensor, -1) is tensor
    found.samples = BatchSamples(3, 3)
    assert found.own("probe", nn.Linear(2, 5), tensor, -1) is tensor
    found.samples = BatchSamples(3, 0)
    assert found.own("probe", nn.Linear(2, 5), tensor, -1) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype")
def test_nested_samples_are_left_out() -> None:
    parts = [torch.rand(length, 5) for length in (2, 4, 3)]
    nested = torch.nested.nested_tensor(parts)
    kept = rows(BatchSamples(3, 2)).own("probe", nn.Linear(2, 5), nested, -1)
    assert kept is not None
    assert [torch.equal(a, b) for a, b in zip(kept.unbind(), parts[:2], strict=True)] == [True] * 2


@pytest.mark.parametrize(
    ("module", "shape", "kept", "assumed"),
    [
        (nn.Linear(2, 5), (3, 3, 5), (2, 3, 5), r"probe \(3, 3, 5\), of 3 .*its axis 0 was taken"),
        (nn.Linear(2, 5), (12, 5), (8, 5), "hold sample after sample"),
        (nn.Linear(2, 5), (4, 5), (4, 5), "all of it was counted"),
        # The rows of a PackedSequence.
        (nn.LSTM(2, 5), (12, 5), (12, 5), "all of it was counted"),
    ],
)
def test_what_is_assumed_is_a_doubt(
    module: nn.Module, shape: tuple[int, ...], kept: tuple[int, ...], assumed: str
) -> None:
    found, tensor = rows(BatchSamples(3, 2)), torch.rand(shape)
    own = found.own("probe", module, tensor, -1)
    assert own is not None
    assert own.shape == kept
    assert torch.equal(own, tensor[: kept[0]])
    (doubt,) = found.doubts.values()
    assert re.search(assumed, doubt)

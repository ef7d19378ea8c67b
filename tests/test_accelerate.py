"""Samples that Accelerate's loaders repeat are left out; several processes count what one does."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import rank_models
import rank_runs
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_processes import run
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

from tensorstate_callbacks import TensorStateWarning
from tensorstate_callbacks.torch import own_samples, record
from tensorstate_callbacks.torch.distributed.own_samples import ActiveLoader, OwnSamples

data_loader = pytest.importorskip("accelerate.data_loader", reason="accelerate isn't installed")


class Numbers(IterableDataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class SizedNumbers(Numbers):
    def __len__(self) -> int:
        return self.n


class Own(BatchSampler):
    pass


def shards(loader: Any, n_ranks: int, **options: Any) -> list[Any]:
    """The loader of each rank, as Accelerate prepares it there."""
    return [
        data_loader.prepare_data_loader(
            loader, num_processes=n_ranks, process_index=rank, rng_types=[], **options
        )
        for rank in range(n_ranks)
    ]


@given(
    n=st.integers(1, 40),
    n_ranks=st.integers(2, 5),
    batch_size=st.integers(1, 5),
    drop_last=st.booleans(),
    split=st.booleans(),
    even=st.booleans(),
    stream=st.booleans(),
)
def test_own_samples_of_all_ranks_are_each_sample_once(
    n: int,
    n_ranks: int,
    batch_size: int,
    drop_last: bool,
    split: bool,
    even: bool,
    stream: bool,
) -> None:
    size = batch_size * n_ranks if split else batch_size
    loader = DataLoader(SizedNumbers(n) if stream else range(n), size, drop_last=drop_last)
    own, dealt = [], set()
    for one in shards(loader, n_ranks, split_batches=split, even_batches=even):
        known, active = OwnSamples(one, n_ranks), ActiveLoader()
        assert known.problem is None
        for index, batch in enumerate(one):
            found = known.of_batch(index)
            assert found is not None
            assert active.samples() == found
            assert found.n_all == len(batch)
            assert own_samples(one, index) == found.n_own
            own += batch[: found.n_own].tolist()
            dealt |= set(batch.tolist())
    assert sorted(own) == sorted(dealt)
    if not drop_last:
        assert dealt == set(range(n))


def test_skipped_batches_are_no_part_of_the_count() -> None:
    for one in shards(DataLoader(range(10), 4), 2):
        one.skip_batches = 1
        ((index, batch),) = enumerate(one)
        assert len(batch) == 4
        # 8 and 9 come last, on the first rank.
        assert own_samples(one, index) == (2 if 8 in batch else 0)


@pytest.mark.parametrize(
    ("loader", "problem"),
    [
        (DataLoader(Numbers(9), 4), "Numbers, is an IterableDataset without length"),
        (DataLoader(SizedNumbers(9), 4, num_workers=2), "the workers of an IterableDataset deal"),
        (DataLoader(range(9), batch_sampler=Own(range(9), 4, False)), "batch sampler is a Own"),
        (rank_models.dealt_twice(), "deals what a DistributedSampler has dealt already"),
    ],
)
def test_order_that_is_not_known_is_a_problem(loader: Any, problem: str) -> None:
    one = shards(loader, 2)[0]
    known = OwnSamples(one, 2)
    assert problem in str(known.problem)
    assert known.of_batch(0) is None


def test_deal_to_other_processes_than_the_groups_is_a_problem() -> None:
    problem = OwnSamples(shards(DataLoader(range(9), 4), 3)[0], 2).problem
    assert "Accelerate deals to 3" in str(problem)


def test_plain_loop_over_what_is_not_known_counts_all_with_one_warning() -> None:
    model = nn.Sequential(nn.Linear(1, 3))
    (one, _) = shards(DataLoader(Numbers(9), 4), 2)
    with (
        pytest.warns(TensorStateWarning, match="Numbers, is an IterableDataset") as caught,
        record(model, "0") as recording,
    ):
        run_all(model, one)
    assert len(caught) == 1
    # 0 to 3, and 8 with the first three again.
    assert recording.counters["0"].n_states == 8


def run_all(model: nn.Module, batches: Any) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch.reshape(-1, 1).float())


def counts(model: nn.Module, loader: Any, *, told: bool = False) -> Counter[bytes]:
    with record(model, "0") as recording, torch.no_grad():
        for batch in recording.batches(loader) if told else loader:
            model(batch)
    counter = recording.counters["0"]
    pairs = zip(counter.states(), counter.counts(), strict=True)
    return Counter({state.tobytes(): int(n) for state, n in pairs})


@pytest.mark.parametrize("shape", [(6,), (3, 6), (4, 6)])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("n", [10, 16, 5])
def test_plain_loop_counts_each_sample_once(shape: tuple[int, ...], even: bool, n: int) -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(6, 7)), torch.randn(n, *shape)
    loader = DataLoader(x, 4)
    for told in (True, False):
        parts = [counts(model, one, told=told) for one in shards(loader, 2, even_batches=even)]
        merged = sum(parts, Counter())
        assert merged == counts(model, loader)
        assert merged.total() == n * math.prod(shape[:-1])


def test_loader_of_a_loop_around_the_evaluation_is_not_the_evaluations() -> None:
    model, x = nn.Sequential(nn.Linear(6, 7)), torch.randn(10, 6)
    n = []
    for one in shards(DataLoader(x, 4), 2):
        for _ in one:
            # As within a training loop: at the loader's end it says that samples are repeated.
            n.append(counts(model, DataLoader(x, 4)).total())
    assert n == [10] * 4


def test_shuffled_samples_are_counted_once() -> None:
    model, x = nn.Sequential(nn.Linear(6, 7)), torch.randn(10, 6)
    made = [
        DataLoader(x, 4, sampler=RandomSampler(x, generator=torch.Generator().manual_seed(3)))
        for _ in range(2)
    ]
    parts = [counts(model, shards(loader, 2)[rank]) for rank, loader in enumerate(made)]
    assert sum(parts, Counter()) == counts(model, DataLoader(x, 10))


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return json.loads(json.dumps(rank_runs.accelerated()))


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run("accelerated", 2)


def test_two_processes_give_what_one_gives(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    known = [name for name in one if not name.startswith("unknown")]
    assert one["plain"]["report"]["layers"]["0"]["n_states"] == 10 * 49
    assert one["stream"]["report"]["layers"]["0"]["n_states"] == 11 * 49
    assert one["few"]["report"]["layers"]["0"]["n_states"] == 3 * 49
    assert one["skipped"]["report"]["layers"]["0"]["n_states"] == 3 * 49
    for found in two:
        for name in known:
            # Floats too, to the last bit; and nothing to warn of.
            assert found[name] == one[name], name


@pytest.mark.parametrize(
    ("name", "why"),
    [("unknown", "Stream, is an IterableDataset without length"), ("unknown_bar", "is a tqdm")],
)
def test_processes_are_told_once_of_what_is_not_known(
    two: list[dict[str, Any]], name: str, why: str
) -> None:
    (text,) = two[0][name]["told"]
    assert why in text
    assert two[1][name]["told"] == []
    assert two[0][name]["report"]["layers"]["0"]["n_states"] == 16 * 49


def test_outer_loader_stays_the_outer_loops_after_one_within() -> None:
    model, x = nn.Sequential(nn.Linear(6, 7)), torch.randn(10, 6)
    (_, outer), (_, inner) = shards(DataLoader(x, 4), 2), shards(DataLoader(x, 4), 2)
    n = []
    for _ in outer:
        with record(model, "0") as recording, torch.no_grad():
            for batch in inner:
                model(batch)
            # No batch of either loader.
            model(x[:4])
        n.append(recording.counters["0"].n_states)
    assert n == [4 + 4] * 2


def test_loader_left_half_way_is_known_in_each_loop_over_it() -> None:
    model, x = nn.Sequential(nn.Linear(6, 7)), torch.randn(10, 6)
    n = []
    for one in shards(DataLoader(x, 4), 2):
        next(iter(one))
        with record(model, "0") as recording, torch.no_grad():
            for batch in [*one, *one]:
                model(batch)
            for _ in range(2):
                for batch in one:
                    model(batch)
        n.append(recording.counters["0"].n_states)
    # Of batches that were drawn beforehand nothing is known: 8 samples each.
    assert n == [16 + 2 * 6, 16 + 2 * 4]

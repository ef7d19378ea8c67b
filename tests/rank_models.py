"""What runs on ranks share: which rank this is, how they train and warn, their data and models."""

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning_models import QUIET, Classifier, data, trainer
from own_warnings import ours
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from tensorstate_callbacks import EfficiencyReport
from tensorstate_callbacks.torch import own_samples

# Neither 2 nor 4 ranks divide it, and batches of 8 end within what a rank has.
N_ODD = 49
ODD = data(N_ODD, 4)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def n_ranks() -> int:
    return int(os.environ.get("N_RANKS", "1"))


def many(*callbacks: Any, **options: Any) -> Any:
    if n_ranks() > 1:
        options = {"strategy": "ddp", "devices": n_ranks(), **options}
    return trainer(*callbacks, **options)


def dicts(reports: list[EfficiencyReport]) -> list[dict[str, Any]]:
    return [report.to_dict() for report in reports]


def quietly(run: Callable[[], Any], which: Callable[[Any], Any] = ours) -> tuple[Any, Any]:
    """What it returns and which of our warnings came; every warning not known is an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.filterwarnings("always", category=UserWarning, module="tensorstate_callbacks")
        warnings.filterwarnings("always", "Coverage is below")
        warnings.filterwarnings("always", ".*DistributedSampler.*")
        warnings.filterwarnings("ignore", "Using `DistributedSampler` with the dataloaders")
        for text in QUIET:
            warnings.filterwarnings("ignore", text.removeprefix("ignore:"))
        result = run()
    return result, which(caught)


class ExactClassifier(Classifier):
    """Logs the accuracy of own samples only; its weights don't change."""

    shared = False

    def __init__(self) -> None:
        super().__init__("metric")
        self.alone = False

    def evaluation_step(self, stage: str, batch: Any) -> None:
        x, y = batch
        right = self(x).argmax(1) == y
        k = len(y)
        if self.shared or n_ranks() > 1:
            loaders = getattr(self.trainer, f"{stage}_dataloaders")
            k = own_samples(loaders, self.batch_idx)
        if k:
            self.metric.update(right[:k].long(), torch.ones_like(y[:k]))
        if self.alone:
            mean = right[:k].float().mean() if k else torch.tensor(0.0)
            self.log(f"{stage}_acc", mean, batch_size=k)
        else:
            self.log(f"{stage}_acc", self.metric)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batch_idx = batch_idx
        super().validation_step(batch, batch_idx, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batch_idx = batch_idx
        super().test_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


class Failing(ExactClassifier):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if rank() == 1 and batch_idx == 1:
            raise ArithmeticError("this batch is bad")
        super().validation_step(batch, batch_idx, dataloader_idx)


class Stream(IterableDataset[Any]):
    """Gives its first rank nothing, the others all."""

    def __iter__(self) -> Iterator[Any]:
        return iter(ODD if rank() or n_ranks() == 1 else ())


class Flattening(nn.Module):
    """Takes `(B, T, C)` to a linear layer as `(B * T, C)`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(0, 1))


class OneSided(nn.Module):
    """Calls one layer more for positive samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.first, self.second, self.last = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if rank() == n_ranks() - 1:
            x = self.second(x)
        return self.last(x)


def group() -> Any:
    return dist.group.WORLD if n_ranks() > 1 else None


def dealt(inputs: torch.Tensor, batch_size: int) -> DataLoader[Any]:
    dataset = TensorDataset(inputs)
    sampler = DistributedSampler(dataset, shuffle=False) if n_ranks() > 1 else None
    return DataLoader(dataset, batch_size, sampler=sampler)


def dealt_twice() -> DataLoader[Any]:
    """Dealt by a sampler, for Accelerate to deal once more."""
    return DataLoader(range(9), 4, sampler=DistributedSampler(range(9), 2, 0, shuffle=False))


def tokens() -> torch.Tensor:
    return torch.randn(13, 7, 6, generator=torch.Generator().manual_seed(8))


class Learning(ExactClassifier):
    """Its weights change, alike on all ranks."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.5)


class FailsOnOne(Learning):
    """Fails on rank 1 alone, where it is run outside of Lightning's steps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if rank() == 1 and len(x) == 20:
            raise FloatingPointError("not here")
        return super().forward(x)


def ended(run: Callable[[], Any]) -> str:
    try:
        run()
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        return f"{type(error).__name__}: {error}"
    return "without an error"

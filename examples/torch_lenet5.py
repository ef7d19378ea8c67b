"""LeNet-5 in PyTorch, and the digits as it takes them."""

import os
from typing import Any

import numpy as np
import torch
from digits import Digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class LeNet5(nn.Module):
    """LeNet-5 with 20, 50 and 100 neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1, self.norm_1 = nn.Conv2d(1, 20, 5), nn.BatchNorm2d(20)
        self.conv_2, self.norm_2 = nn.Conv2d(20, 50, 5), nn.BatchNorm2d(50)
        self.conv_3, self.norm_3 = nn.Conv2d(50, 100, 4), nn.BatchNorm2d(100)
        self.pred = nn.Linear(100, 10)
        for layer in (self.conv_1, self.conv_2, self.conv_3, self.pred):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images of shape `(N, 1, 28, 28)` into logits of shape `(N, 10)`."""
        x = functional.max_pool2d(self.norm_1(functional.elu(self.conv_1(images))), 2)
        x = functional.max_pool2d(self.norm_2(functional.elu(self.conv_2(x))), 2)
        x = self.norm_3(functional.elu(self.conv_3(x)))
        logits: Tensor = self.pred(x.flatten(1))
        return logits


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum and L2 regularization."""
    return torch.optim.SGD(
        model.parameters(), lr=0.001, momentum=0.9, nesterov=True, weight_decay=0.0005
    )


def load_full() -> Digits:
    """Download MNIST with torchvision."""
    try:
        from torchvision.datasets import MNIST
    except ModuleNotFoundError as error:
        raise SystemExit("--data full needs torchvision: pip install torchvision") from error
    parts: list[Any] = []
    for train in (True, False):
        digits = MNIST(os.path.join(torch.hub.get_dir(), "mnist"), train=train, download=True)
        parts += [(digits.data.numpy() / 255).astype(np.float32), digits.targets.numpy()]
    return Digits(*parts)


def loader(images: Any, labels: Any, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
    """Serve the digits in batches."""
    dataset = TensorDataset(torch.from_numpy(images)[:, None], torch.from_numpy(labels))
    return DataLoader(dataset, batch_size, shuffle=shuffle)

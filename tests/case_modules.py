"""Modules as users write them, whose outputs have their neurons where only the code can tell."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Fn(nn.Module):
    """A function as a module; where it takes parameters, they are the module's."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.weights)


class LayerNorm2d(nn.LayerNorm):
    """As timm's and torchvision's: channels second, its parent's `normalized_shape` last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LastGroupNorm(nn.GroupNorm):
    """A group normalization for tensors whose channels come last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(-1, 1)).movedim(1, -1)


class FirstLayerNorm(nn.LayerNorm):
    """A layer normalization of the channels of (B, C, T)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class RMSNorm(nn.Module):
    """A hand-written norm over one axis, with a weight of any shape that broadcasts."""

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.weight, self.dim = nn.Parameter(torch.randn(shape)), dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.pow(2).mean(self.dim, keepdim=True).add(1e-6).rsqrt() * self.weight


class GlobalMaxPool1d(nn.Module):
    """A name that promises (B, C, 1), and gives (B, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.max(dim=2).values


class FooAvgPool2d(nn.Module):
    """Another such name, for (B, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Conv2d(nn.Module):
    """A user's class of torch's name, which gives (B, T, C)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(n_in, n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.kernel


class Conv1D(nn.Module):
    """A dense layer as transformers' GPT-2 has it: weight (n_in, n_out)."""

    def __init__(self, n_out: int, n_in: int) -> None:
        super().__init__()
        self.nf, self.nx = n_out, n_in
        self.weight = nn.Parameter(torch.randn(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(shape)


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the mean over all places."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.down, self.relu, self.up = nn.Linear(n, 5), nn.ReLU(), nn.Linear(5, n)
        self.gate = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(self.up(self.relu(self.down(x.flatten(2).mean(-1)))) - 0.5)
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))


class Attention(nn.Module):
    """Self-attention by hand: (B, T, C) to the same, heads folded and unfolded."""

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.drop = heads, nn.Linear(n, 3 * n), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n_batch, n_tokens, n = x.shape
        qkv = self.qkv(x).reshape(n_batch, n_tokens, 3, self.heads, n // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.drop((weights @ v).transpose(1, 2).reshape(n_batch, n_tokens, n))


class TokenMlp(nn.Module):
    """A block on (B, C, T) that has a sequential of torch's in the middle, channels last."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n, n), nn.GELU(), nn.Linear(n, n))
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.mlp(x.transpose(1, 2)).transpose(1, 2) + x)


class ClassToken(nn.Module):
    """Patches, a class token before them, and an embedding of places, as in ViT."""

    def __init__(self, n: int, n_tokens: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, n, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, n))
        self.places = nn.Parameter(torch.randn(1, n_tokens, n))
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.drop(torch.cat((self.token.expand(len(x), -1, -1), x), 1) + self.places)


def windows(x: torch.Tensor, size: int = 2) -> torch.Tensor:
    """Swin's: (B, H, W, C) rolled, to (B · windows, size · size, C)."""
    x = torch.roll(x, (-1, -1), (1, 2))
    n_batch, height, width, n = x.shape
    x = x.view(n_batch, height // size, size, width // size, size, n)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, n)


def shuffled(x: torch.Tensor, groups: int = 2) -> torch.Tensor:
    """ShuffleNet's: the channels of two groups, one by one."""
    n_batch, n, height, width = x.shape
    x = x.view(n_batch, groups, n // groups, height, width).transpose(1, 2)
    return x.reshape(n_batch, n, height, width)

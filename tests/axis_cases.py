"""Small networks of which it is known where each layer has its neurons."""

from collections.abc import Callable

import torch
from axis_oracle import Axes
from case_modules import (
    Attention,
    ClassToken,
    Conv1D,
    Conv2d,
    Fn,
    FooAvgPool2d,
    GlobalMaxPool1d,
    LastGroupNorm,
    LayerNorm2d,
    SqueezeExcite,
    TokenMlp,
    shuffled,
    windows,
)
from torch import nn
from torch.nn import functional

Shape = tuple[int, ...]
Case = tuple[Callable[[], list[nn.Module]], list[Shape], dict[str, Axes]]


def conv(n: int = 8) -> nn.Module:
    return nn.Conv1d(3, n, 3, padding=1)


def image(n: int = 8) -> nn.Module:
    return nn.Conv2d(3, n, 3, padding=1)


def pair(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, 1)
    return a * torch.sigmoid(b)


def last_gate(x: torch.Tensor) -> torch.Tensor:
    a, b = x.split(x.shape[-1] // 2, -1)
    return functional.gelu(a) * b


# Of each the layers, the input's shapes, and the axes of the probed layers. The second shape makes
# the neurons as many as the places, the third also as many as the samples, where that can be.
LINES, EQUAL_LINES, CUBE_LINES = (6, 3, 13), (5, 3, 8), (8, 3, 8)
IMAGES, EQUAL_IMAGES = (4, 3, 10, 12), (5, 3, 8, 8)
ALL_LINES, ALL_IMAGES = [LINES, EQUAL_LINES, CUBE_LINES], [IMAGES, EQUAL_IMAGES, (8, 3, 8, 8)]

CASES: dict[str, Case] = {
    "crop": (
        lambda: [nn.Conv1d(3, 8, 3, padding=2), Fn(lambda x: x[:, :, :-2]), nn.ReLU()],
        [(40, 3, 20), EQUAL_LINES, CUBE_LINES],
        {"0": 1, "1": 1, "2": 1},
    ),
    "pad": (
        lambda: [conv(), Fn(lambda x: functional.pad(x, (2, 1))), nn.GELU()],
        ALL_LINES,
        {"2": 1},
    ),
    "every second place": (
        lambda: [conv(), Fn(lambda x: x[..., ::2].contiguous()), nn.ReLU()],
        [LINES, (5, 3, 16)],
        {"2": 1},
    ),
    "chosen places": (
        lambda: [conv(), Fn(lambda x: x[:, :, torch.tensor([5, 2, 2, 0])]), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "selected places": (
        lambda: [conv(4), Fn(lambda x: x.index_select(2, torch.tensor([5, 2, 2, 0]))), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "GLU": (
        lambda: [conv(), nn.GLU(dim=1), nn.SiLU()],
        [LINES, (5, 3, 4), (4, 3, 4)],
        {"1": 1, "2": 1},
    ),
    "upsampled": (
        lambda: [conv(), nn.Upsample(scale_factor=2), nn.ReLU()],
        [LINES, (5, 3, 4)],
        {"1": 1, "2": 1},
    ),
    "functional": (lambda: [conv(), Fn(torch.relu), nn.Dropout()], ALL_LINES, {"2": 1}),
    "transposed": (
        lambda: [conv(), Fn(lambda x: x.transpose(1, 2)), nn.GELU()],
        ALL_LINES,
        {"2": 2},
    ),
    "transposed in memory": (
        lambda: [conv(), Fn(lambda x: x.mT.contiguous()), nn.GELU(), Fn(torch.relu), nn.Dropout()],
        ALL_LINES,
        {"0": 1, "2": 2, "4": 2},
    ),
    "there and back": (
        lambda: [
            *(conv(), Fn(lambda x: x.transpose(1, 2)), nn.Linear(8, 8), nn.GELU()),
            *(Fn(lambda x: x.transpose(1, 2)), nn.ReLU()),
        ],
        ALL_LINES,
        {"2": 2, "3": 2, "5": 1},
    ),
    "dense over time": (
        lambda: [conv(), Fn(lambda x: x[..., :8]), nn.Linear(8, 5), nn.GELU()],
        ALL_LINES,
        {"2": 2, "3": 2},
    ),
    "residual": (
        lambda: [conv(16), Fn(lambda x: torch.relu(x * 2 + x.roll(1, 2))), nn.Dropout()],
        [(3, 3, 100), (3, 3, 16), (16, 3, 16)],
        {"2": 1},
    ),
    "in place": (
        lambda: [conv(), Fn(lambda x: x[..., 1:].add_(1).relu_().sub_(0.5)), nn.ReLU(inplace=True)],
        ALL_LINES,
        {"0": 1, "2": 1},
    ),
    "along channels": (
        lambda: [conv(), Fn(lambda x: torch.cat((x, -x), 1)), nn.ReLU()],
        [LINES, (5, 3, 16)],
        {"2": 1},
    ),
    "along time": (
        lambda: [conv(), Fn(lambda x: torch.cat((x[:, :, :4], -x[:, :, :4]), 2)), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "mean of a stack": (
        lambda: [conv(), Fn(lambda x: torch.stack((x, x.flip(2))).mean(0)), nn.Dropout()],
        ALL_LINES,
        {"2": 1},
    ),
    "centred": (
        lambda: [conv(), Fn(lambda x: x - x.mean(1, keepdim=True)), nn.Dropout()],
        ALL_LINES,
        {"2": 1},
    ),
    "chosen by condition": (
        lambda: [conv(), Fn(lambda x: torch.where(x > 1, x, x.clamp(-1)).cumsum(2)), nn.Tanh()],
        ALL_LINES,
        {"2": 1},
    ),
    "spectrum": (
        lambda: [conv(), Fn(lambda x: torch.fft.rfft(x, dim=2).real), nn.ReLU()],
        [LINES, (5, 3, 14)],
        {"2": 1},
    ),
    "halves": (lambda: [conv(16), Fn(pair), nn.ReLU()], ALL_LINES, {"2": 1}),
    "excited": (
        lambda: [conv(), SqueezeExcite(8), nn.ReLU()],
        ALL_LINES,
        {"1.relu": 1, "1.gate": 1, "1": 1, "2": 1},
    ),
    "contracted": (
        lambda: [conv(7), Fn(lambda x, w: torch.einsum("bct,cd->bdt", x, w), (7, 8)), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "mlp of tokens": (lambda: [conv(), TokenMlp(8)], ALL_LINES, {"1.mlp.1": 2, "1.drop": 1}),
    "attention": (
        lambda: [conv(), Fn(lambda x: x.mT), Attention(8, 2), nn.Dropout()],
        ALL_LINES,
        {"2.drop": 2, "3": 2},
    ),
    "own convolution": (
        lambda: [Fn(lambda x, w: functional.conv1d(x, w, padding=1), (8, 3, 3)), nn.ReLU()],
        ALL_LINES,
        {"1": 1},
    ),
    "own dense layer": (
        lambda: [Fn(lambda x, w: functional.linear(x.mT, w), (8, 3)), nn.GELU()],
        ALL_LINES,
        {"1": 2},
    ),
    "tokens": (
        lambda: [image(), Fn(lambda x: x.flatten(2).transpose(1, 2)), nn.Dropout()],
        [IMAGES, (5, 3, 4, 2), (8, 3, 2, 4)],
        {"2": 2},
    ),
    "flattened places": (
        lambda: [image(), Fn(lambda x: x.flatten(2)), nn.ReLU()],
        [IMAGES, (5, 3, 4, 2), (8, 3, 2, 4)],
        {"2": 1},
    ),
    "to channels last and back": (
        lambda: [
            *(image(), Fn(lambda x: x.permute(0, 2, 3, 1)), nn.GELU()),
            *(Fn(lambda x: x.permute(0, 3, 1, 2)), nn.ReLU()),
        ],
        ALL_IMAGES,
        {"2": 3, "4": 1},
    ),
    "interpolated": (
        lambda: [image(), Fn(lambda x: functional.interpolate(x, scale_factor=0.5)), nn.ReLU()],
        [IMAGES, (5, 3, 16, 16)],
        {"2": 1},
    ),
    "pixels shuffled": (
        lambda: [image(32), nn.PixelShuffle(2), nn.ReLU(), nn.PixelUnshuffle(2), nn.Tanh()],
        [IMAGES, (5, 3, 4, 4)],
        {"1": 1, "2": 1, "3": 1, "4": 1},
    ),
    "channels shuffled": (
        lambda: [image(), nn.ChannelShuffle(2), nn.ReLU(), Fn(shuffled), nn.Tanh()],
        ALL_IMAGES,
        {"1": 1, "2": 1, "4": 1},
    ),
    "unfolded and folded": (
        lambda: [image(2), nn.Unfold(2, stride=2), nn.ReLU(), nn.Fold((8, 8), 2, stride=2)],
        [(5, 3, 8, 8), (2, 3, 8, 8)],
        {"1": 1, "2": 1, "3": 1},
    ),
    "windows": (
        lambda: [Fn(lambda x: x.movedim(1, 3)), nn.Linear(3, 4), Fn(windows), nn.GELU()],
        [(5, 3, 6, 8), (4, 3, 4, 4)],
        {"1": 3, "3": 2},
    ),
    "gate of the last axis": (
        lambda: [Fn(lambda x: x.movedim(1, 3)), nn.Linear(3, 16), Fn(last_gate), nn.GELU()],
        ALL_IMAGES,
        {"1": 3, "3": 3},
    ),
    "mean by hand": (
        lambda: [image(), Fn(lambda x: x.mean((2, 3))), nn.Dropout()],
        ALL_IMAGES,
        {"2": 1},
    ),
    "maximum by hand": (
        lambda: [image(), Fn(lambda x: x.amax((2, 3)) + x.flatten(2).max(-1)[0]), nn.Dropout()],
        ALL_IMAGES,
        {"2": 1},
    ),
    "pooled and squeezed": (
        lambda: [
            image(),
            Fn(lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
            nn.Dropout(),
        ],
        ALL_IMAGES,
        {"2": 1},
    ),
    "norm that permutes": (
        lambda: [nn.Conv2d(3, 7, 3), LayerNorm2d(7), nn.GELU()],
        [(16, 3, 12, 10), (5, 3, 9, 9), (7, 3, 9, 9)],
        {"1": 1, "2": 1},
    ),
    "group norm that permutes": (
        lambda: [Fn(lambda x: x.movedim(1, 3)), nn.Linear(3, 8), LastGroupNorm(2, 8), nn.GELU()],
        ALL_IMAGES,
        {"2": 3, "3": 3},
    ),
    "pool by another name": (
        lambda: [nn.Conv1d(3, 7, 3, padding=1), GlobalMaxPool1d(), nn.Dropout()],
        [(32, 3, 10), (9, 3, 7), (7, 3, 7)],
        {"1": 1, "2": 1},
    ),
    "image pool by another name": (
        lambda: [image(), FooAvgPool2d(), nn.Dropout()],
        ALL_IMAGES,
        {"1": 1, "2": 1},
    ),
    "convolution by name only": (
        lambda: [Fn(lambda x: x.mT), Conv2d(3, 8), nn.Dropout()],
        ALL_LINES,
        {"1": 2, "2": 2},
    ),
    "dense by another name": (
        lambda: [Fn(lambda x: x.mT), Conv1D(8, 3), nn.Dropout()],
        ALL_LINES,
        {"1": 2, "2": 2},
    ),
    "class token": (
        lambda: [ClassToken(8, 7), nn.Dropout()],
        [(5, 3, 6, 4)],
        {"0.patches": 1, "0.drop": 2, "1": 2},
    ),
    "class token, as many tokens": (
        lambda: [ClassToken(7, 7), nn.Dropout()],
        [(5, 3, 6, 4), (7, 3, 4, 6)],
        {"0.patches": 1, "0.drop": 2, "1": 2},
    ),
    "recurrent": (
        lambda: [
            *(Fn(lambda x: x.mT), nn.GRU(3, 8, batch_first=True), Fn(lambda x: x[0].mT)),
            nn.ReLU(),
        ],
        ALL_LINES,
        {"3": 1},
    ),
}

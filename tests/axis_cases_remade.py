"""Small networks that take their data apart and put them together, with where their neurons lie."""

import torch
from axis_cases import ALL_IMAGES, ALL_LINES, EQUAL_LINES, LINES, Case, conv, image
from case_modules import Fn
from torch import nn
from torch.nn import functional


class CubeRoot(torch.autograd.Function):
    """An activation of one's own."""

    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        return x.sign() * x.abs().pow(1 / 3)

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        return grad


def padded_first(x: torch.Tensor) -> torch.Tensor:
    """(B, C, T) to (B, C, T + 2), written into zeros."""
    padded = x.new_zeros(x.shape[0], x.shape[1], x.shape[2] + 2)
    padded[:, :, 1:-1] = x
    return padded


def padded_last(x: torch.Tensor) -> torch.Tensor:
    """(B, C, T) to (B, T + 2, C), written into zeros."""
    padded = x.new_zeros(x.shape[0], x.shape[2] + 2, x.shape[1])
    padded[:, 1:-1] = x.transpose(1, 2)
    return padded


def written_last(x: torch.Tensor) -> torch.Tensor:
    """(B, C, T) to (B, T, C), written into what was as large."""
    out = torch.empty(x.shape[0], x.shape[2], x.shape[1])
    out.copy_(x.transpose(1, 2))
    return out


def by_groups(x: torch.Tensor) -> torch.Tensor:
    """A group normalization by hand."""
    groups = x.reshape(len(x), 2, -1)
    groups = (groups - groups.mean(-1, keepdim=True)) / groups.std(-1, keepdim=True)
    return groups.reshape(x.shape)


def modulated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A convolution with a weight of each sample's own, as StyleGAN and CondConv have it."""
    n, n_in, height, width = x.shape
    scale = 1 + x.mean((2, 3))
    weights = weight * scale.view(n, 1, n_in, 1, 1)
    out = functional.conv2d(
        x.reshape(1, n * n_in, height, width), weights.flatten(0, 1), padding=1, groups=n
    )
    return out.view(n, -1, height, width)


def spatial_gate(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """CBAM's: a gate for each place, of the mean and the maximum over the channels."""
    both = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
    return x * functional.conv2d(both, weight, padding=1).sigmoid()


def pooled_by_scores(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, T) to (B, C), places weighted by a score."""
    scores = (x.transpose(1, 2) @ weight).softmax(-1)
    return (x * scores[:, None]).sum(-1)


def routed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(B, C, T) to (B · T, C), by two experts that take turns."""
    tokens = x.transpose(1, 2).reshape(-1, x.shape[1])
    out = torch.zeros_like(tokens)
    for expert, w in enumerate(weight):
        mine = torch.arange(expert, len(tokens), 2)
        out.index_add_(0, mine, tokens[mine] @ w)
    return out


def sampled(x: torch.Tensor) -> torch.Tensor:
    """Each image turned upside down, by a grid."""
    theta = torch.tensor([[1.0, 0, 0], [0, -1, 0]]).expand(len(x), 2, 3)
    return functional.grid_sample(
        x, functional.affine_grid(theta, x.shape, align_corners=False), align_corners=False
    )


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary places: (B, T, C) to the same."""
    one, other = x.chunk(2, -1)
    angles = torch.arange(x.shape[1])[:, None] / torch.arange(1, 1 + one.shape[-1])
    return x * torch.cat((angles, angles), -1).cos() + torch.cat((-other, one), -1) * 0.5


class Frames(nn.Module):
    """A video, frame by frame: (B, T, 3, H, W) to (B, T, C, H, W)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, n, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


class Scores(nn.Module):
    """(B, C, T) to one score a place, softmax over the places."""

    def __init__(self, n: int, dense: bool) -> None:
        super().__init__()
        self.score = nn.Linear(n, 1) if dense else Fn(lambda x, w: (x @ w)[..., None], (n,))
        self.softmax, self.drop = nn.Softmax(-1), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.softmax(self.score(x.mT).squeeze(-1)) - 0.1)


REMADE: dict[str, Case] = {
    "own function": (lambda: [conv(), Fn(CubeRoot.apply), nn.Dropout()], ALL_LINES, {"2": 1}),
    "written into zeros": (lambda: [conv(), Fn(padded_first), nn.ReLU()], ALL_LINES, {"2": 1}),
    "written into zeros, last": (
        lambda: [conv(), Fn(padded_last), nn.ReLU()],
        [*ALL_LINES, (5, 3, 6)],
        {"2": 2},
    ),
    "written into memory, last": (
        lambda: [conv(), Fn(written_last), nn.ReLU()],
        ALL_LINES,
        {"2": 2},
    ),
    "groups by hand": (lambda: [conv(), Fn(by_groups), nn.ReLU()], ALL_LINES, {"2": 1}),
    "modulated": (
        lambda: [image(), Fn(modulated, (6, 8, 3, 3)), nn.ReLU()],
        [(4, 3, 10, 12), (5, 3, 6, 6), (6, 3, 6, 6)],
        {"2": 1},
    ),
    "spatial gate": (
        lambda: [image(), Fn(spatial_gate, (1, 2, 3, 3)), nn.ReLU()],
        ALL_IMAGES,
        {"2": 1},
    ),
    "pooled by scores": (
        lambda: [conv(), Fn(pooled_by_scores, (8,)), nn.Dropout()],
        ALL_LINES,
        {"2": 1},
    ),
    "routed": (lambda: [conv(), Fn(routed, (2, 8, 8)), nn.GELU()], ALL_LINES, {"2": 1}),
    "sampled by a grid": (lambda: [image(), Fn(sampled), nn.ReLU()], ALL_IMAGES, {"2": 1}),
    "rotary": (
        lambda: [conv(), Fn(lambda x: x.mT), Fn(rotated), nn.Dropout()],
        ALL_LINES,
        {"3": 2},
    ),
    "frames": (
        lambda: [Frames(8)],
        [(4, 5, 3, 9, 7), (3, 5, 3, 8, 8), (3, 8, 3, 8, 8), (8, 8, 3, 8, 8)],
        {"0.activation": 2, "0": 2},
    ),
    "frames joined in pairs": (
        lambda: [conv(), Fn(lambda x: x.mT.reshape(len(x), -1, 16)), nn.ReLU()],
        [(5, 3, 12), (5, 3, 16), (4, 3, 32)],
        {"2": 2},
    ),
    "scores of a dense layer": (
        lambda: [conv(), Scores(8, dense=True)],
        ALL_LINES,
        {"1.softmax": (), "1.drop": ()},
    ),
    "scores of a vector": (
        lambda: [conv(), Scores(8, dense=False)],
        ALL_LINES,
        {"1.drop": ()},
    ),
    "coordinates beside": (
        lambda: [
            *(image(7), Fn(lambda x: torch.cat((x, x.new_ones(len(x), 1, *x.shape[2:])), 1))),
            nn.ReLU(),
        ],
        ALL_IMAGES,
        {"2": 1},
    ),
    "sorted": (
        lambda: [conv(), Fn(lambda x: x.sort(2)[0] + x.topk(x.shape[2], 2)[0]), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "gathered": (
        lambda: [conv(), Fn(lambda x: x.gather(2, x.argsort(2)[..., :4])), nn.ReLU()],
        [LINES, EQUAL_LINES, (5, 3, 4)],
        {"2": 1},
    ),
    "sliding": (
        lambda: [conv(), Fn(lambda x: x.unfold(2, 8, 1).amax(-1)), nn.ReLU()],
        [LINES, (5, 3, 15), (8, 3, 15)],
        {"2": 1},
    ),
    "repeated": (
        lambda: [conv(), Fn(lambda x: x.repeat(1, 1, 2).repeat_interleave(2, 0)), nn.ReLU()],
        [LINES, (5, 3, 4)],
        {"2": 1},
    ),
    "pairs of places": (
        lambda: [conv(), Fn(lambda x: x[:, :, :, None] - x[:, :, None, :]), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "complex": (
        lambda: [conv(), Fn(lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2) * 2).real), nn.ReLU()],
        ALL_LINES,
        {"2": 1},
    ),
    "linear attention": (
        lambda: [
            *(conv(), Fn(lambda x: x.mT)),
            Fn(lambda x: functional.elu(x) @ (x.mT.softmax(-1) @ x)),
            nn.Dropout(),
        ],
        ALL_LINES,
        {"3": 2},
    ),
    "rows": (
        lambda: [conv(), Fn(lambda x: x.mT.reshape(-1, 8)), nn.GELU()],
        ALL_LINES,
        {"2": 1},
    ),
    "tokens kept": (
        lambda: [conv(), Fn(lambda x: x.mT[(x > 0).any(1)]), nn.GELU()],
        ALL_LINES,
        {"2": 1},
    ),
}

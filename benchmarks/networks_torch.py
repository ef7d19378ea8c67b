"""PyTorch networks for a validation pass, with the data they are given."""

import torch
from lenet5_torch import digits, trained_lenet5
from torch import nn
from torchvision_stand_in import import_timm


class Block(nn.Module):
    """Two 3×3 convolutions around which their input passes by (He et al., arXiv 1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm_1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv_2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_2 = nn.BatchNorm2d(outside)
        self.pass_by: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.pass_by = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `(N, outside, H / stride, W / stride)`."""
        y = self.relu(self.norm_1(self.conv_1(x)))
        return self.relu(self.norm_2(self.conv_2(y)) + self.pass_by(x))


def resnet18() -> nn.Sequential:
    """Return a ResNet-18 with random weights: `(N, 3, 64, 64)` to `(N, 10)`."""
    torch.manual_seed(0)
    blocks = []
    inside = 64
    for number, outside in enumerate((64, 128, 256, 512)):
        blocks += [
            Block(inside, outside, 2 if number else 1),
            Block(outside, outside, 1),
        ]
        inside = outside
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10),
    ).eval()  # fmt: skip


Batches = list[tuple[torch.Tensor, torch.Tensor]]


def lenet5(quick: bool) -> tuple[nn.Module, Batches]:
    """Return the trained LeNet-5 with its 5,000 digits in batches of 200."""
    images, labels = digits()
    n = 400 if quick else len(images)
    return trained_lenet5(), list(zip(images[:n].split(200), labels[:n].split(200), strict=True))


def resnet(quick: bool) -> tuple[nn.Module, Batches]:
    """Return the ResNet-18 with random images in batches of 50."""
    n = 20 if quick else 300
    drawn = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, 64, 64, generator=drawn)
    labels = torch.randint(0, 10, (n,), generator=drawn)
    return resnet18(), list(zip(images.split(50), labels.split(50), strict=True))


def of_timm(name: str, quick: bool) -> tuple[nn.Module, Batches]:
    """Return one of timm's networks with random weights, with random images in batches of 8."""
    n = 1 if quick else 24
    images = torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return untrained(name), batches_of(images, 8)


def untrained(name: str) -> nn.Module:
    """Return one of timm's networks with random weights, always the same."""
    torch.manual_seed(0)
    model: nn.Module = import_timm().create_model(name, pretrained=False).eval()
    return model


def batches_of(images: torch.Tensor, size: int) -> Batches:
    """Return batches of images that all have the label 0."""
    labels = torch.zeros(len(images), dtype=torch.long)
    return list(zip(images.split(size), labels.split(size), strict=True))


def smooth_images(n: int, side: int, seed: int = 1) -> torch.Tensor:
    """Return `(n, 3, side, side)` of noise whose amplitude falls with frequency, as in photos."""
    noise = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))
    frequency = torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side) ** 2
    amplitude = 1 / torch.clamp(frequency.sqrt(), min=1 / side)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(side, side))
    return images / images.std((1, 2, 3), keepdim=True)


TIMM = {
    "MobileNetV3-small": "mobilenetv3_small_100",
    "MobileOne-s0": "mobileone_s0",
    "RegNetX-002": "regnetx_002",
}
NETWORKS = {"LeNet-5": lenet5, "ResNet-18 at 64×64": resnet}

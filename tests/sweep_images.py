"""Networks for images of the sweep, from timm: families as different as can be, small inputs."""

from collections.abc import Callable
from typing import Any

import torch
from sweep_oracle import Inputs, Network
from torch import nn
from torchvision_stand_in import import_timm

BEHIND = "what a layer over the tokens gave goes through it"
TOKENS = "a layer over the tokens, of which there are as many as the image has patches"


def images(n: int, size: int) -> Inputs:
    generator = torch.Generator().manual_seed(n)
    return (torch.randn(n, 3, size, size, generator=generator),)


def timm(name: str, *, sized: bool = False, **options: Any) -> Callable[[int], nn.Module]:
    """How to build a network: `sized` ones are told the size of their images."""

    def build(size: int) -> nn.Module:
        torch.manual_seed(0)
        given = {**options, "img_size": size} if sized else options
        return import_timm().create_model(name, num_classes=5, **given)

    return build


def network(
    name: str, sizes: tuple[int, int] = (32, 64), varying: dict[str, str] | None = None, **how: Any
) -> Network:
    return Network(timm(name, **how), images, sizes, varying or {}, how.get("sized", False))


# What takes images of any size.
_ANY_SIZE = """
    resnet18 resnetv2_18 regnety_002 mobilenetv3_small_050 efficientnet_b0 convnext_atto
    convnextv2_atto poolformer_s12 densenet121 dpn48b hrnet_w18_small res2net50_14w_8s resnest14d
    skresnet18 inception_next_atto ghostnet_050 nf_regnet_b0 repvgg_a0 edgenext_xx_small pvt_v2_b0
    xcit_nano_12_p16_224 mobilevitv2_050 fastvit_t8 hgnetv2_b0 tf_efficientnet_cc_b0_4e
"""
SWIN = {"depths": (2, 1, 1), "embed_dim": 24, "num_heads": (3, 3, 3), "window_size": 4}

IMAGE_NETWORKS: dict[str, Network] = {
    **{name: network(name) for name in _ANY_SIZE.split()},
    "inception_v3": network("inception_v3", (96, 128)),
    "xception41": network("xception41"),
    "nfnet_l0": network("nfnet_l0"),
    "tresnet_m": network("tresnet_m"),
    "focalnet": network("focalnet_tiny_srf"),
    "davit": network("davit_tiny"),
    "mvitv2": network("mvitv2_tiny", (64, 96), sized=True),
    "convmixer": network("convmixer_768_32", (28, 56)),
    "vit": network("vit_tiny_patch16_224", sized=True, depth=2),
    "deit": network("deit_tiny_distilled_patch16_224", sized=True, depth=2),
    "swin": network("swin_tiny_patch4_window7_224", (64, 96), sized=True, **SWIN),
    "swinv2": network("swinv2_tiny_window8_256", (64, 96), sized=True, **SWIN),
    "mixer": network(
        "mixer_s32_224", (64, 96), {"*mlp_tokens*": TOKENS, "*.drop_path": BEHIND}, sized=True
    ),
    "gmlp": network("gmlp_ti16_224", (64, 96), {"*.gate.*": TOKENS}, sized=True),
    "resmlp": network(
        "resmlp_12_224", (64, 96), {"*.linear_tokens": TOKENS, "*.drop_path": BEHIND}, sized=True
    ),
    "coatnet": network("coatnet_pico_rw_224", (64, 128), sized=True),
    "maxvit": network("maxvit_pico_rw_256", (64, 128), sized=True),
    "levit": network("levit_128s", (64, 96), sized=True),
    "cait": network("cait_xxs24_224", sized=True, depth=2),
    "beit": network("beit_base_patch16_224", sized=True, depth=2, embed_dim=48, num_heads=3),
    "eva02": network("eva02_tiny_patch14_224", (28, 56), sized=True, depth=2),
    "volo": network("volo_d1_224", (64, 96), sized=True),
    "crossvit": network("crossvit_tiny_240", (120, 240), sized=True),
    "efficientformer": network("efficientformerv2_s0", (64, 96), sized=True),
    "sequencer": network("sequencer2d_s", (28, 56)),
}

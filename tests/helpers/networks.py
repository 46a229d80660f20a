"""The networks on which tests split backbones, with image sizes small enough for a CPU."""

from collections.abc import Iterable
from typing import Any

HIERARCHICAL = {
    "resnet32": 32,
    "resnet10": 64,
    "resnet18": 64,
    "resnet50": 64,
    "resnext50_32x4d": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_050": 64,
    "mobilenetv4_conv_small": 64,
    "densenet121": 64,
    "edgenext_xx_small": 64,
    "efficientvit_b0": 64,
    "pvt_v2_b0": 64,
    "poolformer_s12": 64,
    "repvgg_a0": 64,
    "mambaout_femto": 64,
    "tf_efficientnetv2_b0": 64,
    "swin_tiny_patch4_window7_224": 112,
    "swinv2_cr_tiny_ns_224": 224,
    "maxvit_tiny_tf_224": 224,
}
"""Name -> height and width of the images"""

PLAIN = {
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "vit_base_patch32_clip_224": 64,
    "vit_small_patch14_reg4_dinov2": 70,
    "vit_small_patch16_dinov3": 64,
    "eva02_tiny_patch14_224": 70,
    "mixer_s32_224": 224,
}

FAST = (
    *("resnet32", "resnet10", "regnety_002", "efficientnet_b0", "mobilenetv3_small_050"),
    *("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"),
)
"""The networks of the default tests, one of each kind; tests of the others are slow"""

UNSPLITTABLE = ("hrnet_w18_small", "hiera_tiny_224", "levit_128s", "beit_base_patch16_224")

SHRINKABLE = ("swin_", "vit_", "deit_", "eva")
"""Prefixes of networks whose constructors take the image size and the number of blocks"""


def options(name: str, size: int) -> dict[str, Any]:
    """Returns options of the constructor that depend on the image size."""
    if not name.startswith(SHRINKABLE):
        return {}
    # Fewer blocks than published: they are split in the same way.
    return {"image_size": size} | ({"depths": (1, 1, 2, 1)} if "swin" in name else {"depth": 4})


def slow_except(fast: Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """Returns values as parameters of a test; those that are not in ``fast`` are marked as slow."""
    import pytest  # here, because benchmarks import this module too

    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]

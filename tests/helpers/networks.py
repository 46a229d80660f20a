"""The networks over which the cut is tested, with input sizes small enough for a CPU."""

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
"""Name -> side of the images."""

PLAIN = {
    "vit_tiny_patch16_224": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "vit_base_patch32_clip_224": 64,
    "vit_small_patch14_reg4_dinov2": 70,
    "vit_small_patch16_dinov3": 64,
    "eva02_tiny_patch14_224": 70,
    "mixer_s32_224": 224,
}

SHRINKABLE = ("swin_", "vit_", "deit_", "eva")
"""Beginnings of the names of networks that are told the size of the images, and of how many blocks to consist."""

NOT_TO_BE_CUT = ("hrnet_w18_small", "hiera_tiny_224", "levit_128s", "beit_base_patch16_224")


def options(name: str, size: int) -> dict[str, Any]:
    """What the constructor needs to know of the input's size."""
    if not name.startswith(SHRINKABLE):
        return {}
    # Fewer blocks than published: the cut is the same.
    return {"image_size": size} | ({"depths": (1, 1, 2, 1)} if "swin" in name else {"depth": 4})

"""Swin transformers as in RIDE-Swin: with narrow last stages, or with an absolute position embedding."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import Tensor, nn

from longtail.utils.errors import InputError


def narrow_swin(network: SwinTransformer, widths: Sequence[int]) -> SwinTransformer:
    """Changes the widths of the stages of a Swin transformer; changed stages get new random weights.

    timm's constructor only supports widths that double from stage to stage. The down-sampling into a stage, which timm
    puts at the start of the stage, maps directly to the width of the stage: from C to 3C/2 for RIDE's three quarters.

    Args:
        network: it is changed in place.
        widths: channels of each stage.

    Raises:
        InputError: a width is not a multiple of the number of heads in its stage.
    """
    in_width = widths[0]
    for index, width in enumerate(widths):
        stage: SwinTransformerStage = network.layers[index]
        block: SwinTransformerBlock = stage.blocks[0]
        if width % block.attn.num_heads:
            raise InputError(f"width {width}: must be a multiple of the stage's {block.attn.num_heads} heads")
        if (in_width, width) != (stage.dim, block.dim):
            network.layers[index] = SwinTransformerStage(
                dim=in_width,
                out_dim=width,
                input_resolution=stage.input_resolution,
                depth=stage.depth,
                downsample=index > 0,
                num_heads=block.attn.num_heads,
                window_size=block.window_size,
                mlp_ratio=block.mlp_ratio,
                qkv_bias=block.attn.qkv.bias is not None,
                drop_path=[getattr(old.drop_path1, "drop_prob", 0.0) for old in stage.blocks],
                proj_drop=block.attn.proj_drop.p,
                attn_drop=block.attn.attn_drop.p,
            )
        in_width = width
    network.num_features = network.head_hidden_size = in_width
    network.norm = nn.LayerNorm(in_width, eps=network.norm.eps)
    network.init_weights()
    return network


class PositionedPatchEmbed(PatchEmbed):  # type: ignore[misc]
    """timm's patch embedding plus a learned absolute position embedding, which timm's Swin does not have.

    Args:
        arguments: of `timm.layers.PatchEmbed`.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, self.proj.out_channels))
        nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, D)."""
        patches: Tensor = super().forward(images)
        return patches + self.absolute_pos_embed.view(1, *patches.shape[1:])

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay."""
        return {"absolute_pos_embed"}

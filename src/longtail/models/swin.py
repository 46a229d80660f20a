"""RIDE's narrowed Swin: the last stages with fewer channels and as many heads."""

from collections.abc import Sequence

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock, SwinTransformerStage
from torch import nn

from longtail.utils.errors import InputError


def narrow_swin(network: SwinTransformer, widths: Sequence[int]) -> SwinTransformer:
    """Gives the stages of a Swin transformer other widths, one for each; those that change start afresh.

    timm's constructor only knows widths that double from stage to stage. The down-sampling into a stage, which timm
    keeps at the stage's beginning, goes to the stage's width directly: from C to 3C/2 for RIDE's three quarters.

    Raises:
        InputError: a width is no multiple of its stage's number of heads.
    """
    width = widths[0]
    for position, wanted in enumerate(widths):
        stage: SwinTransformerStage = network.layers[position]
        block: SwinTransformerBlock = stage.blocks[0]
        if wanted % block.attn.num_heads:
            raise InputError(f"width {wanted}: must be a multiple of the stage's {block.attn.num_heads} heads")
        if (width, wanted) != (stage.dim, block.dim):  # what enters it, and its own width
            network.layers[position] = SwinTransformerStage(
                dim=width,
                out_dim=wanted,
                input_resolution=stage.input_resolution,
                depth=stage.depth,
                downsample=position > 0,
                num_heads=block.attn.num_heads,
                window_size=block.window_size,
                mlp_ratio=block.mlp_ratio,
                qkv_bias=block.attn.qkv.bias is not None,
                drop_path=[_drop_prob(other.drop_path1) for other in stage.blocks],
                proj_drop=block.attn.proj_drop.p,
                attn_drop=block.attn.attn_drop.p,
            )
        width = wanted
    network.num_features = network.head_hidden_size = width
    network.norm = nn.LayerNorm(width, eps=network.norm.eps)
    network.init_weights()
    return network


def _drop_prob(layer: nn.Module) -> float:
    return getattr(layer, "drop_prob", 0.0)

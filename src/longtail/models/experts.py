"""The multi-expert classifier: one shared trunk, several branches with a head each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from longtail.errors import InputError
from longtail.models.backbones import Width, backbone
from longtail.models.cut import Pass, cut
from longtail.models.heads import CosineClassifier, linear_classifier


class ExpertOutput(NamedTuple):
    """What every expert says about a batch of B images: E experts, C classes, D features."""

    logits: Tensor
    """(B, E, C)"""
    features: Tensor
    """(B, E, D), pooled, as they enter the heads"""

    @property
    def ensemble(self) -> Tensor:
        """The ensemble's logits (B, C): the mean of the experts'."""
        return self.logits.mean(dim=1)


class MultiExpert(nn.Module):
    """``heads[e](neck(branches[e](trunk(images))))`` for every expert e.

    Args:
        trunk: images to shared feature maps.
        branches: an expert's own part, shared feature maps to features; E of them.
        heads: features (B, D) to logits (B, C); E of them.
        neck: what all experts' features go through at the end; nothing by default.
    """

    def __init__(
        self,
        trunk: nn.Module,
        branches: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        neck: nn.Module | None = None,
    ):
        super().__init__()
        assert len(branches) == len(heads) > 0
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.neck = neck or Pass()
        self.heads = nn.ModuleList(heads)

    @property
    def num_experts(self) -> int:
        """How many experts the model has."""
        return len(self.branches)

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in all parts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images: Tensor, experts: Sequence[int] | None = None) -> ExpertOutput:
        """Images (B, 3, H, W) -> logits (B, E, C) and features (B, E, D).

        Args:
            images: normalised images.
            experts: run only these experts, in this order; all by default.
        """
        shared = self.trunk(images)
        chosen = range(self.num_experts) if experts is None else experts
        features = [self.neck(self.branches[e](shared)) for e in chosen]
        logits = [self.heads[e](own) for e, own in zip(chosen, features, strict=True)]
        return ExpertOutput(torch.stack(logits, dim=1), torch.stack(features, dim=1))


def create_model(
    name: str,
    num_classes: int,
    num_experts: int = 3,
    *,
    width: Width = "narrow",
    head: Literal["cosine", "linear"] = "cosine",
    scale: float = 30.0,
    expert_stages: int | None = None,
    pretrained: bool | str | Path = False,
    image_size: int | None = None,
    **options: Any,
) -> MultiExpert:
    """Builds a freshly initialised multi-expert model.

    Args:
        name: the backbone: resnet20/32/44/56/110 for small images, or any hierarchical network or plain vision
            transformer of timm.
        num_classes: classes C.
        num_experts: experts E.
        width: channels of an expert's stages: ``"narrow"`` (RIDE's three quarters), ``"full"``, or the numbers.
        head: ``"cosine"`` or ``"linear"``.
        scale: what a cosine head multiplies its cosines by.
        expert_stages: how many of the last stages belong to each expert, see `longtail.models.cut.cut`.
        pretrained: trunk and all branches start from timm's published weights, or from those in a file.
        image_size: height and width of the images, for networks that must know it; their own by default.
        options: of the network's constructor in timm, such as ``drop_path_rate``.

    Raises:
        InputError: an argument is out of range or unknown.
    """
    if num_classes < 1 or num_experts < 1:
        raise InputError(f"num_classes is {num_classes} and num_experts {num_experts}; both must be at least 1")
    if head not in ("cosine", "linear"):
        raise InputError(f"head '{head}': 'cosine' or 'linear'")
    build = backbone(name, width, pretrained, image_size, **options)
    trunk, branches, neck, num_features = cut(build, num_experts, expert_stages, image_size)
    if head == "cosine":
        heads: list[nn.Module] = [CosineClassifier(num_features, num_classes, scale) for _ in branches]
    else:
        heads = [linear_classifier(num_features, num_classes) for _ in branches]
    return MultiExpert(trunk, branches, heads, neck)

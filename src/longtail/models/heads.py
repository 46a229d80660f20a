"""Classifiers on the features of an expert. Letters in shapes: B images, C classes, D features."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from longtail.models.resnet_cifar import CifarResNet
from longtail.runtime.precision import full_precision
from longtail.utils.choices import HeadKind


def classify(head: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits (B, C) and the features (B, D), both in the precision of the head, also under autocast.

    Heads cost little, and the margins of a loss are smaller than the precision of a logit of 30 in half precision.
    """
    weight: Tensor = head.weight  # type: ignore[assignment]
    features = features.to(weight.dtype)
    with full_precision(features):
        return head(features), features


def classify_each(heads: Iterable[nn.Module], features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the logits (B, E, C) of the features (B, E, D) of E experts, each by its own head, and the features."""
    outputs = [classify(head, inputs) for head, inputs in zip(heads, features.unbind(dim=1), strict=True)]
    logits, features = (torch.stack(part, dim=1) for part in zip(*outputs, strict=True))
    return logits, features


class CosineClassifier(nn.Module):
    """Logits ``scale * cos(feature, class weight)``, which do not depend on the lengths of the class weights.

    NormFace (Wang et al., 2017), equation 6; used with LDAM (Cao et al., 2019) and by RIDE.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float = 30.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(torch.empty(num_classes, num_features).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> logits (B, C)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def create_heads(
    num_experts: int,
    num_features: int,
    num_classes: int,
    head: HeadKind = "cosine",
    scale: float = 30.0,
) -> list[nn.Module]:
    """Returns a new head for each expert; ``scale`` is used by cosine heads."""
    return [
        CosineClassifier(num_features, num_classes, scale) if head == "cosine" else nn.Linear(num_features, num_classes)
        for _ in range(num_experts)
    ]


def initialise_like(head: nn.Module, trunk: nn.Module) -> None:
    """Draws the initial weights of a head as the trunk's network draws those of its linear layers.

    The original's CIFAR networks: Kaiming-normal (fan-in). Transformers: truncated normal with standard deviation 0.02,
    and zero biases. All other networks: torch's default. Large initial weights learn slowly, even if only their
    direction matters.
    """
    weight: Tensor = head.weight  # type: ignore[assignment]
    if isinstance(trunk, SwinTransformer | VisionTransformer | Eva):
        nn.init.trunc_normal_(weight, std=0.02)
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.bias)
    elif isinstance(trunk, CifarResNet) and isinstance(head, nn.Linear):
        nn.init.kaiming_normal_(weight)

"""Classifiers on top of an expert's features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineClassifier(nn.Module):
    """Logits ``scale * cos(feature, class weight)``: the length of a frequent class's weights gives it no edge.

    Wang et al., NormFace (2017), eq. 6; used with LDAM (Cao et al., 2019) and by RIDE.
    """

    def __init__(self, num_features: int, num_classes: int, scale: float = 30.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(torch.empty(num_classes, num_features).uniform_(-1, 1)))

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> logits (B, C)."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))


def linear_classifier(num_features: int, num_classes: int) -> nn.Linear:
    """A linear layer with bias, Kaiming-normal (fan-in) weights as the original CIFAR networks have it."""
    head = nn.Linear(num_features, num_classes)
    nn.init.kaiming_normal_(head.weight)
    return head

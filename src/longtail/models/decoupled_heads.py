"""Heads for decoupled training, on features that are already trained: Decoupling (Kang et al., 2020), section 4.

Letters in shapes: N images, E experts, C classes, D features.
"""

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.heads import CosineClassifier
from longtail.models.initialisation import skip_init
from longtail.utils.choices import Distance
from longtail.utils.errors import InputError, check_choice


def tau_normalised(head: nn.Module, tau: float) -> nn.Linear:
    """Returns a linear head with rows ``w / ||w||^tau`` and bias 0, as in the original code.

    The lengths of the rows grow with the class counts; tau-normalisation removes this effect.

    Args:
        head: linear; it is not changed.
        tau: 0 changes only the bias, 1 gives all rows length 1. The paper selects it on validation images.

    Raises:
        InputError: the head is not linear.
    """
    if not isinstance(head, nn.Linear):
        raise InputError(
            "tau-normalisation needs a linear head; it changes nothing about a cosine head, which ignores the lengths "
            "of its class weights"
        )
    weight = head.weight.detach()
    lengths = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return _linear(weight / lengths**tau, torch.zeros_like(weight[:, 0]))


class ScaledClassifier(nn.Module):
    """Learnable weight scaling: a frozen head, and one trainable factor per class.

    Its logits are ``scales[k] * logit[k]``. Train the factors with cross-entropy and class-balanced sampling. As in the
    original code, the factor multiplies the bias too.

    It replaces a head of a model in memory. To save the model, convert it with `to_linear`. A scaled cosine head cannot
    be converted: a cosine head ignores the lengths of its weights, and a linear head would multiply the logits of an
    image by the length of its feature, which changes the ensemble. Retrain a cosine head instead.

    Args:
        head: linear or cosine; it is frozen.
    """

    def __init__(self, head: nn.Linear | CosineClassifier):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.scales = nn.Parameter(torch.ones_like(head.weight[:, 0]))

    @property
    def weight(self) -> Tensor:
        """Weight of the frozen head: (C, D)."""
        return self.head.weight

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> logits (B, C)."""
        logits: Tensor = self.head(features)
        return self.scales * logits

    def to_linear(self) -> nn.Linear:
        """Returns a linear head with the same logits.

        Raises:
            InputError: the frozen head is a cosine head.
        """
        if not isinstance(self.head, nn.Linear):
            raise InputError(
                "learnable weight scaling needs a linear head; the factors cannot become part of a cosine head, which "
                "ignores the lengths of its class weights"
            )
        scales, bias = self.scales.detach(), self.head.bias
        weight = scales[:, None] * self.head.weight
        return _linear(weight, torch.zeros_like(scales) if bias is None else scales * bias)


def nearest_mean_heads(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    distance: Distance = "cosine",
    scale: float = 30.0,
) -> list[nn.Module]:
    """Returns a head per expert that predicts the class with the nearest mean feature (nearest class mean, NCM).

    cosine
        A cosine head. Features and class means are normalised to length 1.
    centred cosine
        The same, with the mean of all images as origin ("CL2N" in the original code). The head is linear: its logits
        are the cosines times the length of the image's centred feature. The prediction of each expert is the same as
        with cosines, but in an ensemble an expert has more weight on images far from its centre.
    euclidean
        A linear head ``2 mean . x - ||mean||^2``. This is minus the squared distance plus ``||x||^2``, which is the
        same for all classes.

    Args:
        features: inputs of the heads for the training images, (N, E, D).
        labels: (N,).
        num_classes: C.
        distance: one of the above.
        scale: of the cosines.

    Raises:
        InputError: a class has no images, or the distance is unknown.
    """
    check_choice("distance", distance, get_args(Distance))
    experts = features.detach().unbind(dim=1)
    return [_nearest_mean_head(inputs, labels, num_classes, distance, scale) for inputs in experts]


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the mean feature of each class, computed in float64: (N, D) and (N,) -> (C, D).

    Raises:
        InputError: a class has no images.
    """
    counts = labels.bincount(minlength=num_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise InputError(
            f"{len(missing)} of {num_classes} classes have no images and no mean; the first is {missing[0]}"
        )
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    return (sums / counts[:, None]).to(features.dtype)


def _nearest_mean_head(
    features: Tensor, labels: Tensor, num_classes: int, distance: Distance, scale: float
) -> nn.Module:
    if distance == "euclidean":
        means = class_means(features, labels, num_classes)
        return _linear(2 * means, -means.square().sum(dim=1))
    centre = features.double().mean(dim=0).to(features.dtype) if distance == "centred cosine" else None
    directions = F.normalize(features if centre is None else features - centre)
    weight = F.normalize(class_means(directions, labels, num_classes))
    if centre is not None:
        return _linear(scale * weight, -scale * (weight @ centre))
    with skip_init():
        head = CosineClassifier(features.shape[1], num_classes, scale).to(features)
    head.weight.data.copy_(weight)
    return head


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Returns a linear head with the given weight (C, D) and bias (C,)."""
    with skip_init():
        head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    head.weight.data.copy_(weight)
    head.bias.data.copy_(bias)
    return head

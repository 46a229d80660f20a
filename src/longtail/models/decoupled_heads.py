"""Other classifiers on features that are learned already: the second half of decoupled training.

All of Decoupling (Kang et al., 2020), section 4. Letters in shapes: N images, E experts, C classes, D features.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.heads import CosineClassifier
from longtail.models.initialisation import skip_init
from longtail.utils.errors import InputError, did_you_mean

Distance = Literal["cosine", "centred cosine", "euclidean"]
DISTANCES: tuple[Distance, ...] = ("cosine", "centred cosine", "euclidean")


def tau_normalised(head: nn.Module, tau: float) -> nn.Linear:
    """A linear head without what its weights' lengths say of how common a class was: rows ``w / ||w||^tau``, bias 0.

    The original code leaves the bias out.

    Args:
        head: linear; it is left as it is.
        tau: 0 changes the bias only, 1 makes all rows of length 1; the paper chooses it on validation images.

    Raises:
        InputError: the head is a cosine classifier.
    """
    if not isinstance(head, nn.Linear):
        raise InputError(
            "tau-normalisation changes nothing about a cosine head, whose class weights have no length; it is for "
            "linear heads"
        )
    weight = head.weight.detach()
    lengths = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return _linear(weight / lengths**tau, torch.zeros_like(weight[:, 0]))


class ScaledClassifier(nn.Module):
    """Learnable weight scaling: a frozen head, and one factor per class, which alone is trained.

    ``scales[k] * logit[k]``, to be trained with cross-entropy on class-balanced draws. As in the original code, the
    factor multiplies the bias too.

    It can stand in for the head while a model is in memory. A linear head takes the factors in, see `fuse_batch_norms`. A cosine
    head cannot, as it looks at the directions of its weights only: factors then make logits that no cosine classifier
    yields, and to give them to a linear one would multiply an image's logits by the length of its feature, which
    changes the ensemble. For a cosine head that is to be saved, train its directions anew instead.

    Args:
        head: linear or cosine; it is frozen.
    """

    def __init__(self, head: nn.Linear | CosineClassifier):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.scales = nn.Parameter(torch.ones_like(head.weight[:, 0]))

    @property
    def weight(self) -> Tensor:
        """The frozen head's (C, D)."""
        return self.head.weight

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> logits (B, C)."""
        logits: Tensor = self.head(features)
        return self.scales * logits

    def fuse_batch_norms(self) -> nn.Linear:
        """An ordinary linear head with the same logits.

        Raises:
            InputError: the head is a cosine classifier.
        """
        if not isinstance(self.head, nn.Linear):
            raise InputError(
                "a cosine head cannot take in learned scales, as its class weights have no length; learnable weight "
                "scaling is for linear heads"
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
    """Heads that answer with the class whose mean feature is nearest (NCM): one for each expert.

    cosine
        By angle, a cosine head. Features are brought to unit length, and so are their class means.
    centred cosine
        The same with the mean of all images as origin ("CL2N" in the original code). It is a linear head, whose logits
        are the cosines times the length of an image's centred feature: each expert answers with the same class, while
        in an ensemble an expert weighs more on images far from its centre.
    euclidean
        By distance, a linear head ``2 mean . x - ||mean||^2``: minus the squared distance but for ``||x||^2``, which
        is the same for all classes. A centre would change nothing.

    Args:
        features: of training images, as they enter the heads (N, E, D).
        labels: (N,).
        num_classes: C.
        distance: one of the above.
        scale: of the cosines.

    Raises:
        InputError: a class has no images, or the distance is unknown.
    """
    if distance not in DISTANCES:
        raise InputError(f"distance '{distance}': one of {', '.join(DISTANCES)}{did_you_mean(distance, DISTANCES)}")
    return [_nearest_mean(own, labels, num_classes, distance, scale) for own in features.detach().unbind(dim=1)]


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of each class: (N, D) and (N,) -> (C, D), as exact as in float64.

    Raises:
        InputError: a class has no images.
    """
    counts = labels.bincount(minlength=num_classes)
    if missing := (counts == 0).nonzero().flatten().tolist():
        raise InputError(
            f"{len(missing)} of {num_classes} classes have no images to take a mean of; first {missing[0]}"
        )
    sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, device=features.device)
    sums.index_add_(0, labels, features.double())
    return (sums / counts[:, None]).to(features.dtype)


def _nearest_mean(features: Tensor, labels: Tensor, num_classes: int, distance: Distance, scale: float) -> nn.Module:
    """One expert's head, from its features (N, D)."""
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
    """A linear head that holds (C, D) and (C,)."""
    with skip_init():
        head = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    head.weight.data.copy_(weight)
    head.bias.data.copy_(bias)
    return head

"""Targets and loss of the router. Letters in shapes: B images, E experts, C classes."""

import torch.nn.functional as F
from torch import Tensor

from longtail.utils.choices import Average
from longtail.utils.ensembles import partial_ensembles


def router_targets(expert_logits: Tensor, labels: Tensor, average: Average = "logits") -> Tensor:
    """Returns whether an image needs another expert after each expert except the last: 0 or 1, (B, E - 1).

    1 if the ensemble of the experts so far is wrong, and the ensemble of some larger number of experts is correct.
    RIDE (Wang et al., 2021), section 3; the original code averages logits.

    Args:
        expert_logits: (B, E, C).
        labels: (B,).
        average: what the ensembles average.
    """
    correct = partial_ensembles(expert_logits, average).argmax(dim=2) == labels[:, None]
    # From the back: whether the ensemble of this number of experts or of a larger one is correct.
    correct_later = correct[:, 1:].flip(1).long().cummax(dim=1).values.flip(1).bool()
    return (~correct[:, :-1] & correct_later).to(expert_logits.dtype)


def router_loss(router_logits: Tensor, targets: Tensor, positive_weight: float = 100.0) -> Tensor:
    """Binary cross-entropy, averaged over images and steps: scalar. RIDE (Wang et al., 2021), section 3.

    Args:
        router_logits: (B, E - 1), see `longtail.models.router.Router`.
        targets: (B, E - 1), see `router_targets`.
        positive_weight: weight of targets that are 1; they are rare. Targets that are 0 have weight 1.
    """
    weight = router_logits.new_full((), positive_weight)
    return F.binary_cross_entropy_with_logits(router_logits, targets, pos_weight=weight)

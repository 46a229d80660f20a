"""What a router is trained for: which images a later expert will get right."""

import torch.nn.functional as F
from torch import Tensor

from longtail.utils.ensembles import Average, partial_ensembles


def router_targets(expert_logits: Tensor, labels: Tensor, average: Average = "logits") -> Tensor:
    """Whether to go on after each expert but the last: (B, E, C) and (B,) -> 0 or 1, (B, E - 1).

    1 where the ensemble so far is wrong, and that of some later number of experts is right.
    RIDE (Wang et al., 2021), section 3; the original code, which averages logits.
    """
    right = partial_ensembles(expert_logits, average).argmax(dim=2) == labels[:, None]
    # From the back: whether any of the experts from here on leads to the right class.
    any_later = right[:, 1:].flip(1).long().cummax(dim=1).values.flip(1).bool()
    return (~right[:, :-1] & any_later).to(expert_logits.dtype)


def router_loss(router_logits: Tensor, targets: Tensor, positive_weight: float = 100.0) -> Tensor:
    """Binary cross-entropy, averaged over images and steps: scalar.

    Images that gain by going on are few, so each of them counts as many. RIDE (Wang et al., 2021), section 3.

    Args:
        router_logits: (B, E - 1), as `longtail.models.router.Router` yields them.
        targets: (B, E - 1), see `router_targets`.
        positive_weight: what an image that is to go on counts, against 1 of one that is to stop.
    """
    weight = router_logits.new_full((), positive_weight)
    return F.binary_cross_entropy_with_logits(router_logits, targets, pos_weight=weight)

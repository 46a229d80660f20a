"""RIDE (Wang et al., 2021): LDAM and a reward for diversity. Letters in shapes: B images, E experts, C classes."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import register
from longtail.losses.class_counts import class_temperatures
from longtail.losses.ldam import LDAMLoss


def divergence(expert_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """KL(ensemble || expert), summed over experts and averaged over images, times the mean temperature squared: scalar.

    The ensemble is a constant: gradients flow only through the experts. Wang et al., 2021, section 3.

    Args:
        expert_logits: (B, E, C).
        temperature: a number, or one number per class (C,).
    """
    mean_temperature = temperature.mean() if isinstance(temperature, Tensor) else temperature
    experts = F.log_softmax(expert_logits / temperature, dim=2)
    ensemble = F.log_softmax(expert_logits.detach().mean(dim=1, keepdim=True) / temperature, dim=2)
    total = F.kl_div(experts, ensemble.expand_as(experts), reduction="sum", log_target=True)
    return mean_temperature**2 * total / len(expert_logits)


@register("ride")
class RIDELoss(LDAMLoss):
    """LDAM-DRW of each expert plus a reward for diversity: RIDE (Wang et al., 2021), section 3.

    Args:
        class_counts: training images of each class, C numbers.
        diversity_factor: weight of `divergence`; negative values drive experts apart.
        diversity_mean: divide the divergence by the number of experts, as RIDE-Swin does; RIDE sums over experts.
        diversity_temperature: temperature of the divergence.
        temperature_spread: how much the temperature depends on the class once class weights are used, see
            `class_temperatures`.
        max_margin: see `LDAMLoss`.
        scale: of the logits.
        reweight_after: see `Criterion`.
        reweight_beta: see `Criterion`.
        collaborative: see `Criterion`.
    """

    temperatures: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        diversity_factor: float = -0.45,
        diversity_mean: bool = False,
        diversity_temperature: float = 1.0,
        temperature_spread: float = 0.05,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__(
            class_counts,
            max_margin=max_margin,
            scale=scale,
            reweight_after=reweight_after,
            reweight_beta=reweight_beta,
            collaborative=collaborative,
        )
        self.diversity_factor = diversity_factor
        self.diversity_mean = diversity_mean
        self.diversity_temperature = diversity_temperature
        temperatures = diversity_temperature * class_temperatures(class_counts, temperature_spread)
        self.register_buffer("temperatures", temperatures, persistent=False)

    def regularizer(self, expert_logits: Tensor, epoch: int) -> Tensor | None:
        """The reward for diversity."""
        if self.diversity_factor == 0:
            return None
        factor = self.diversity_factor / expert_logits.shape[1] if self.diversity_mean else self.diversity_factor
        temperature = self.temperatures if self.is_reweighted(epoch) else self.diversity_temperature
        return factor * divergence(expert_logits, temperature)

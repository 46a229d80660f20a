"""Logit adjustment: balanced softmax, BalPoE and SADE. Letters in shapes: B images, E experts, C classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.losses.base import Criterion, register
from longtail.losses.class_counts import inverse_log_prior, log_prior


def adjust_logits(expert_logits: Tensor, log_prior: Tensor, tau: Tensor | float = 1.0) -> Tensor:
    """Adds ``tau`` times the log prior to the logits: (B, E, C) -> (B, E, C).

    Inside the loss, the adjusted logits fit the training data, so the logits themselves fit the training data with the
    prior to the power 1 - tau. With ``tau=0`` they fit the long tail, with 1 balanced classes (balanced softmax: Ren
    et al., 2020, equation 3), above 1 an inverted tail. Any ``tau``: logit adjustment (Menon et al., 2021, equation
    10). One ``tau`` per expert: BalPoE (Aimar et al., 2023), whose lambda is 1 - tau; the mean logits fit balanced
    classes if the mean of ``tau`` is 1.

    With ``-tau``, on logits that were trained without adjustment: post-hoc adjustment (Menon et al., 2021, equation 9).

    Args:
        expert_logits: (B, E, C), or any (..., C) if ``tau`` is a number.
        log_prior: (C,), see `longtail.losses.log_prior`.
        tau: a number, or one number per expert (E,).

    Example:
        Post-hoc adjustment of logits that favour the common class:

        >>> logits, prior = torch.tensor([[2.0, 1.0]]), torch.tensor([0.9, 0.1]).log()
        >>> adjust_logits(logits, prior, -1.0).argmax(dim=1)
        tensor([1])
    """
    return expert_logits + (tau[:, None] * log_prior if isinstance(tau, Tensor) else tau * log_prior)


@register("logit_adjustment")
class LogitAdjustedLoss(Criterion):
    """Cross-entropy of adjusted logits, see `adjust_logits`.

    The default is balanced softmax. BalPoE is ``prior_exponents=(0, 1, 2)``. SADE (Zhang et al., 2022) is
    ``prior_exponents=(0, 1, 1), inverse_exponents=(0, 0, -2)``.

    Args:
        class_counts: training images of each class, C numbers.
        prior_exponents: factors of the log prior, one number or one per expert.
        inverse_exponents: factors of the inverse log prior, one number or one per expert; see `inverse_log_prior`.
        reweight_after: see `Criterion`.
        reweight_beta: see `Criterion`.
        collaborative: see `Criterion`.
    """

    log_prior: Tensor
    inverse_log_prior: Tensor
    prior_exponents: Tensor
    inverse_exponents: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        prior_exponents: Sequence[float] = (1.0,),
        inverse_exponents: Sequence[float] = (0.0,),
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__(
            class_counts, reweight_after=reweight_after, reweight_beta=reweight_beta, collaborative=collaborative
        )
        for name, constant in {
            "log_prior": log_prior(class_counts),
            "inverse_log_prior": inverse_log_prior(class_counts),
            "prior_exponents": torch.tensor(prior_exponents, dtype=torch.float32),
            "inverse_exponents": torch.tensor(inverse_exponents, dtype=torch.float32),
        }.items():
            self.register_buffer(name, constant, persistent=False)

    def adjust(self, expert_logits: Tensor, labels: Tensor) -> Tensor:
        """Adds the priors."""
        adjusted = adjust_logits(expert_logits, self.log_prior, self.prior_exponents)
        return adjust_logits(adjusted, self.inverse_log_prior, self.inverse_exponents)

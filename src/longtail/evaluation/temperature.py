"""Temperature scaling: one number by which logits are divided, so that probabilities match accuracies.

Guo et al. (2017), section 4.2. Letters in shapes: N images, C classes.
"""

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from longtail.evaluation.metrics import BLOCK
from longtail.evaluation.outputs import ModelOutputs
from longtail.evaluation.routing import routed_logits
from longtail.models.router import experts_used
from longtail.utils.ensembles import ensemble

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-4, 1e4


def predicted_logits(outputs: ModelOutputs, threshold: float | None = None) -> Tensor:
    """Returns the logits of the model's predictions: (N, C).

    Args:
        outputs: of the model for N images.
        threshold: of its router; None: all experts run.
    """
    if threshold is None:
        return torch.cat([ensemble(block, outputs.average) for block in torch.split(outputs.logits, BLOCK)])
    assert outputs.router_logits is not None
    return torch.cat(list(routed_logits(outputs, experts_used(outputs.router_logits, threshold))))


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Returns the temperature with the lowest mean negative log-likelihood of ``softmax(logits / temperature)``.

    Args:
        logits: (N, C). If the ensemble averages probabilities, these are the logarithms of the averages: the scaled
            probabilities are proportional to the averages to the power of ``1 / temperature``.
        labels: (N,).

    Returns:
        None if there is no minimum from `MIN_TEMPERATURE` to `MAX_TEMPERATURE`: all images are classified correctly,
        the logits are no better than chance, or they are not finite.
    """

    def slope(log_inverse: float) -> float:
        """Derivative of the sum by the inverse temperature. It increases, because the sum is convex in it."""
        total, inverse = 0.0, math.exp(log_inverse)
        for block, block_labels in zip(torch.split(logits, BLOCK), torch.split(labels, BLOCK), strict=True):
            # Relative to the true class, whose term is then exactly 0: rounding cannot change the sign of the sum.
            gaps = block.double() - block.double().gather(1, block_labels[:, None])
            total += float((gaps * (inverse * gaps).softmax(dim=1)).sum())
        return total

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    return math.exp(-brentq(slope, low, high)) if slope(low) < 0 < slope(high) else None

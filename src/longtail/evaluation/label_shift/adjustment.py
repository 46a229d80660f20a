"""Adjustment of expert logits to class shares that differ from those of training.

Pure functions of expert logits. Letters in shapes: N images, E experts, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses import adjust_logits, inverse_log_prior, log_prior
from longtail.runtime.seed import generator
from longtail.utils.choices import Average
from longtail.utils.ensembles import weighted_ensemble


def learned_log_prior(
    class_counts: Sequence[int],
    prior_exponents: Sequence[float] = (0.0,),
    inverse_exponents: Sequence[float] = (0.0,),
    class_weights: Tensor | None = None,
) -> Tensor:
    """Returns the log class shares that experts assume, as a result of their loss: (E, C) or (1, C).

    Cross-entropy with class weights w and training prior pi fits ``w * pi``. A logit-adjusted loss fits it after adding
    ``tau log pi + tau' log pi'``, so the logits alone assume ``log pi + log w - tau log pi - tau' log pi'``. By default
    this is the training prior. Balanced softmax (tau = 1) assumes that all classes are equally common.

    For losses with margins this is an approximation, because the outputs of their experts are not probabilities.

    Args:
        class_counts: training images of each class, C numbers.
        prior_exponents: tau, see `longtail.losses.LogitAdjustedLoss`; one number, or one for each expert.
        inverse_exponents: tau', one number, or one for each expert.
        class_weights: weights of the loss at the end of training (C,), if any.
    """
    prior = log_prior(class_counts)
    learned = prior if class_weights is None else prior + class_weights.log()
    learned = adjust_logits(learned[None, None], prior, -torch.tensor(prior_exponents))
    learned = adjust_logits(learned, inverse_log_prior(class_counts), -torch.tensor(inverse_exponents))
    return learned[0]


def adjust_to_prior(expert_logits: Tensor, learned: Tensor, test_log_prior: Tensor) -> Tensor:
    """Adjusts expert logits to known class shares of the test images: (N, E, C) -> (N, E, C).

    By Bayes' rule, if the experts are calibrated for the class shares that they assume. This is the post-compensated
    softmax of LADE (Hong et al., 2021). For equally common classes it is logit adjustment (Menon et al., 2021), eq. 9.

    Args:
        expert_logits: (N, E, C).
        learned: (E, C) or (1, C), see `learned_log_prior`.
        test_log_prior: (C,), such as ``log_prior`` of counts; 0 for classes that are equally common.
    """
    return adjust_logits(adjust_logits(expert_logits, learned, -1.0), test_log_prior)


def agreement(first: Tensor, second: Tensor, weights: Tensor, average: Average = "logits") -> Tensor:
    """Mean cosine similarity between a weighted ensemble's probabilities for two views of each image: scalar.

    SADE (Zhang et al., 2022), section 4.2.

    Args:
        first: expert logits of the first view, (N, E, C).
        second: expert logits of the second view, (N, E, C).
        weights: of the experts (E,); their sum is 1.
        average: how the ensemble averages the experts.
    """
    p, q = (weighted_ensemble(logits, weights, average).softmax(dim=1) for logits in (first, second))
    return F.cosine_similarity(p, q, dim=1, eps=1e-6).mean()


@dataclass(frozen=True)
class AggregationSettings:
    """How `aggregation_weights` trains. The defaults are SADE's for CIFAR.

    SADE's learning rate is 0.025 for ImageNet and 0.2 for iNaturalist, there with a weight decay of 2e-4.
    """

    epochs: int = 5
    """Maximum number of epochs. Few images make few steps, which leave the weights nearly equal: use more epochs."""

    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9

    weight_decay: float = 5e-4
    """It draws the weights towards each other"""

    min_weight: float = 0.045
    """Training stops after an epoch with a smaller weight. SADE stops below 0.05 after rounding to hundredths."""

    seed: int = 0
    """Of the batches"""


@torch.inference_mode(mode=False)  # gradients are needed, even if the caller disables them
def aggregation_weights(
    first: Tensor, second: Tensor, average: Average = "logits", settings: AggregationSettings | None = None
) -> Tensor:
    """Returns expert weights for test images with unknown class shares: (E,), sum 1.

    An expert that is good at a class predicts the same for two views of its images. The weights maximise the
    `agreement` of the ensemble: test-time self-supervised aggregation, SADE (Zhang et al., 2022), section 4.2. As
    published, they are the softmax of parameters that start equal, trained with SGD and Nesterov momentum on shuffled
    batches. SADE augments the images anew in each epoch; here the two views are fixed.

    Args:
        first: expert logits of one augmented view of each image, (N, E, C).
        second: expert logits of another view, (N, E, C).
        average: how the ensemble averages the experts; SADE averages logits.
        settings: of the training.
    """
    num_images, num_experts, _ = first.shape
    settings = settings or AggregationSettings()
    scores = torch.full((num_experts,), 1 / num_experts, device=first.device, dtype=first.dtype, requires_grad=True)
    optimizer = torch.optim.SGD(
        [scores], settings.learning_rate, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(num_images, generator=generator(settings.seed, epoch)).to(first.device)
        for batch in torch.split(order, settings.batch_size):
            loss = -agreement(first[batch], second[batch], scores.softmax(dim=0), average)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if scores.detach().softmax(dim=0).min() < settings.min_weight:  # one synchronisation per epoch
            break
    return scores.detach().softmax(dim=0)

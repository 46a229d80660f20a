"""What to make of experts' answers where classes are not as common as the experts take them to be.

Pure functions of what the experts said. Letters in shapes: N images, E experts, C classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses import adjust_logits, inverse_log_prior, log_prior
from longtail.runtime.seed import generator
from longtail.utils.ensembles import Average, weighted_ensemble


def learned_log_prior(
    class_counts: Sequence[int],
    prior_exponents: Sequence[float] = (0.0,),
    inverse_exponents: Sequence[float] = (0.0,),
    class_weights: Tensor | None = None,
) -> Tensor:
    """How common experts take each class to be, by the loss that they were trained with: (E, C) or (1, C).

    Cross-entropy of logits to which something was added, with weights w and training prior pi, fits ``w * pi``; what
    was added is not in the logits: ``log pi + log w - tau log pi - tau' log pi'``. By default that is the training
    prior; balanced softmax takes all classes to be equally common (0, as its exponent is 1).

    Of losses with margins it is an approximation: they keep the experts' answers from being probabilities.

    Args:
        class_counts: training images of each class, C numbers.
        prior_exponents: tau, see `longtail.losses.LogitAdjustedLoss`; one, or one for each expert.
        inverse_exponents: tau', likewise.
        class_weights: of the loss at the end of training (C,), if it had any.
    """
    prior = log_prior(class_counts)
    learned = prior if class_weights is None else prior + class_weights.log()
    learned = adjust_logits(learned[None, None], prior, -torch.tensor(prior_exponents))
    learned = adjust_logits(learned, inverse_log_prior(class_counts), -torch.tensor(inverse_exponents))
    return learned[0]


def adjust_to_prior(expert_logits: Tensor, learned: Tensor, test_log_prior: Tensor) -> Tensor:
    """Experts' answers for images among which each class is as common as is known: (N, E, C) -> (N, E, C).

    By Bayes' rule, if they are right where classes are as common as they learned: post-compensated softmax of LADE
    (Hong et al., 2021), which for balanced classes is logit adjustment (Menon et al., 2021), equation 9.

    Args:
        expert_logits: (N, E, C).
        learned: (E, C) or (1, C), see `learned_log_prior`.
        test_log_prior: (C,), such as ``log_prior`` of counts; 0 for classes that are equally common.
    """
    return adjust_logits(adjust_logits(expert_logits, learned, -1.0), test_log_prior)


def agreement(first: Tensor, second: Tensor, weights: Tensor, average: Average = "logits") -> Tensor:
    """Mean cosine of the probabilities that a weighted ensemble gives two views of each image: scalar.

    SADE (Zhang et al., 2022), section 4.2.

    Args:
        first: what the experts say of one view, logits (N, E, C).
        second: of the other.
        weights: (E,), which sum to 1.
        average: what is weighted.
    """
    one, other = (weighted_ensemble(logits, weights, average).softmax(dim=1) for logits in (first, second))
    return F.cosine_similarity(one, other, dim=1, eps=1e-6).mean()


@torch.inference_mode(mode=False)  # with gradients, also where the caller has none
def aggregation_weights(
    first: Tensor,
    second: Tensor,
    *,
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    least_weight: float = 0.045,
    seed: int = 0,
    average: Average = "logits",
) -> Tensor:
    """Weights of experts for test images of which no one knows how common each class is: (E,), which sum to 1.

    An expert that is skilled in a class says the same of two views of its images, so the weights are those for which
    the ensemble does: they maximise `agreement`. SADE (Zhang et al., 2022), section 4.2, test-time self-supervised
    aggregation. As published, the weights are the softmax of parameters that start out equal, trained by SGD with
    Nesterov's momentum on shuffled batches; the defaults are the original's for CIFAR (its learning rate for ImageNet
    is 0.025, for iNaturalist 0.2 with a weight decay of 2e-4). The original draws new views in each epoch; here there
    is one pair of each image. Few images make few steps, which leave the weights nearly equal: take more epochs.

    Args:
        first: what the experts say of one augmented view of each image, logits (N, E, C).
        second: of another.
        epochs: at most.
        batch_size: images in a batch.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD; it draws the weights towards each other.
        least_weight: there is no further epoch once a weight is below. The original stops below 0.05 after rounding to
            hundredths.
        seed: of the batches.
        average: what is weighted; published are logits.
    """
    num_images, num_experts, _ = first.shape
    scores = torch.full((num_experts,), 1 / num_experts, device=first.device, dtype=first.dtype, requires_grad=True)
    optimizer = torch.optim.SGD([scores], learning_rate, momentum, weight_decay=weight_decay, nesterov=True)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(num_images, generator=generator(seed, epoch)).to(first.device)
        for batch in torch.split(order, batch_size):
            loss = -agreement(first[batch], second[batch], scores.softmax(dim=0), average)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if scores.detach().softmax(dim=0).min() < least_weight:  # waits for the device, once an epoch
            break
    return scores.detach().softmax(dim=0)

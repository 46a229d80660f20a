"""Predict once, derive everything from the logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.config import Config
from longtail.data.loading import Loader
from longtail.distribution import ALONE, Group
from longtail.metrics import Evaluation, evaluate_logits
from longtail.models.experts import MultiExpert


class Answers(NamedTuple):
    """What a model says of N images: E experts, C classes. On the CPU and in the loader's order."""

    logits: Tensor
    """(N, E, C), float32"""

    labels: Tensor
    """(N,)"""

    router_logits: Tensor | None
    """(N, E - 1); None where the model has no router"""


@torch.inference_mode()
def answers(model: MultiExpert, loader: Loader, group: Group = ALONE) -> Answers:
    """What every expert, and the router, says of every image.

    Args:
        model: on the device of the loader's images.
        loader: all images, in their own order; this process's share of them, in whole batches.
        group: the processes among which they are shared; each gets all answers.
    """
    was_training = model.training
    model.eval()
    size, num_experts = loader.num_images, model.num_experts
    # Whole arrays from the start: joining batches would need twice the memory.
    logits = torch.zeros(size, num_experts, model.num_classes)
    labels = torch.zeros(size, dtype=torch.int64)
    router_logits = None if model.router is None else torch.zeros(size, num_experts - 1)
    parts = loader.share.batches(size, loader.batch_size)
    for part, (images, targets, *_) in zip(parts, loader.epoch(0), strict=True):
        output = model(images)
        logits[part], labels[part] = output.logits, targets
        if model.router is not None and router_logits is not None:
            router_logits[part] = model.router(*output)
    # Each image has one process that does not say 0 of it.
    for tensor in (logits, labels, router_logits):
        if tensor is not None:
            group.sum(tensor)
    model.train(was_training)
    return Answers(logits, labels, router_logits)


def evaluate_answers(given: Answers, class_counts: Sequence[int], config: Config) -> Evaluation:
    """All metrics of the experts and their ensemble."""
    evaluation = config.evaluation
    return evaluate_logits(
        given.logits,
        given.labels,
        class_counts,
        many_above=evaluation.many_above,
        few_below=evaluation.few_below,
        bins=evaluation.calibration_bins,
    )

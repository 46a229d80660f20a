"""Predict once, derive everything from the logits."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.config import Config
from longtail.data.loading import Loader
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
def answers(model: MultiExpert, loader: Loader) -> Answers:
    """What every expert, and the router, says of every image."""
    was_training = model.training
    model.eval()
    size, num_experts = loader.num_images, model.num_experts
    # Whole arrays from the start: joining batches would need twice the memory.
    logits = torch.empty(size, num_experts, model.num_classes)
    labels = torch.empty(size, dtype=torch.int64)
    router_logits = None if model.router is None else torch.empty(size, num_experts - 1)
    done = 0
    for images, targets, *_ in loader.epoch(0):
        output = model(images)
        part = slice(done, done + len(targets))
        logits[part], labels[part] = output.logits, targets
        if model.router is not None and router_logits is not None:
            router_logits[part] = model.router(*output)
        done += len(targets)
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

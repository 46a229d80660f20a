"""Predict once, derive everything from the logits."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.config.schema import Config
from longtail.data.loaders import Loader
from longtail.evaluation.metrics import Evaluation, evaluate_logits
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.utils.ensembles import Average


class ModelOutputs(NamedTuple):
    """What a model says of N images: E experts, C classes. On the CPU and in the loader's order."""

    logits: Tensor
    """(N, E, C), float32"""

    labels: Tensor
    """(N,)"""

    router_logits: Tensor | None
    """(N, E - 1); None where the model has no router"""

    average: Average = "logits"
    """What of the experts makes the model's answer"""


class Features(NamedTuple):
    """What the heads of a model see of N images: E experts, D features. On the CPU and in the loader's order."""

    features: Tensor
    """(N, E, D), float32"""

    labels: Tensor
    """(N,)"""


def collect_outputs(model: MultiExpert, loader: Loader, group: Group = SINGLE_PROCESS, epoch: int = 0) -> ModelOutputs:
    """What every expert, and the router, says of every image.

    Args:
        model: on the device of the loader's images.
        loader: all images, in their own order; this process's share of them, in whole batches.
        group: the processes among which they are shared; each gets all answers.
        epoch: of the loader, where its images change from one to the next.
    """
    router, size = model.router, (model.num_experts, model.num_classes)
    if router is None:
        labels, logits = _gathered(model, loader, group, epoch, lambda output: (output.logits,), [size])
        return ModelOutputs(logits, labels, None, model.average)
    sizes = [size, (model.num_experts - 1,)]
    labels, logits, steps = _gathered(
        model, loader, group, epoch, lambda output: (output.logits, router(*output)), sizes
    )
    return ModelOutputs(logits, labels, steps, model.average)


def features(model: MultiExpert, loader: Loader, group: Group = SINGLE_PROCESS) -> Features:
    """What the heads see of every image; arguments as of `answers`."""
    sizes = [(model.num_experts, model.num_features)]
    labels, found = _gathered(model, loader, group, 0, lambda output: (output.features,), sizes)
    return Features(found, labels)


@torch.inference_mode()
def _gathered(
    model: MultiExpert,
    loader: Loader,
    group: Group,
    epoch: int,
    say: Callable[[ExpertOutput], tuple[Tensor, ...]],
    sizes: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Labels (N,), and what is said of each image, of the given sizes; on the CPU and by all processes together."""
    was_training = model.training
    model.eval()
    # Whole arrays from the start: joining batches would need twice the memory.
    labels = torch.zeros(loader.num_images, dtype=torch.int64)
    found = [torch.zeros(loader.num_images, *size) for size in sizes]
    parts = loader.shard.batches(loader.num_images, loader.batch_size)
    for part, (images, targets, *_) in zip(parts, loader.epoch(epoch), strict=True):
        labels[part] = targets
        for whole, said in zip(found, say(model(images)), strict=True):
            whole[part] = said
    # Each image has one process that does not say 0 of it.
    for tensor in (labels, *found):
        group.sum(tensor)
    model.train(was_training)
    return [labels, *found]


def evaluate_outputs(given: ModelOutputs, class_counts: Sequence[int], config: Config) -> Evaluation:
    """All metrics of the experts and their ensemble."""
    evaluation = config.evaluation
    return evaluate_logits(
        given.logits,
        given.labels,
        class_counts,
        many_above=evaluation.many_above,
        few_below=evaluation.few_below,
        bins=evaluation.calibration_bins,
        average=given.average,
    )

"""The outputs of a model for many images: computed once, then every number is derived from them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.config.schema import EvaluationConfig
from longtail.data.imbalance import ShotThresholds
from longtail.data.loaders import Loader
from longtail.data.views import num_views
from longtail.evaluation.metrics import Evaluation, evaluate_logits
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.utils.choices import Average
from longtail.utils.console import with_bar
from longtail.utils.ensembles import average_views

Compute = Callable[[Tensor], ExpertOutput]


class ModelOutputs(NamedTuple):
    """The outputs of a model for N images: E experts, C classes. On the CPU and in the loader's order."""

    logits: Tensor
    """(N, E, C), float32"""

    labels: Tensor
    """(N,)"""

    router_logits: Tensor | None = None
    """(N, E - 1); None if the model has no router"""

    average: Average = "logits"
    """How the model averages its experts"""

    temperature: float = 1.0
    """Divides the ensemble's logits before probabilities are computed"""

    num_views: int = 1
    """Views of each image over which logits and router logits were averaged"""


class Features(NamedTuple):
    """The inputs of a model's heads for N images: E experts, D features. On the CPU and in the loader's order."""

    features: Tensor
    """(N, E, D), float32"""

    labels: Tensor
    """(N,)"""


def collect_outputs(
    model: MultiExpert,
    loader: Loader,
    group: Group = SINGLE_PROCESS,
    epoch: int = 0,
    compute: Compute | None = None,
) -> ModelOutputs:
    """Computes the outputs of all experts, and of the router, for every image; averaged over its views, if any.

    Args:
        model: on the device of the loader's images.
        loader: all images in their own order; this process's share of them, in full batches.
        group: processes that share the images; each gets all outputs.
        epoch: of the loader, if its images are augmented.
        compute: from the loader's inputs to the model's outputs, if they are not images; by default, the model.
    """
    router = model.router

    def select(output: ExpertOutput) -> tuple[Tensor, ...]:
        return (output.logits,) if router is None else (output.logits, router(output.logits, output.features))

    sizes = [(model.num_experts, model.num_classes), *([] if router is None else [(model.num_experts - 1,)])]
    labels, logits, *routed = _gather(model, compute or model, loader, group, epoch, select, sizes)
    router_logits = routed[0] if routed else None
    return ModelOutputs(logits, labels, router_logits, model.average, model.temperature, num_views(loader))


def collect_features(model: MultiExpert, loader: Loader, group: Group = SINGLE_PROCESS) -> Features:
    """Computes the inputs of the heads for every image; arguments as in `collect_outputs`."""
    sizes = [(model.num_experts, model.num_features)]
    labels, features = _gather(model, model, loader, group, 0, lambda output: (output.features,), sizes)
    return Features(features, labels)


@torch.inference_mode()
def _gather(
    model: MultiExpert,
    compute: Compute,
    loader: Loader,
    group: Group,
    epoch: int,
    select: Callable[[ExpertOutput], tuple[Tensor, ...]],
    sizes: Sequence[tuple[int, ...]],
) -> list[Tensor]:
    """Labels (N,), and selected outputs of the given sizes for each image; on the CPU, from all processes."""
    was_training = model.training
    model.eval()
    # Full arrays from the start: joining batches would need twice the memory.
    labels = torch.zeros(loader.num_images, dtype=torch.int64)
    gathered = [torch.zeros(loader.num_images, *size) for size in sizes]
    positions = loader.shard.batches(loader.num_images, loader.batch_size)
    batches = with_bar(loader.epoch(epoch), "evaluating images", len(loader))
    for position, batch in zip(positions, batches, strict=True):
        labels[position.epoch_rows] = batch.own_labels.cpu()
        output = compute(batch.inputs)
        for array, values in zip(gathered, select(output), strict=True):
            average = model.average if values is output.logits else "logits"  # means of features and router logits
            array[position.epoch_rows] = average_views(values, num_views(loader), average).cpu()
    # For each image one process has values; all others have zeros.
    for tensor in (labels, *gathered):
        group.sum(tensor)
    model.train(was_training)
    return [labels, *gathered]


def evaluate_outputs(outputs: ModelOutputs, class_counts: Sequence[int], settings: EvaluationConfig) -> Evaluation:
    """Computes all metrics of the experts and their ensemble."""
    return evaluate_logits(
        outputs.logits,
        outputs.labels,
        class_counts,
        thresholds=ShotThresholds(settings.many_above, settings.few_below),
        bins=settings.calibration_bins,
        average=outputs.average,
        temperature=outputs.temperature,
    )

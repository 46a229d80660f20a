"""The evaluation of a model on the splits of its data set."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longtail.data.imbalance import ShotThresholds
from longtail.data.loaders import Loader
from longtail.evaluation.flops import cost
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import ModelOutputs, collect_outputs, evaluate_outputs
from longtail.evaluation.routing import RoutingReport, evaluate_routing
from longtail.evaluation.throughput import Speed, images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.models.router import THRESHOLD
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata

SplitName = Literal["val", "test"]

SPEED_BATCH, SPEED_IMAGES, SPEED_SECONDS = 64, 512, 0.5
"""How speed is measured: images in a batch, in all, and seconds for each number of experts"""


class EvaluationResults(NamedTuple):
    """Everything measured, by split."""

    evaluations: dict[SplitName, Evaluation]
    routings: dict[SplitName, RoutingReport]
    """Empty for a model without a router"""

    outputs: dict[SplitName, ModelOutputs]

    speed: Speed | None = None
    """Of a model without a router, in the process that writes; with a router it is part of the routing report"""


def eval_loaders(context: RunContext) -> dict[SplitName, Loader]:
    """Returns the loaders of the test split and, if there is one, of the validation split."""
    loaders: dict[SplitName, Loader] = {"test": context.eval_loader(context.dataset.test)}
    if context.dataset.val is not None:
        loaders["val"] = context.eval_loader(context.dataset.val)
    return loaders


def evaluate_splits(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, loaders: Mapping[SplitName, Loader]
) -> EvaluationResults:
    """Evaluates a model on every split. The process that writes also measures speed and routing."""
    settings = context.config.evaluation
    outputs = {split: collect_outputs(model, loader, context.runtime.group) for split, loader in loaders.items()}
    evaluations = {split: evaluate_outputs(outputs[split], metadata.class_counts, settings) for split in outputs}
    routings: dict[SplitName, RoutingReport] = {}
    if not context.run.writes:
        return EvaluationResults(evaluations, routings, outputs)
    threshold = THRESHOLD if model.router is None else model.router.threshold
    images = _some_images(loaders["test"])
    speed = images_per_second(model, images, SPEED_BATCH, SPEED_SECONDS, threshold=threshold)
    if model.router is not None:
        model_cost = cost(model, metadata.image_size)
        for split in outputs:
            routings[split] = evaluate_routing(
                outputs[split],
                metadata.class_counts,
                model_cost,
                threshold,
                thresholds=ShotThresholds(settings.many_above, settings.few_below),
                chosen_on="val" if metadata.threshold_for else None,
                images_per_second=speed,
            )
    return EvaluationResults(evaluations, routings, outputs, speed if model.router is None else None)


def _some_images(loader: Loader) -> Tensor:
    """The first images of a loader, to measure speed with."""
    batches, number = [], 0
    for batch in loader.epoch(0):
        batches.append(batch.inputs)
        number += len(batch.inputs)
        if number >= SPEED_IMAGES:
            break
    return torch.cat(batches)[:SPEED_IMAGES].contiguous(memory_format=torch.channels_last)

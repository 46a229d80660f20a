"""The evaluation of a model on the splits of its data set."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from longtail.data.imbalance import ShotThresholds
from longtail.data.loaders import Loader
from longtail.evaluation import routing
from longtail.evaluation.flops import cost
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import ModelOutputs, collect_outputs, evaluate_outputs
from longtail.evaluation.routing_report import RoutingReport
from longtail.evaluation.throughput import Speed, images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata

SplitName = Literal["val", "test"]

SPEED_BATCH, SPEED_IMAGES, SPEED_SECONDS = 64, 512, 0.5
"""How the speed of routing is measured: images in a batch, in all, and seconds for each number of experts"""


class EvaluationResults(NamedTuple):
    """Everything measured, by split."""

    evaluations: dict[SplitName, Evaluation]
    routings: dict[SplitName, RoutingReport]
    """Empty for a model without a router"""

    outputs: dict[SplitName, ModelOutputs]


def eval_loaders(context: RunContext) -> dict[SplitName, Loader]:
    """Returns the loaders of the test split and, if there is one, of the validation split."""
    loaders: dict[SplitName, Loader] = {"test": context.eval_loader(context.dataset.test)}
    if context.dataset.val is not None:
        loaders["val"] = context.eval_loader(context.dataset.val)
    return loaders


def evaluate_splits(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, loaders: Mapping[SplitName, Loader]
) -> EvaluationResults:
    """Evaluates a model on every split. The process that writes also measures routing."""
    settings = context.config.evaluation
    outputs = {split: collect_outputs(model, loader, context.runtime.group) for split, loader in loaders.items()}
    evaluations = {split: evaluate_outputs(outputs[split], metadata.class_counts, settings) for split in outputs}
    routings: dict[SplitName, RoutingReport] = {}
    if model.router is not None and context.run.writes:
        images = _some_images(loaders["test"])
        threshold = model.router.threshold
        speed = images_per_second(model, images, SPEED_BATCH, SPEED_SECONDS, threshold=threshold)
        thresholds = ShotThresholds(settings.many_above, settings.few_below)
        routings = {split: _routing(model, metadata, outputs[split], thresholds, speed) for split in outputs}
    return EvaluationResults(evaluations, routings, outputs)


def _routing(
    model: MultiExpert, metadata: ModelMetadata, outputs: ModelOutputs, thresholds: ShotThresholds, speed: Speed
) -> RoutingReport:
    assert model.router is not None
    assert outputs.router_logits is not None
    model_cost, experts = cost(model, metadata.image_size), range(1, model.num_experts + 1)
    costs = [model_cost.routed(number) for number in experts]
    prefix_costs = [model_cost.prefix(number) for number in experts]
    values = outputs.logits, outputs.router_logits, outputs.labels
    result = routing.routing(
        *values,
        metadata.class_counts,
        costs,
        prefix_costs,
        model.router.threshold,
        thresholds=thresholds,
        average=outputs.average,
    )
    chosen_on = "val" if metadata.threshold_for else None
    return RoutingReport.of(result, *values, costs, speed=speed, chosen_on=chosen_on, average=outputs.average)


def _some_images(loader: Loader) -> Tensor:
    """The first images of a loader, to measure speed with."""
    batches, number = [], 0
    for batch in loader.epoch(0):
        batches.append(batch.inputs)
        number += len(batch.inputs)
        if number >= SPEED_IMAGES:
            break
    return torch.cat(batches)[:SPEED_IMAGES].contiguous(memory_format=torch.channels_last)

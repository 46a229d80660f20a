"""The evaluation of a model on the splits of its data set."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.data.imbalance import ShotThresholds
from longtail.data.loaders import Loader
from longtail.data.views import num_views
from longtail.evaluation.flops import Cost, cost
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import ModelOutputs, evaluate_outputs
from longtail.evaluation.routing import RoutingReport, evaluate_routing
from longtail.evaluation.temperature import fit_temperature, predicted_logits
from longtail.evaluation.throughput import Speed, images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import EvalSplit, RunContext
from longtail.runs.model_file import ModelMetadata

logger = logging.getLogger(__name__)

SPEED_BATCH, SPEED_IMAGES, SPEED_SECONDS = 64, 512, 0.5
"""How speed is measured: images in a batch, in all, and seconds for each number of experts"""


class EvaluationResults(NamedTuple):
    """Everything measured, by split."""

    evaluations: dict[EvalSplit, Evaluation]
    routings: dict[EvalSplit, RoutingReport]
    """Empty for a model without a router"""

    outputs: dict[EvalSplit, ModelOutputs]

    speed: Speed | None = None
    """Of a model without a router, in the process that writes; with a router it is part of the routing report"""

    cost: Cost | None = None
    """For one image, counting all its views; in the process that writes"""


def set_temperature(
    model: MultiExpert, outputs: Mapping[EvalSplit, ModelOutputs], setting: float | None
) -> dict[EvalSplit, ModelOutputs]:
    """Sets the temperature of a model; returns the outputs with it.

    Args:
        model: its predictions are routed if it has a router.
        outputs: of the model; the temperature is chosen on the validation split, if there is one.
        setting: the temperature; None: it is chosen.
    """
    model.temperature = 1.0 if setting is None else setting
    if setting is None and "val" in outputs:
        threshold = None if model.router is None else model.router.threshold
        best = fit_temperature(predicted_logits(outputs["val"], threshold), outputs["val"].labels)
        if best is None:
            logger.info("The temperature is 1: the predictions for the validation images determine no other one.")
        else:
            model.temperature = best
    return {split: values._replace(temperature=model.temperature) for split, values in outputs.items()}


def evaluate_splits(
    context: RunContext,
    model: MultiExpert,
    metadata: ModelMetadata,
    loaders: Mapping[EvalSplit, Loader],
    outputs: dict[EvalSplit, ModelOutputs],
) -> EvaluationResults:
    """Evaluates the outputs of a model on every split. The process that writes also measures speed and routing."""
    settings = context.config.evaluation
    evaluations = {split: evaluate_outputs(outputs[split], metadata.class_counts, settings) for split in outputs}
    routings: dict[EvalSplit, RoutingReport] = {}
    if not context.run.writes:
        return EvaluationResults(evaluations, routings, outputs)
    images, views = _some_images(loaders["test"]), num_views(loaders["test"])
    speed = images_per_second(model, images, SPEED_BATCH, SPEED_SECONDS, num_views=views)
    model_cost = cost(model, metadata.image_size)
    if model.router is not None:
        for split in outputs:
            routings[split] = evaluate_routing(
                outputs[split],
                metadata.class_counts,
                model_cost,
                model.router.threshold,
                thresholds=ShotThresholds(settings.many_above, settings.few_below),
                bins=settings.calibration_bins,
                chosen_on="val" if metadata.threshold_for else None,
                images_per_second=speed,
            )
    return EvaluationResults(
        evaluations, routings, outputs, speed if model.router is None else None, model_cost.times(views)
    )


def _some_images(loader: Loader) -> Tensor:
    """The last images of a loader, to measure speed with: (V * N, 3, H, W) for V views.

    After the last ones, the processes that decode images have nothing left to do.
    """
    views = num_views(loader)
    number = SPEED_IMAGES // views
    first = len(loader) - -(-number // loader.batch_size) - 1  # the last batch may be smaller
    batches = [batch.inputs.unflatten(0, (views, -1)) for batch in loader.epoch(0, max(0, first))]
    images = torch.cat(batches, dim=1)[:, -number:]
    return images.flatten(0, 1).contiguous(memory_format=torch.channels_last)

"""The last stage: training of the router, and the choice of its threshold."""

import time
from dataclasses import replace

from longtail.config.schema import RouterConfig
from longtail.data.loaders import Loader
from longtail.evaluation.flops import cost
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.evaluation.routing import choose_threshold, curve, parse_budget, prefix_predictions
from longtail.models.build import router_options
from longtail.models.multi_expert import MultiExpert, create_router
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.training.checkpoint import stage_checkpoint
from longtail.training.frozen_stage import TrainedStage, train_on_frozen
from longtail.training.tasks import TrainRouter


def train_router(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, val_loader: Loader | None
) -> TrainedStage:
    """Trains a new router for a model. Nothing but the router changes.

    Args:
        context: of the run.
        model: on the device.
        metadata: of the model.
        val_loader: images for the choice of the threshold, if the settings ask for it.

    Raises:
        InputError: the model has a single expert.
    """
    start, settings = time.perf_counter(), context.config.router
    model.router, model.temperature = None, 1.0  # the temperature is for routed predictions
    with context.seeded_init():
        router = create_router(model, **router_options(settings)).to(context.runtime.device)
    task = TrainRouter(router, settings.positive_weight, model.average)
    checkpoint = stage_checkpoint(context, "router", strict=False)
    records = train_on_frozen(context, model, task, "router", checkpoint, nesterov=True)
    model.router = router.eval()
    metadata = replace(metadata, threshold_for="")
    if settings.has_goal:
        assert val_loader is not None
        outputs = collect_outputs(model, val_loader, context.runtime.group)
        metadata = set_threshold(model, metadata, outputs, settings)
    return TrainedStage(metadata, {"seconds": time.perf_counter() - start, "epochs": records}, checkpoint)


def set_threshold(
    model: MultiExpert, metadata: ModelMetadata, outputs: ModelOutputs, settings: RouterConfig
) -> ModelMetadata:
    """Sets the router's threshold for a goal; returns metadata that name the goal.

    Args:
        model: with a router.
        metadata: of the model.
        outputs: of the model on the images for the choice.
        settings: name the goal.

    Raises:
        InputError: no threshold reaches the goal.
    """
    assert model.router is not None
    assert outputs.router_logits is not None
    costs = cost(model, metadata.image_size).times(outputs.num_views).routed_costs
    correct = prefix_predictions(outputs.logits, outputs.average) == outputs.labels[:, None]
    points = curve(correct, outputs.router_logits, outputs.labels, costs)
    drop = settings.max_accuracy_drop
    budget = None if settings.compute_budget is None else parse_budget(str(settings.compute_budget))
    model.router.threshold = choose_threshold(points, compute_budget=budget, max_accuracy_drop=drop)
    goal = f"compute_budget {settings.compute_budget}" if budget else f"max_accuracy_drop {drop:g}"
    return replace(metadata, threshold_for=goal)

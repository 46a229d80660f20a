"""The last stage: the router, and the choice of its threshold."""

import time
from dataclasses import replace

from longtail.data.loaders import Loader
from longtail.evaluation.flops import cost
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.evaluation.routing import choose_threshold, curve, parse_budget, prefix_predictions
from longtail.models import build as model_build
from longtail.models.multi_expert import MultiExpert, create_router
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.training import optim
from longtail.training.frozen import train_on_frozen
from longtail.training.tasks import TrainRouter


def train_router(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, val_loader: Loader | None
) -> ModelMetadata:
    """The last stage: gives a trained model a new router; the run then holds it. Nothing but the router changes.

    Args:
        context: where to.
        model: on the device.
        metadata: of the model.
        val_loader: images to choose the threshold on, where the settings want that.

    Raises:
        InputError: the model has a single expert.
    """
    start, settings, options = time.perf_counter(), context.config.router, model_build.router_options(context.config)
    model.router = None
    with context.seeded_init():
        router = create_router(model, **options).to(context.runtime.device)
    task = TrainRouter(router, settings.positive_weight, model.average)
    checkpoint = context.checkpoint("router", strict=False)
    optimizer, rate = optim.router_optimizer(context.config, router), optim.router_learning_rate(context.config)
    records = train_on_frozen(context, model, task, "router", optimizer, rate, checkpoint)
    model.router = router.eval()
    metadata = replace(metadata, architecture={**metadata.architecture, "router": options}, threshold_for="")
    budget, drop = settings.compute_budget, settings.max_accuracy_drop
    if budget is not None or drop is not None:
        assert val_loader is not None
        metadata = set_threshold(
            model, metadata, collect_outputs(model, val_loader, context.runtime.group), budget, drop
        )
    context.run.write_json("router.json", {"seconds": time.perf_counter() - start, "epochs": records})
    context.run.remove("results.json")  # which are of another model
    context.run.save_model(model, metadata)  # last: a model with a router is what says that this stage is done
    checkpoint.remove()
    return metadata


def set_threshold(
    model: MultiExpert,
    metadata: ModelMetadata,
    given: ModelOutputs,
    compute_budget: float | str | None,
    max_accuracy_drop: float | None,
) -> ModelMetadata:
    """Gives the router of a model the threshold that a wish asks for; returns the description that says so.

    Args:
        model: with a router.
        metadata: of the model.
        given: what the model says of the images to choose on.
        compute_budget: see `longtail.config.schema.RouterConfig`.
        max_accuracy_drop: likewise; one of them is given.

    Raises:
        InputError: no threshold satisfies the wish.
    """
    assert model.router is not None
    assert given.router_logits is not None
    price = cost(model, metadata.image_size)
    costs = [price.routed(used) for used in range(1, model.num_experts + 1)]
    right = prefix_predictions(given.logits, given.average) == given.labels[:, None]
    points = curve(right, given.router_logits, given.labels, costs)
    budget = None if compute_budget is None else parse_budget(str(compute_budget))
    threshold = choose_threshold(points, compute_budget=budget, max_accuracy_drop=max_accuracy_drop)
    model.router.threshold = threshold
    router = {**metadata.architecture["router"], "threshold": threshold}
    wish = f"compute_budget {compute_budget}" if budget else f"max_accuracy_drop {max_accuracy_drop:g}"
    return replace(metadata, architecture={**metadata.architecture, "router": router}, threshold_for=wish)

"""Evaluations of random outputs, for the tests of tables and reports."""

import dataclasses

import torch

from longtail.config.schema import Config
from longtail.data.imbalance import DEFAULT_THRESHOLDS
from longtail.evaluation.flops import Cost
from longtail.evaluation.image_outputs import image_outputs
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import ModelOutputs
from longtail.evaluation.routing import evaluate_routing
from longtail.evaluation.throughput import Speed
from longtail.reports.page import RunReport

COUNTS = [500, 300, 150, 90, 60, 30, 15, 10, 5, 2]
SPEED = Speed(prefixes=[12345.6, 812.3, 45.67], routed=7000.0, batch_size=128, rounds=11)


def outputs_of(class_counts, num_experts=3, num_images=200, tested=None, seed=0):
    """Logits and labels of test images that cover the ``tested`` classes, all by default."""
    num_classes = len(class_counts)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(range(num_classes) if tested is None else tested)[torch.arange(num_images) % num_classes]
    logits = torch.randn(num_images, num_experts, num_classes, generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    return logits, labels


def evaluation_of(class_counts, *arguments, thresholds=DEFAULT_THRESHOLDS, **options):
    return evaluate_logits(*outputs_of(class_counts, *arguments, **options), class_counts, thresholds=thresholds)


def routing_of(
    class_counts, num_experts=3, router=None, threshold=0.6, chosen_on=None, images_per_second=None, **options
):
    """Routing of the images of `evaluation_of` by random router logits, or by the same logit for all images."""
    logits, labels = outputs_of(class_counts, num_experts, **options)
    router_logits = torch.randn(len(labels), num_experts - 1, generator=torch.Generator().manual_seed(1))
    if router is not None:
        router_logits.fill_(router)
    cost = cost_of(num_experts)
    outputs = ModelOutputs(logits, labels, router_logits)
    return evaluate_routing(
        outputs, class_counts, cost, threshold, chosen_on=chosen_on, images_per_second=images_per_second
    )


def outputs_with_router(class_counts, num_experts=3, **options):
    """Outputs of the images of `evaluation_of`, with the router logits of `routing_of`."""
    logits, labels = outputs_of(class_counts, num_experts, **options)
    router_logits = torch.randn(len(labels), num_experts - 1, generator=torch.Generator().manual_seed(1))
    return ModelOutputs(logits, labels, router_logits)


def saved_report(class_counts, names=None, *, history=(), config=None, temperature=1.0, routed=True, **options):
    """The content of a report, and the saved outputs of its test images."""
    outputs = outputs_with_router(class_counts, **options)._replace(temperature=temperature)
    if not routed:
        outputs = outputs._replace(router_logits=None)
    num_experts = outputs.logits.shape[1]
    speed = SPEED if num_experts == 3 else Speed([1000.0 / k for k in range(1, num_experts + 1)], 900.0, 64, 5)
    report = RunReport(
        config or Config(),
        {"test": evaluate_logits(outputs.logits, outputs.labels, class_counts, temperature=temperature)},
        names or [f"class {k}" for k in range(len(class_counts))],
        class_counts,
        history,
        {"device": "cpu", "packages": {"torch": "2.15"}},
        evaluate_routing(outputs, class_counts, cost_of(num_experts), 0.6, images_per_second=speed) if routed else None,
        None if routed else dataclasses.replace(speed, routed=None),
        cost=cost_of(num_experts),
    )
    prior = torch.tensor(class_counts).clamp(min=1).float().log()[None]
    return report, image_outputs(outputs, "fingerprint", prior)


def cost_of(num_experts):
    return Cost(24_700_000, (25_300_000,) * num_experts, (0,) * num_experts, (10_000,) * (num_experts - 1))

"""The test of a trained model: its answers once, then every number, table and plot."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.data.loaders import Loader
from longtail.evaluation import routing
from longtail.evaluation.flops import cost
from longtail.evaluation.metrics import BLOCK, Evaluation
from longtail.evaluation.outputs import ModelOutputs, collect_outputs, evaluate_outputs
from longtail.evaluation.routing_report import RoutingReport
from longtail.evaluation.throughput import Speed, images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.reports.page import routing_summary, summary, write_report
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import PREDICTIONS_FILE, Run
from longtail.training.progress import say
from longtail.utils.ensembles import ensemble

Part = Literal["val", "test"]

SPEED_BATCH, SPEED_IMAGES, SPEED_SECONDS = 64, 512, 0.5
"""How the speed of a routing is measured: images at a time, in all, and seconds for each number of experts."""


class EvaluationResults(NamedTuple):
    """What came of a test."""

    evaluations: dict[Part, Evaluation]
    routings: dict[Part, RoutingReport]
    """Empty for a model without a router"""

    given: dict[Part, ModelOutputs]


def eval_loaders(context: RunContext) -> dict[Part, Loader]:
    """Of the parts that there are."""
    config, dataset = context.config, context.dataset
    loaders: dict[Part, Loader] = {"test": data_build.eval_loader(config, dataset, dataset.test, context.runtime)}
    if dataset.val is not None:
        loaders["val"] = data_build.eval_loader(config, dataset, dataset.val, context.runtime)
    return loaders


def log_results(console: Console, run: Run, tested: EvaluationResults, split: Part, config: Config) -> None:
    """The results as tables for the terminal, and where there is more."""
    shots, evaluation, average = config.evaluation, tested.evaluations[split], tested.given[split].average
    title = f"{config.name}: {evaluation.num_images:,} {split} images"
    console.print(summary(evaluation, title, many_above=shots.many_above, few_below=shots.few_below, average=average))
    if routing := tested.routings.get(split):
        console.print(routing_summary(routing, f"{config.name}: routing of {evaluation.num_images:,} {split} images"))
    say(console, f"Results, plots and settings: {run.folder / 'report.md'}")


def evaluate_splits(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, loaders: Mapping[Part, Loader]
) -> EvaluationResults:
    """Tests a model on every part, and writes the run's results.json, report.md and plots."""
    run, config = context.run, context.config
    shots = {"many_above": config.evaluation.many_above, "few_below": config.evaluation.few_below}
    given = {part: collect_outputs(model, loader, context.runtime.group) for part, loader in loaders.items()}
    evaluations = {part: evaluate_outputs(given[part], metadata.class_counts, config) for part in given}
    routings: dict[Part, RoutingReport] = {}
    if model.router is not None and run.writes:  # one process measures and reports
        speed = images_per_second(
            model, _some_images(loaders["test"]), SPEED_BATCH, SPEED_SECONDS, threshold=model.router.threshold
        )
        routings = {part: _routing(model, metadata, own, shots, speed) for part, own in given.items()}
    names = {"class_names": list(metadata.class_names), "class_counts": list(metadata.class_counts)}
    results = {part: evaluation.as_dict() for part, evaluation in evaluations.items()}
    for part, report in routings.items():
        results[part]["routing"] = report.as_dict()
    if not run.writes:
        return EvaluationResults(evaluations, routings, given)
    test = context.dataset.test
    if test.paths is not None:
        run.write_csv(PREDICTIONS_FILE, _predictions(test.paths, given["test"], metadata.class_names, config.data.root))
    write_report(
        run.folder,
        config=asdict(config),
        evaluations={str(part): evaluation for part, evaluation in evaluations.items()},
        class_names=metadata.class_names,
        class_counts=metadata.class_counts,
        history=run.history(),
        environment=run.environment(),
        routing=routings.get("test"),
        predictions=None if test.paths is None else PREDICTIONS_FILE,
        **shots,
    )
    run.write_json(
        "results.json", {"epoch": metadata.epoch, **results, **names}
    )  # last: it says that the test is complete
    return EvaluationResults(evaluations, routings, given)


def _predictions(
    paths: Iterable[Path], given: ModelOutputs, class_names: Sequence[str], root: str
) -> Iterator[tuple[object, ...]]:
    """What all experts together say of each picture, to be sorted for those that are wrong and sure of it."""
    yield "picture", "class", "predicted", "probability"
    batches = (ensemble(part, given.average).softmax(dim=1).max(dim=1) for part in torch.split(given.logits, BLOCK))
    found = ((label, likely) for best in batches for likely, label in zip(*map(Tensor.tolist, best), strict=True))
    for path, right, (label, likely) in zip(paths, given.labels.tolist(), found, strict=True):
        yield os.path.relpath(path, root), class_names[right], class_names[label], f"{likely:.6g}"


def _routing(
    model: MultiExpert, metadata: ModelMetadata, given: ModelOutputs, shots: Mapping[str, int], speed: Speed
) -> RoutingReport:
    assert model.router is not None
    assert given.router_logits is not None
    price, experts = cost(model, metadata.image_size), range(1, model.num_experts + 1)
    costs, prefix_costs = [price.routed(number) for number in experts], [price.prefix(number) for number in experts]
    said = given.logits, given.router_logits, given.labels
    result = routing.routing(
        *said,
        metadata.class_counts,
        costs,
        prefix_costs,
        model.router.threshold,
        many_above=shots["many_above"],
        few_below=shots["few_below"],
        average=given.average,
    )
    chosen_on = "val" if metadata.threshold_for else None
    return RoutingReport.of(result, *said, costs, speed=speed, chosen_on=chosen_on, average=given.average)


def _some_images(loader: Loader) -> Tensor:
    """Enough of them to measure speed with."""
    batches, number = [], 0
    for images, *_ in loader.epoch(0):
        batches.append(images)
        number += len(images)
        if number >= SPEED_IMAGES:
            break
    return torch.cat(batches)[:SPEED_IMAGES].contiguous(memory_format=torch.channels_last)

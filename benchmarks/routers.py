"""Accuracy of different routers at the same mean cost, on the experts of one run.

    python benchmarks/routers.py runs/cifar100-lt-ride [--data.root FOLDER] [--data.val_spare 30]

The table shows the balanced accuracy in % at several mean costs, as multiples of the first expert's cost. It has the
validation images, which selected the default settings, and the test images. Trained routers differ in the weight of
images that gain from the next expert, and in epochs; they are means over SEEDS seeds. "margin", "confidence" and
"entropy" need no training: they follow from the mean logits or probabilities of the experts so far. Writes
benchmarks/results/routers.txt.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from result import report
from run_contexts import run_contexts
from torch import Tensor

from longtail.evaluation.flops import cost
from longtail.evaluation.routing import CurvePoint, curve, oracle_curve, prefix_predictions, random_curve
from longtail.losses import router_targets
from longtail.models.build import router_options
from longtail.models.multi_expert import ExpertOutput, create_router
from longtail.models.router import Router
from longtail.runs.context import RunContext
from longtail.training.cached_outputs import CachedOutputs
from longtail.training.loop import fit
from longtail.training.optim import epoch_cosine, sgd
from longtail.training.tasks import TrainRouter
from longtail.utils.ensembles import partial_ensembles

COSTS = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7)
SEEDS = 3
TRAINED = {  # name -> weight of images that gain, epochs, shared last layer
    "published: weight 100, 5 epochs": (100.0, 5, True),
    "weight 100, 50 epochs (default)": (100.0, 50, True),
    "weight 10, 50 epochs": (10.0, 50, True),
    "weight 4, 50 epochs": (4.0, 50, True),
    "weight 100, 50 epochs, per step": (100.0, 50, False),
    "weight 1, 50 epochs": (1.0, 50, True),
    "weight 4, 5 epochs": (4.0, 5, True),
}


def margin(means: Tensor) -> Tensor:
    best = means.topk(2, dim=2).values
    return best[..., 1] - best[..., 0]


def confidence(means: Tensor) -> Tensor:
    return -means.softmax(dim=2).amax(dim=2).logit(eps=1e-9)


def entropy(means: Tensor) -> Tensor:
    return torch.special.entr(means.softmax(dim=2)).sum(dim=2) - 2


UNTRAINED: dict[str, Callable[[Tensor], Tensor]] = {"margin": margin, "confidence": confidence, "entropy": entropy}
"""Name -> function of the mean logits after each step, (B, E - 1, C) -> (B, E - 1), with 0 as usual threshold"""


class Split:
    """The outputs of the experts for the images of a split, on the CPU."""

    def __init__(self, output: ExpertOutput, labels: Tensor, routed_costs: list[int], prefix_costs: list[int]):
        self.output, self.labels = output, labels
        self.routed_costs, self.prefix_costs = routed_costs, prefix_costs
        self.correct = prefix_predictions(output.logits) == labels[:, None]

    def routed(self, router_logits: Tensor) -> list[float]:
        """Returns the balanced accuracy of a router at each of `COSTS`; ``router_logits`` are (N, E - 1)."""
        points = curve(self.correct, router_logits, self.labels, self.routed_costs)
        return self._at_costs([CurvePoint(point.cost, point.balanced) for point in points], self.routed_costs[0])

    def random(self) -> list[float]:
        """Returns the balanced accuracy of random routing at each of `COSTS`."""
        totals = torch.bincount(self.labels)
        weights = 1 / (totals * (totals > 0).sum()).double()[self.labels]
        balanced = (weights @ self.correct.double()).tolist()
        return self._at_costs(random_curve(balanced, self.prefix_costs), self.prefix_costs[0])

    def oracle(self) -> list[float]:
        """Returns the highest possible balanced accuracy at each of `COSTS`."""
        return self._at_costs(oracle_curve(self.correct, self.labels, self.prefix_costs), self.prefix_costs[0])

    def _at_costs(self, points: Sequence[CurvePoint], first: float) -> list[float]:
        costs, accuracies = zip(*sorted(points), strict=True)
        values: list[float] = np.interp([cost * first for cost in COSTS], costs, accuracies).tolist()
        return values


def table(context: RunContext) -> Iterator[str]:
    model, metadata = context.run.load_model()
    settings = context.config.router
    model.router = create_router(model, **router_options(settings))
    model_cost = cost(model, metadata.image_size)
    model.router = None
    context.to_device(model)
    loaders = context.eval_loaders()
    assert "val" in loaders, "the data set has no validation split"
    splits = {}
    for name in ("val", "test"):
        with torch.inference_mode():  # with features: all routers get the same ones
            outputs = [(*model(batch.inputs)[:2], batch.labels) for batch in loaders[name].epoch(0)]
        logits, features, labels = (torch.cat(values).cpu() for values in zip(*outputs, strict=True))
        splits[name] = Split(ExpertOutput(logits, features), labels, model_cost.routed_costs, model_cost.prefix_costs)
    seed, loader = context.config.seed, context.loaders.shuffled(context.config.training.batch_size)
    frozen = CachedOutputs(model, loader, batch_size=settings.batch_size, seed=seed)

    def trained(weight: float, epochs: int, shared: bool) -> Iterator[Router]:
        how = replace(settings, epochs=epochs)
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            router = create_router(model, **router_options(how) | {"shared": shared}).to(context.runtime.device)
            task = TrainRouter(router, weight)
            list(fit(task, frozen, sgd(how, task, nesterov=True), epoch_cosine(how), epochs))
            yield router.eval().cpu()

    for name, split in splits.items():
        gains = router_targets(split.output.logits, split.labels).mean(dim=0).tolist()
        shares = ", ".join(f"{gain:.1%}" for gain in gains)
        yield f"{name}: {len(split.labels)} images; share that gains from another expert: {shares}"
    yield ""
    heading = "".join(f"{cost:8.2f}" for cost in COSTS)
    yield f"{'mean cost (first expert = 1)':32}{heading}    {heading}"
    yield f"{'':32}{'val'.rjust(8)}{'':{8 * (len(COSTS) - 1)}}    {'test'.rjust(8)}"
    yield row("random routing", [split.random() for split in splits.values()])
    yield row("best possible, with labels", [split.oracle() for split in splits.values()])
    for name, score in UNTRAINED.items():
        means = [partial_ensembles(split.output.logits)[:, :-1] for split in splits.values()]
        yield row(name, [split.routed(score(mean)) for split, mean in zip(splits.values(), means, strict=True)])
    for name, options in TRAINED.items():
        routers = list(trained(*options))
        with torch.no_grad():
            values = [[split.routed(router(*split.output[:2])) for router in routers] for split in splits.values()]
        yield row(name, [np.mean(per_router, axis=0).tolist() for per_router in values])


def row(name: str, splits: list[list[float]]) -> str:
    return f"{name:32}" + "    ".join("".join(f"{100 * value:8.2f}" for value in values) for values in splits)


if __name__ == "__main__":
    report((line for context in run_contexts(sys.argv[1:]) for line in table(context)), "routers.txt")

"""Which router is best for its cost: trained ones and untrained ones, on the experts of one run.

    python benchmarks/routers.py runs/cifar100-lt-ride [--data.root FOLDER] [--data.val_spare 30]

Balanced accuracy in % at some mean costs, in times the first expert's, on validation images, by which the defaults were
chosen, and on test images. Trained routers differ in the weight of images that gain and in epochs; "margin",
"confidence" and "entropy" are of the mean logits or probabilities so far, and need no training.
Mean over SEEDS seeds of the router. Writes benchmarks/results/routers.txt.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from result import report
from torch import Tensor

from longtail.config.recipes import resolve
from longtail.data import build as data_build
from longtail.evaluation.flops import cost
from longtail.evaluation.routing import OperatingPoint, curve, oracle_curve, prefix_predictions, random_curve
from longtail.losses import router_targets
from longtail.models import build as model_build
from longtail.models.multi_expert import create_router
from longtail.runs.run import Run
from longtail.runtime.device import Runtime, pick_device
from longtail.training.cached_outputs import FrozenOutputs
from longtail.training.loop import fit, optim
from longtail.training.tasks import TrainRouter
from longtail.utils.ensembles import partial_ensembles

COSTS = (1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.7)
SEEDS = 3
TRAINED = {  # weight of images that gain, epochs, a last layer for each step
    "published: weight 100, 5 epochs": (100.0, 5, False),
    "weight 100, 50 epochs (default)": (100.0, 50, False),
    "weight 10, 50 epochs": (10.0, 50, False),
    "weight 4, 50 epochs": (4.0, 50, False),
    "weight 100, 50 epochs, per step": (100.0, 50, True),
    "weight 1, 50 epochs": (1.0, 50, False),
    "weight 4, 5 epochs": (4.0, 5, False),
}


def margin(means: Tensor) -> Tensor:
    best = means.topk(2, dim=2).values
    return best[..., 1] - best[..., 0]


def confidence(means: Tensor) -> Tensor:
    return -means.softmax(dim=2).amax(dim=2).logit(eps=1e-9)


def entropy(means: Tensor) -> Tensor:
    return torch.special.entr(means.softmax(dim=2)).sum(dim=2) - 2


UNTRAINED: dict[str, Callable[[Tensor], Tensor]] = {"margin": margin, "confidence": confidence, "entropy": entropy}


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    report(table(Run.open(Path(sys.argv[1])), sys.argv[2:]), "routers.txt")


def table(run: Run, settings: list[str]) -> Iterator[str]:
    config = resolve(str(run.config_path), {}, settings)
    device = pick_device(config.device)
    model, metadata = run.load_model()
    model.to(device, memory_format=torch.channels_last).eval()
    dataset = data_build.load_data(config)
    assert dataset.val is not None, "the data set has no validation part"
    options = model_build.router_options(config)
    model.router = create_router(model, **options)
    price = cost(model, metadata.image_size)
    costs = [price.routed(k) for k in range(1, model.num_experts + 1)]
    prefix_costs = [price.prefix(k) for k in range(1, model.num_experts + 1)]

    # With features: every trained router is asked about the same ones.
    seen = {}
    for part, split in (("val", dataset.val), ("test", dataset.test)):
        loader = data_build.eval_loader(config, dataset, split, Runtime(device))
        with torch.inference_mode():
            outputs = [(*model(batch.inputs)[:2], batch.labels) for batch in loader.epoch(0)]
        seen[part] = tuple(torch.cat(values).cpu() for values in zip(*outputs, strict=True))
    source = data_build.shuffled_loader(config, dataset, Runtime(device))
    frozen = FrozenOutputs(model, source, batch_size=config.router.batch_size, cache_gib=64.0, seed=config.seed)

    def routers(weight: float, epochs: int, per_step: bool) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        how = replace(config, router=replace(config.router, epochs=epochs))
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            router = create_router(model, **(options | {"shared": not per_step})).to(device)
            optimizer = optim.router_optimizer(how, router)
            task = TrainRouter(router, weight)
            for _ in fit(task, frozen, optimizer, optim.router_learning_rate(how), epochs):
                pass
            yield router.eval().cpu()

    for part, (logits, _, labels) in seen.items():
        gains = router_targets(logits, labels).mean(dim=0).tolist()
        yield f"{part}: {len(labels)} images; share that gains by going on: {', '.join(f'{g:.1%}' for g in gains)}"
    yield ""
    heading = "".join(f"{c:8.2f}" for c in COSTS)
    yield f"{'mean cost (first expert = 1)':32}{heading}    {heading}"
    yield f"{'':32}{'val'.rjust(8)}{'':{8 * (len(COSTS) - 1)}}    {'test'.rjust(8)}"
    limits = {"random routing": random_line, "knows the labels": oracle_line}
    for name, line in limits.items():
        yield row(name, [line(*seen[part], prefix_costs) for part in seen])
    with torch.no_grad():
        for name, score in UNTRAINED.items():
            scored = [score(partial_ensembles(logits)[:, :-1]) for logits, _, _ in seen.values()]
            yield row(name, [at_costs(seen[part], own, costs) for part, own in zip(seen, scored, strict=True)])
        for name, (weight, epochs, per_step) in TRAINED.items():
            with torch.enable_grad():
                trained = list(routers(weight, epochs, per_step))
            means = [
                np.mean([at_costs(own, router(*own[:2]), costs) for router in trained], axis=0) for own in seen.values()
            ]
            yield row(name, means)


def row(name: str, parts: list) -> str:
    return f"{name:32}" + "    ".join("".join(f"{100 * value:8.2f}" for value in part) for part in parts)


def at_costs(seen: tuple[Tensor, ...], router_logits: Tensor, costs: list[int]) -> list[float]:
    logits, _, labels = seen
    points: list[OperatingPoint] = curve(prefix_predictions(logits) == labels[:, None], router_logits, labels, costs)
    return interpolated([(point.cost, point.balanced) for point in points], costs[0])


def random_line(logits: Tensor, _: Tensor, labels: Tensor, costs: list[int]) -> list[float]:
    right = prefix_predictions(logits) == labels[:, None]
    totals = torch.bincount(labels)
    weights = 1 / (totals * (totals > 0).sum()).double()[labels]
    return interpolated(random_curve((weights @ right.double()).tolist(), costs), costs[0])


def oracle_line(logits: Tensor, _: Tensor, labels: Tensor, costs: list[int]) -> list[float]:
    return interpolated(oracle_curve(prefix_predictions(logits) == labels[:, None], labels, costs), costs[0])


def interpolated(corners: list[tuple[float, float]], first: float) -> list[float]:
    x, y = zip(*sorted(corners), strict=True)
    return np.interp([c * first for c in COSTS], x, y).tolist()


if __name__ == "__main__":
    main()

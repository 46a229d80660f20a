"""Training steps before and after each thing that makes them faster: images a second and peak memory.

    python benchmarks/throughput.py                      # on the CPU
    python benchmarks/throughput.py --device cuda --batch_sizes 128 64

Each variant runs in a process of its own, which its peak memory is taken of; variants take turns, and the median of the
rounds counts. The loop is `longtail.training.loop.fit`, the batch is always the same one: data are not part of this.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from result import report
from torch import Tensor

from longtail.config.recipes import load_recipe
from longtail.models import build as model_build
from longtail.models.multi_expert import create_model
from longtail.runtime.device import Runtime, pick_device
from longtail.runtime.shard import ALL
from longtail.training.loop import fit, optim

RECIPES = {"cifar100-lt-ride": 128, "imagenet-lt-resnet50-ride": 4}
"""And the batch that each is measured with on a CPU."""


class Variant(NamedTuple):
    """What is done to make training faster."""

    channels_last: bool = True
    fused: bool = True
    precision: str = "float32"
    compile: bool = False


VARIANTS = {
    "before": Variant(channels_last=False, fused=False),
    "channels_last": Variant(fused=False),
    "+ fused optimiser": Variant(),
    "+ compile": Variant(compile=True),
    "bf16": Variant(precision="bf16"),
    "bf16 + compile": Variant(precision="bf16", compile=True),
}
"""The third is how longtail trains by default."""


class SameBatch:
    """A `Loader` that yields one batch again and again."""

    share = ALL

    def __init__(self, images: Tensor, labels: Tensor, steps: int):
        self.batch, self.steps = (images, labels), steps
        self.batch_size, self.num_images = len(images), len(images) * steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """The batch, as often as there are steps."""
        for _ in range(first, 2 if epoch == 1 else self.steps):  # the first epoch warms up, and compiles
            yield self.batch

    def labels(self, epoch: int) -> Tensor:
        """Those of the batches."""
        return self.batch[1].repeat(self.steps).cpu()


def measure(name: str, variant: Variant, batch_size: int, steps: int, device: torch.device) -> dict[str, float]:
    """One variant, in this process."""
    config = load_recipe(name, {"training.compile": variant.compile})
    architecture = model_build.planned_architecture(config)
    torch.manual_seed(0)
    model = create_model(**{key: value for key, value in architecture.items() if key != "router"}).to(device)
    size = architecture["image_size"]
    images = torch.randn(batch_size, 3, size, size, device=device)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    runtime = Runtime(device, variant.precision)
    counts = [max(1, 500 - 4 * number) for number in range(architecture["num_classes"])]
    task = model_build.experts_task(config, counts, model_build.for_training(config, model, runtime), None).to(device)
    optimizer = optim.optimizer(config, task)
    for group in optimizer.param_groups:
        group["fused"] = variant.fused
    loader = SameBatch(images, torch.randint(0, len(counts), (batch_size,), device=device), steps)
    records = list(fit(task, loader, optimizer, lambda epoch: 1e-4, 2, runtime=runtime))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": records[1]["images_per_second"], "peak": peak, "loss": records[1]["loss"]}


def measured(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(given: argparse.Namespace) -> Iterator[str]:
    memory = "peak of tensors" if given.device.startswith("cuda") else "peak resident"
    for number, name in enumerate(given.recipes):
        size = given.batch_sizes[number] if given.batch_sizes else RECIPES[name]
        yield f"{name}, {size} images a step, {given.steps} steps, {given.rounds} rounds"
        yield f"{'':20}{'images/s':>10}{'ratio':>8}{memory + ', MiB':>24}{'loss':>10}"
        found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in given.variants}
        for _ in range(given.rounds):
            for variant in given.variants:
                common = ["--device", given.device, "--steps", str(given.steps), "--threads", str(given.threads)]
                found[variant].append(measured(["--measure", variant, name, str(size), *common]))
        first = None
        for variant, results in found.items():
            if error := next((result["error"] for result in results if "error" in result), None):
                yield f"{variant:20}{error}"
                continue
            speed, peak, loss = (
                statistics.median(r[key] for r in results) for key in ("images_per_second", "peak", "loss")
            )
            first = first or speed
            yield f"{variant:20}{speed:>10,.1f}{speed / first:>8.2f}{peak:>24,.0f}{loss:>10.4f}"
        yield ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="one for each recipe")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure:
        variant, name, size = given.measure
        print(json.dumps(measure(name, VARIANTS[variant], int(size), given.steps, pick_device(given.device))))
    else:
        report(table(given), f"throughput-{given.device.partition(':')[0]}.txt")

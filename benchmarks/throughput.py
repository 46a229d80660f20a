"""The gain in training speed, and the peak memory, of each optimisation of the training step.

    python benchmarks/throughput.py                      # on the CPU
    python benchmarks/throughput.py --device cuda --batch_sizes 128 64

Each variant runs in its own process, whose peak memory is measured. Variants take turns, and the table shows the median
over rounds. The loop is `longtail.training.loop.fit`. The batch is always the same, so data loading is not measured.
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
from longtail.data.loaders import Batch
from longtail.losses.build import build_criterion
from longtail.models.multi_expert import compile_model, create_model
from longtail.runs.context import planned_architecture
from longtail.runtime.device import Runtime, pick_device
from longtail.runtime.shard import SINGLE_SHARD
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import optimizer
from longtail.training.tasks import TrainExperts
from longtail.utils.choices import Precision

RECIPES = {"cifar100-lt-ride": 128, "imagenet-lt-resnet50-ride": 4}
"""Recipe -> batch size on a CPU"""


class Variant(NamedTuple):
    """A selection of optimisations."""

    channels_last: bool = True
    fused: bool = True
    """The fused optimizer"""
    precision: Precision = "float32"
    compile: bool = False


VARIANTS = {
    "before": Variant(channels_last=False, fused=False),
    "channels_last": Variant(fused=False),
    "+ fused optimizer": Variant(),
    "+ compile": Variant(compile=True),
    "bf16": Variant(precision="bf16"),
    "bf16 + compile": Variant(precision="bf16", compile=True),
}
"""The third is the default of longtail"""


class SameBatch:
    """A `Loader` that repeats one batch. The first epoch has two steps: it warms up, and compiles."""

    shard = SINGLE_SHARD

    def __init__(self, images: Tensor, labels: Tensor, steps: int):
        self.batch, self.steps = Batch(images, labels), steps
        self.batch_size, self.num_images = len(images), len(images) * steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the batch again and again."""
        for _ in range(first, 2 if epoch == 1 else self.steps):
            yield self.batch

    def labels(self, epoch: int) -> Tensor:
        """Returns the labels of an epoch, (num_images,)."""
        return self.batch.labels.repeat(self.steps).cpu()


def measure(recipe: str, variant: Variant, batch_size: int, steps: int, device: torch.device) -> dict[str, float]:
    """Measures a variant in this process."""
    config = load_recipe(recipe)
    architecture = planned_architecture(config)
    torch.manual_seed(0)
    model = create_model(**{key: value for key, value in architecture.items() if key != "router"}).to(device)
    size, num_classes = architecture["image_size"], architecture["num_classes"]
    images = torch.randn(batch_size, 3, size, size, device=device)
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    counts = [max(1, 500 - 4 * number) for number in range(num_classes)]
    criterion = build_criterion(config.loss, counts, config.training.epochs, config.model.scale)
    task = TrainExperts(compile_model(model) if variant.compile else model, criterion).to(device)
    updates = optimizer(config.training, task)
    for group in updates.param_groups:
        group["fused"] = variant.fused
    loader = SameBatch(images, torch.randint(0, num_classes, (batch_size,), device=device), steps)
    options = LoopOptions(runtime=Runtime(device, variant.precision))
    _, record = fit(task, loader, updates, lambda epoch: 1e-4, 2, options)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images_per_second": record["images_per_second"], "peak": peak, "loss": record["loss"]}


def measure_in_new_process(arguments: list[str]) -> dict[str, Any]:
    """Returns the results of `measure`, or the last line of its error."""
    process = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or ["no message"])[-1]}
    results: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return results


def table(options: argparse.Namespace) -> Iterator[str]:
    memory = "peak of tensors" if options.device.startswith("cuda") else "peak resident"
    for number, recipe in enumerate(options.recipes):
        size = options.batch_sizes[number] if options.batch_sizes else RECIPES[recipe]
        yield f"{recipe}, {size} images per step, {options.steps} steps, {options.rounds} rounds"
        yield f"{'':20}{'images/s':>10}{'ratio':>8}{memory + ', MiB':>24}{'loss':>10}"
        measured: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
        common = ["--device", options.device, "--steps", str(options.steps), "--threads", str(options.threads)]
        for _ in range(options.rounds):
            for variant in options.variants:
                results = measure_in_new_process(["--measure", variant, recipe, str(size), *common])
                measured[variant].append(results)
        first = None
        for variant, rounds in measured.items():
            if error := next((results["error"] for results in rounds if "error" in results), None):
                yield f"{variant:20}{error}"
                continue
            speed, peak, loss = (
                statistics.median(results[key] for results in rounds) for key in ("images_per_second", "peak", "loss")
            )
            first = first or speed
            yield f"{variant:20}{speed:>10,.1f}{speed / first:>8.2f}{peak:>24,.0f}{loss:>10.4f}"
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, help="one for each recipe")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        variant, recipe, size = options.measure
        device = pick_device(options.device)
        print(json.dumps(measure(recipe, VARIANTS[variant], int(size), options.steps, device)))
    else:
        report(table(options), f"throughput-{options.device.partition(':')[0]}.txt")


if __name__ == "__main__":
    main()

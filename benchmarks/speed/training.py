"""Training CIFAR RIDE-3 (resnet32, 3 narrow experts) from pixels in memory to updated weights, against the plain way.

    python benchmarks/speed/training.py                      # on the CPU
    python benchmarks/speed/training.py --device cuda --steps 200

Data and augmentation are part of it. Each variant runs in a process of its own, rounds in turn; images a second are the
median over rounds, without the first steps. Other columns:

- of matmul: arithmetic of convolutions and linear layers (three times the forward pass's, 2 FLOPs for a
  multiply-accumulate) as a share of what a product of large matrices reaches on the same device and threads in the
  variant's precision
- epoch: seconds for the 10,847 images of CIFAR-100-LT at that rate
- first step: seconds to the end of the first step, from the start of the program and from the call of the training
  function, which has the pixels and makes model, loader and optimiser; in the first round, with nothing compiled yet
- per CPU s: images in a second of the training process's own processor time, without the workers of a DataLoader; on
  one thread it is images a second, but where the machine was busy with other things
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS, NUM_IMAGES, matmul_rates, pictures, synchronise
from result import report

RECIPE = "cifar100-lt-ride"


class Variant(NamedTuple):
    """How training is computed."""

    plain: bool = False
    precision: str = "float32"
    compile: bool = False


VARIANTS = {
    "baseline": Variant(plain=True),
    "longtail": Variant(),
    "longtail, bf16": Variant(precision="bf16"),
    "longtail, compiled": Variant(compile=True),
    "longtail, bf16, compiled": Variant(precision="bf16", compile=True),
}


class Stopwatch:
    """Is told of every step; reads the clocks after the first one and around those that are measured."""

    def __init__(self, called: float, warmup: int, steps: int, device: torch.device):
        self.called, self.warmup, self.last, self.device = called, warmup, warmup + steps, device
        self.first = 0.0
        self.now: list[tuple[float, float]] = []

    def step(self, done: int) -> bool:
        """Whether that was the last one."""
        if done == 1:
            synchronise(self.device)
            self.first = time.time()
        if done in (self.warmup, self.last):
            synchronise(self.device)
            self.now.append((time.perf_counter(), time.process_time()))
        return done >= self.last

    def found(self, started: float) -> dict[str, float]:
        """What the table is made of."""
        (start, cpu_start), (end, cpu_end) = self.now
        images = (self.last - self.warmup) * BATCH_SIZE
        return {
            "images_per_second": images / (end - start),
            "images_per_cpu_second": images / (cpu_end - cpu_start),
            "first_from_start": self.first - started,
            "first_from_call": self.first - self.called,
        }


class Enough(Exception):
    """All steps are done."""


def baseline(variant: Variant, pixels: Any, labels: Any, device: torch.device, watch: Callable[[int], bool]) -> None:
    from baseline import plain, plain_loader, train_step

    model, criterion, config = parts(device)
    plain(model).train()
    training = config.training
    optimizer = torch.optim.SGD(
        model.parameters(),
        training.learning_rate,
        training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    loader = plain_loader(pixels, labels, BATCH_SIZE, True, device)
    done = 0
    while True:
        for images, targets in loader:
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            train_step(model, criterion, optimizer, images, targets, 1)
            done += 1
            if watch(done):
                return


def longtail_way(
    variant: Variant, pixels: Any, labels: Any, device: torch.device, watch: Callable[[int], bool]
) -> None:
    from baseline import AUGMENTATION, MEAN, STD

    from longtail.data.loaders import MemoryLoader, Normalise
    from longtail.data.splits import ImageSplit
    from longtail.models.multi_expert import compile_model
    from longtail.runtime.device import Runtime
    from longtail.training.loop import fit, optim
    from longtail.training.tasks import TrainExperts

    model, criterion, config = parts(device)
    model = model.to(memory_format=torch.channels_last)
    task = TrainExperts(compile_model(model) if variant.compile else model, criterion)
    split, normalise = ImageSplit(labels, pixels), Normalise(MEAN, STD, device)
    loader = MemoryLoader(split, BATCH_SIZE, device=device, normalise=normalise, shuffle=True, **AUGMENTATION)
    total = 0

    def on_step(done: int, rate: float, loss: float | None) -> None:
        nonlocal total
        total += 1
        if watch(total):
            raise Enough

    runtime = Runtime(device, variant.precision)
    rate = config.training.learning_rate
    try:
        with runtime.tf32(True):
            list(fit(task, loader, optim.optimizer(config, task), lambda _: rate, 10**6, on_step, runtime=runtime))
    except Enough:
        pass


def parts(device: torch.device) -> tuple[Any, Any, Any]:
    """The same weights, loss and settings for both ways."""
    from longtail.config.recipes import load_recipe
    from longtail.models import build as model_build
    from longtail.models.multi_expert import create_model

    config = load_recipe(RECIPE, {"training.learning_rate": 0.001})  # pictures of noise teach nothing
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS).to(device)
    counts = [max(5, 500 - 5 * number) for number in range(NUM_CLASSES)]
    return model, model_build.criterion(config, counts).to(device), config


def measure(variant: Variant, device: torch.device, warmup: int, steps: int, started: float) -> dict[str, float]:
    """One variant, in this process."""
    pixels, labels = (part[: NUM_IMAGES // BATCH_SIZE * BATCH_SIZE] for part in pictures())  # whole batches
    watch = Stopwatch(time.time(), warmup, steps, device)
    (baseline if variant.plain else longtail_way)(variant, pixels, labels, device, watch.step)
    return watch.found(started)


def measured(name: str, given: argparse.Namespace, cache: str) -> dict[str, float]:
    """One variant, in a process of its own."""
    numbers = [f"--{key}={getattr(given, key)}" for key in ("device", "threads", "warmup", "steps")]
    command = [sys.executable, __file__, *numbers, "--measure", name, "--started", repr(time.time())]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(given: argparse.Namespace) -> Iterator[str]:
    from longtail.evaluation.flops import FLOPS_PER_MAC, cost
    from longtail.models.multi_expert import create_model
    from longtail.runtime.device import Runtime

    device = torch.device(given.device)
    flops = 3 * FLOPS_PER_MAC * cost(create_model("resnet32", NUM_CLASSES, NUM_EXPERTS), 32).total
    best = dict.fromkeys(("float32", "bf16"), 0.0)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.variants}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(given.rounds):
            with Runtime(device).tf32(True):  # as training has it
                rates = matmul_rates(device)
            best = {precision: max(best[precision], rate) for precision, rate in rates.items()}
            for name in given.variants:
                found[name].append(measured(name, given, cache))
    yield f"CIFAR RIDE-{NUM_EXPERTS}, {BATCH_SIZE} images a step, {given.steps} steps, {given.rounds} rounds"
    yield f"products of large matrices: {', '.join(f'{p} {rate / 1e9:,.0f} GFLOP/s' for p, rate in best.items())}"
    yield ""
    yield f"{'':26}{'images/s':>9}{'ratio':>7}{'of matmul':>11}{'epoch':>9}{'first step, from':>20}{'per':>10}"
    yield f"{'':26}{'':>9}{'':>7}{'':>11}{'':>9}{'start':>12}{'call':>8}{'CPU s':>10}"
    first = None
    for name, results in found.items():
        rate, cpu = (statistics.median(r[f"images_per_{unit}"] for r in results) for unit in ("second", "cpu_second"))
        first = first or rate
        share = flops * rate / best[VARIANTS[name].precision]
        starts = f"{results[0]['first_from_start']:>10.1f} s{results[0]['first_from_call']:>6.1f} s"
        yield f"{name:26}{rate:>9.1f}{rate / first:>7.2f}{share:>10.1%} {NUM_IMAGES / rate:>7.1f} s{starts}{cpu:>10.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--warmup", type=int, default=3, help="steps before those that are measured")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=1, help="each compiles anew only in the first")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure:
        found = measure(VARIANTS[given.measure], torch.device(given.device), given.warmup, given.steps, given.started)
        print(json.dumps(found))
    else:
        report(table(given), f"speed-training-{given.device.partition(':')[0]}.txt")

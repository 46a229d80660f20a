"""Training speed of CIFAR RIDE (resnet32, 3 narrow experts), compared with a baseline.

    python benchmarks/speed/training.py                      # on the CPU
    python benchmarks/speed/training.py --device cuda --steps 200

A step is everything from pixels in memory to updated weights, including data loading and augmentation. Each variant
runs in its own process. The variants take turns, and the table shows the median over rounds. Columns:

- images/s: without the warm-up steps.
- ratio: images/s relative to the first variant.
- of matmul: the arithmetic of convolutions and linear layers (3 times that of the forward pass, 2 FLOPs per
  multiply-accumulate), as a share of the peak speed of large matrix products on the same device, with the same threads
  and precision.
- epoch: seconds for the 10,847 images of CIFAR-100-LT at this speed.
- first step: seconds until the end of the first step, from the start of the program, and from the call of the training
  function. The function gets pixels and makes model, loader and optimizer. Measured in the first round, in which
  nothing is compiled yet.
- per CPU s: images per second of processor time of the training process, without the workers of a DataLoader. On one
  thread it equals images/s, unless the machine is busy with other work.
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
from typing import NamedTuple

import numpy as np
import torch
from baseline import MEAN, PADDING, ROTATION, STD, plain_loader, to_plain, train_step
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS, NUM_IMAGES, matmul_rates, noise_images, synchronize
from result import report

from longtail.config.recipes import load_recipe
from longtail.data.loaders import BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.evaluation.flops import FLOPS_PER_MAC, cost
from longtail.losses import Criterion
from longtail.losses.build import build_criterion
from longtail.models.multi_expert import MultiExpert, compile_model, create_model
from longtail.runtime.device import Runtime
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import optimizer
from longtail.training.tasks import TrainExperts
from longtail.utils.choices import Precision

CONFIG = load_recipe("cifar100-lt-ride", {"training.learning_rate": 0.001})  # low, because the labels are random


class Variant(NamedTuple):
    """How training is computed."""

    plain: bool = False
    precision: Precision = "float32"
    compile: bool = False
    graph: bool = True
    """Steps are captured as CUDA graphs, on a GPU"""


VARIANTS = {
    "baseline": Variant(plain=True),
    "longtail": Variant(),
    "longtail, single launches": Variant(graph=False),
    "longtail, bf16": Variant(precision="bf16"),
    "longtail, compiled": Variant(compile=True),
    "longtail, bf16, compiled": Variant(precision="bf16", compile=True),
}


class StepTimer:
    """Reads the clocks after the first step, after the warm-up and after the last step."""

    def __init__(self, warmup: int, steps: int, device: torch.device):
        self.warmup, self.last, self.device = warmup, warmup + steps, device
        self.called = time.time()
        self.first = 0.0
        self.clocks: list[tuple[float, float]] = []
        self.done = 0

    def step(self) -> bool:
        """Counts a step; returns whether it was the last one."""
        self.done += 1
        if self.done == 1:
            synchronize(self.device)
            self.first = time.time()
        if self.done in (self.warmup, self.last):
            synchronize(self.device)
            self.clocks.append((time.perf_counter(), time.process_time()))
        return self.done >= self.last

    def results(self, started: float) -> dict[str, float]:
        """Returns speeds and times; ``started`` is the time at which the program was started."""
        (start, cpu_start), (end, cpu_end) = self.clocks
        images = (self.last - self.warmup) * BATCH_SIZE
        return {
            "images_per_second": images / (end - start),
            "images_per_cpu_second": images / (cpu_end - cpu_start),
            "first_from_start": self.first - started,
            "first_from_call": self.first - self.called,
        }


class AllStepsDone(Exception):
    """Leaves the training loop of longtail."""


def train_baseline(
    pixels: np.ndarray, labels: np.ndarray, device: torch.device, workers: int, last_step: Callable[[], bool]
) -> None:
    """Trains as the original code does."""
    model, criterion = model_and_criterion(device)
    to_plain(model).train()
    training = CONFIG.training
    sgd = torch.optim.SGD(
        model.parameters(),
        training.learning_rate,
        training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    loader = plain_loader(pixels, labels, BATCH_SIZE, True, device, workers)
    while True:
        for images, targets in loader:
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            train_step(model, criterion, sgd, images, targets)
            if last_step():
                return


def train_longtail(
    variant: Variant, pixels: np.ndarray, labels: np.ndarray, device: torch.device, last_step: Callable[[], bool]
) -> None:
    """Trains with longtail's loop."""
    model, criterion = model_and_criterion(device)
    model = model.to(memory_format=torch.channels_last)
    task = TrainExperts(compile_model(model) if variant.compile else model, criterion)
    loader = MemoryLoader(
        ImageSplit(labels, pixels),
        EpochOrder(len(labels), BATCH_SIZE, shuffle=True),
        device=device,
        normalise=Normalise(MEAN, STD, device),
        augmentation=BatchAugmentation(PADDING, flip=True, rotation=ROTATION),
    )

    def on_step(done: int, learning_rate: float, loss: float | None) -> None:
        if last_step():
            raise AllStepsDone

    runtime, rate = Runtime(device, variant.precision), CONFIG.training.learning_rate
    graph_phase = criterion.phase if variant.graph and runtime.can_capture else None
    options = LoopOptions(runtime=runtime, graph_phase=graph_phase, on_step=on_step)
    try:
        with runtime.tf32(True):
            list(fit(task, loader, optimizer(CONFIG.training, task), lambda epoch: rate, 10**6, options))
    except AllStepsDone:
        pass


def model_and_criterion(device: torch.device) -> tuple[MultiExpert, Criterion]:
    """Returns the same weights and loss for all variants."""
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS).to(device)
    counts = [max(5, 500 - 5 * number) for number in range(NUM_CLASSES)]
    criterion = build_criterion(CONFIG.loss, counts, CONFIG.training.epochs, CONFIG.model.scale)
    return model, criterion.to(device)


def measure(variant: Variant, options: argparse.Namespace) -> dict[str, float]:
    """Measures a variant in this process."""
    device = torch.device(options.device)
    full_batches = NUM_IMAGES // BATCH_SIZE * BATCH_SIZE
    pixels, labels = (part[:full_batches] for part in noise_images())
    timer = StepTimer(options.warmup, options.steps, device)
    if variant.plain:
        train_baseline(pixels, labels, device, options.workers, timer.step)
    else:
        train_longtail(variant, pixels, labels, device, timer.step)
    return timer.results(options.started)


def measure_in_new_process(name: str, options: argparse.Namespace, compile_cache: str) -> dict[str, float]:
    """Measures a variant in a new process."""
    numbers = [f"--{key}={getattr(options, key)}" for key in ("device", "threads", "workers", "warmup", "steps")]
    command = [sys.executable, __file__, *numbers, "--measure", name, "--started", repr(time.time())]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": compile_cache, "OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise SystemExit(f"{name}: {(process.stderr.strip().splitlines() or ['no message'])[-1]}")
    results: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return results


def table(options: argparse.Namespace) -> Iterator[str]:
    device = torch.device(options.device)
    flops = 3 * FLOPS_PER_MAC * cost(create_model("resnet32", NUM_CLASSES, NUM_EXPERTS), 32).total
    best = dict.fromkeys(("float32", "bf16"), 0.0)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(options.rounds):
            with Runtime(device).tf32(True):  # as in training
                rates = matmul_rates(device)
            best = {precision: max(best[precision], rate) for precision, rate in rates.items()}
            for name in options.variants:
                measured[name].append(measure_in_new_process(name, options, cache))
    yield f"CIFAR RIDE-{NUM_EXPERTS}, {BATCH_SIZE} images per step, {options.steps} steps, {options.rounds} rounds"
    yield f"large matrix products: {', '.join(f'{p} {rate / 1e9:,.0f} GFLOP/s' for p, rate in best.items())}"
    yield ""
    yield f"{'':26}{'images/s':>9}{'ratio':>7}{'of matmul':>11}{'epoch':>9}{'first step, from':>20}{'per':>10}"
    yield f"{'':26}{'':>9}{'':>7}{'':>11}{'':>9}{'start':>12}{'call':>8}{'CPU s':>10}"
    first = None
    for name, results in measured.items():
        rate, cpu = (statistics.median(r[f"images_per_{unit}"] for r in results) for unit in ("second", "cpu_second"))
        first = first or rate
        share = flops * rate / best[VARIANTS[name].precision]
        starts = f"{results[0]['first_from_start']:>10.1f} s{results[0]['first_from_call']:>6.1f} s"
        yield f"{name:26}{rate:>9.1f}{rate / first:>7.2f}{share:>10.1%} {NUM_IMAGES / rate:>7.1f} s{starts}{cpu:>10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--workers", type=int, default=2, help="processes that augment images for the baseline")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the measured ones")
    parser.add_argument("--steps", type=int, default=15, help="measured steps")
    parser.add_argument("--rounds", type=int, default=1, help="only the first round compiles")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        print(json.dumps(measure(VARIANTS[options.measure], options)))
    else:
        report(table(options), f"speed-training-{options.device.partition(':')[0]}.txt")


if __name__ == "__main__":
    main()

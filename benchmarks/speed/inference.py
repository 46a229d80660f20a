"""ModelOutputs of CIFAR RIDE-3 (resnet32, 3 narrow experts) to pixels in memory, against the plain way.

    python benchmarks/speed/inference.py                      # on the CPU
    python benchmarks/speed/inference.py --device cuda --images 10752 --seconds 5

Preparing the pictures is part of it. All variants take turns on the same pictures in one process, after a turn that is
not pluralize; the median of the rounds counts. Pictures are noise and the network untrained, but for running statistics
of its batch norms; what a router of random weights says of the pictures is cut where 41, 10 and 49 % of them see 1, 2
and 3 experts, as with RIDE's published one. Ratios and differences are to the baseline that asks as many experts. "of
matmul" and "per CPU s" are as in training.py. "difference" is the largest one between two logits, as a share of the
largest logit; of routed answers, rounding may also give a picture another number of experts.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from baseline import MEAN, STD, plain, plain_loader
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS, matmul_rates, pictures, synchronise
from result import report
from torch import Tensor

from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.evaluation.flops import FLOPS_PER_MAC, cost
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runtime.device import Runtime

SHARES = (0.41, 0.10, 0.49)
"""Of the images that see 1, 2 and 3 experts: published RIDE on CIFAR-100-LT."""


def network(loader: MemoryLoader, device: torch.device) -> MultiExpert:
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS, router={}).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        for (images, _), _ in zip(loader.epoch(0), range(2), strict=False):
            model.train()(images)
    return model.eval()


def limits(model: MultiExpert, loader: MemoryLoader) -> list[float]:
    """Thresholds that give the pictures as many experts as `SHARES` says."""
    assert model.router is not None
    outputs = [model(batch.inputs) for batch in loader.epoch(0)]
    going = torch.cat([model.router(output.logits, output.features) for output in outputs]).sigmoid()
    first = going[:, 0].quantile(SHARES[0])
    second = going[going[:, 0] > first, 1].quantile(SHARES[1] / (1 - SHARES[0]))
    return [first.item(), second.item()]


def table(given: argparse.Namespace) -> Iterator[str]:
    device = torch.device(given.device)
    pixels, labels = (part[: given.images] for part in pictures())
    ours = MemoryLoader(ImageSplit(labels, pixels), BATCH_SIZE, device=device, normalise=Normalise(MEAN, STD, device))
    theirs = plain_loader(pixels, labels, BATCH_SIZE, False, device)
    model = network(ours, device)
    faster, before = fuse_batch_norms(model, 32), plain(copy.deepcopy(model))
    with torch.inference_mode(), Runtime(device).tf32(False):
        thresholds = limits(model, ours)
        used = torch.cat([model.route(images, thresholds).experts_used for images, _ in ours.epoch(0)])
    shares = (torch.bincount(used, minlength=NUM_EXPERTS + 1)[1:] / len(used)).tolist()

    def answer(model: MultiExpert, precision: str, routed: bool = False) -> Callable[[], Tensor]:
        runtime = Runtime(device, precision)

        def run() -> Tensor:
            with torch.inference_mode(), runtime.tf32(False), runtime.autocast():
                if model is before:
                    batches = (images.to(device, non_blocking=True) for images, _ in theirs)
                else:
                    batches = (images for images, _ in ours.epoch(0))
                said = [model.route(batch, thresholds).logits if routed else model(batch).ensemble for batch in batches]
                return torch.cat(said)

        return run

    # Name -> what answers, in which precision, MACs an image.
    price = cost(model, 32)
    everything, routed = price.total, price.expected(shares)
    variants = {
        "baseline": (answer(before, "float32"), "float32", everything),
        "all experts": (answer(model, "float32"), "float32", everything),
        "all experts, fuse_batch_norms": (answer(faster, "float32"), "float32", everything),
        "all experts, fuse_batch_norms, bf16": (answer(faster, "bf16"), "bf16", everything),
        "baseline, routed": (answer(before, "float32", True), "float32", routed),
        "routed": (answer(model, "float32", True), "float32", routed),
        "routed, fuse_batch_norms": (answer(faster, "float32", True), "float32", routed),
        "routed, fuse_batch_norms, bf16": (answer(faster, "bf16", True), "bf16", routed),
    }
    said = {name: run() for name, (run, _, _) in variants.items()}
    rates = matmul_rates(device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + given.seconds * len(variants)
    while not seconds["baseline"] or time.perf_counter() < end:
        for name, (run, _, _) in variants.items():
            synchronise(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            run()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
    yield f"CIFAR RIDE-{NUM_EXPERTS}, {given.images} images, {BATCH_SIZE} at a time, {len(seconds['baseline'])} rounds"
    yield f"routed: {', '.join(f'{share:.0%}' for share in shares)} of the images see 1, 2, 3 experts (float32)"
    yield f"products of large matrices: {', '.join(f'{p} {rate / 1e9:,.0f} GFLOP/s' for p, rate in rates.items())}"
    yield ""
    yield f"{'':26}{'images/s':>9}{'ratio':>7}{'of matmul':>11}{'per CPU s':>11}{'difference':>12}"
    first: dict[bool, float] = {}
    for name, (_, precision, macs) in variants.items():
        rate, own = (given.images / statistics.median(clock[name]) for clock in (seconds, cpu))
        plain_rate = first.setdefault("routed" in name, rate)
        share = FLOPS_PER_MAC * macs * rate / rates[precision]
        right = said["baseline, routed" if "routed" in name else "baseline"]
        apart = ((said[name] - right).abs().max() / right.abs().max()).item()
        yield f"{name:26}{rate:>9.1f}{rate / plain_rate:>7.2f}{share:>11.1%}{own:>11.1f}{apart:>12.1e}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each variant, about")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    report(table(given), f"speed-inference-{given.device.partition(':')[0]}.txt")

"""Inference speed of CIFAR RIDE (resnet32, 3 narrow experts) from pixels in memory, compared with a baseline.

    python benchmarks/speed/inference.py                      # on the CPU
    python benchmarks/speed/inference.py --device cuda --images 10752 --seconds 5

The time includes preprocessing. All variants take turns on the same images in one process, after a warm-up round. The
table shows the median over rounds. Images are noise. The model is untrained, except for the running statistics of its
batch norms. The thresholds of its random router are chosen so that 41, 10 and 49 % of the images use 1, 2 and 3
experts, as with RIDE's published router.

Ratio and difference are relative to the baseline with the same experts. The columns "of matmul" and "per CPU s" are
those of training.py. "difference" is the largest difference between two logits, divided by the largest logit. With
routing, rounding can also change the number of experts of an image.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from baseline import MEAN, STD, plain_loader, to_plain
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS, matmul_rates, noise_images, synchronize
from result import report
from torch import Tensor

from longtail.data.loaders import EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.evaluation.flops import FLOPS_PER_MAC, cost
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runtime.device import Runtime
from longtail.utils.choices import Precision

SHARES = (0.41, 0.10, 0.49)
"""Fractions of the images that use 1, 2 and 3 experts: published RIDE on CIFAR-100-LT"""


class Variant(NamedTuple):
    """A way to compute the logits of all images."""

    compute: Callable[[], Tensor]
    """Returns (N, C)"""
    precision: Precision
    macs: float
    """Multiply-accumulates for one image"""
    routed: bool


def calibrated_model(loader: MemoryLoader, device: torch.device) -> MultiExpert:
    """Returns an untrained model with a router; its batch norms have statistics of the images."""
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS, router={}).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        for batch, _ in zip(loader.epoch(0), range(2), strict=False):
            model.train()(batch.inputs)
    return model.eval()


def thresholds_for_shares(model: MultiExpert, loader: MemoryLoader) -> list[float]:
    """Returns the threshold of each step with which the images use as many experts as in `SHARES`."""
    assert model.router is not None
    outputs = [model(batch.inputs) for batch in loader.epoch(0)]
    probabilities = torch.cat([model.router(output.logits, output.features) for output in outputs]).sigmoid()
    first = probabilities[:, 0].quantile(SHARES[0])
    second = probabilities[probabilities[:, 0] > first, 1].quantile(SHARES[1] / (1 - SHARES[0]))
    return [first.item(), second.item()]


def table(options: argparse.Namespace) -> Iterator[str]:
    device = torch.device(options.device)
    pixels, labels = (part[: options.images] for part in noise_images())
    order, normalise = EpochOrder(len(labels), BATCH_SIZE), Normalise(MEAN, STD, device)
    loader = MemoryLoader(ImageSplit(labels, pixels), order, device=device, normalise=normalise)
    pil_loader = plain_loader(pixels, labels, BATCH_SIZE, False, device)
    model = calibrated_model(loader, device)
    fused, plain = fuse_batch_norms(model, 32), to_plain(copy.deepcopy(model))
    with torch.inference_mode(), Runtime(device).tf32(False):
        thresholds = thresholds_for_shares(model, loader)
        used = torch.cat([model.route(batch.inputs, thresholds).experts_used for batch in loader.epoch(0)])
    shares = (torch.bincount(used, minlength=NUM_EXPERTS + 1)[1:] / len(used)).tolist()
    macs = cost(model, 32)

    def variant(model: MultiExpert, precision: Precision = "float32", routed: bool = False) -> Variant:
        runtime = Runtime(device, precision)

        def images() -> Iterator[Tensor]:
            if model is plain:
                return (images.to(device, non_blocking=True) for images, _ in pil_loader)
            return (batch.inputs for batch in loader.epoch(0))

        def compute() -> Tensor:
            with torch.inference_mode(), runtime.tf32(False), runtime.autocast():
                if routed:
                    return torch.cat([model.route(batch, thresholds).logits for batch in images()])
                return torch.cat([model(batch).ensemble for batch in images()])

        return Variant(compute, precision, macs.expected(shares) if routed else macs.total, routed)

    variants = {
        "baseline": variant(plain),
        "all experts": variant(model),
        "all experts, fused": variant(fused),
        "all experts, fused, bf16": variant(fused, "bf16"),
        "baseline, routed": variant(plain, routed=True),
        "routed": variant(model, routed=True),
        "routed, fused": variant(fused, routed=True),
        "routed, fused, bf16": variant(fused, "bf16", routed=True),
    }
    logits = {name: variant.compute() for name, variant in variants.items()}
    rates = matmul_rates(device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in variants}
    end = time.perf_counter() + options.seconds * len(variants)
    while not seconds["baseline"] or time.perf_counter() < end:
        for name, (compute, *_) in variants.items():
            synchronize(device)
            start, cpu_start = time.perf_counter(), time.process_time()
            compute()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    rounds = len(seconds["baseline"])
    yield f"CIFAR RIDE-{NUM_EXPERTS}, {options.images} images, {BATCH_SIZE} per batch, {rounds} rounds"
    yield f"routed: {', '.join(f'{share:.0%}' for share in shares)} of the images use 1, 2, 3 experts (float32)"
    yield f"large matrix products: {', '.join(f'{p} {rate / 1e9:,.0f} GFLOP/s' for p, rate in rates.items())}"
    yield ""
    yield f"{'':26}{'images/s':>9}{'ratio':>7}{'of matmul':>11}{'per CPU s':>11}{'difference':>12}"
    for name, (_, precision, image_macs, routed) in variants.items():
        baseline = "baseline, routed" if routed else "baseline"
        rate, cpu_rate = (options.images / statistics.median(times[name]) for times in (seconds, cpu_seconds))
        ratio = rate * statistics.median(seconds[baseline]) / options.images
        share = FLOPS_PER_MAC * image_macs * rate / rates[precision]
        expected = logits[baseline]
        difference = ((logits[name] - expected).abs().max() / expected.abs().max()).item()
        yield f"{name:26}{rate:>9.1f}{ratio:>7.2f}{share:>11.1%}{cpu_rate:>11.1f}{difference:>12.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=20.0, help="measured time of each variant, approximately")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report(table(options), f"speed-inference-{options.device.partition(':')[0]}.txt")


if __name__ == "__main__":
    main()

"""Images per second of a model: with the first experts, with all experts, and routed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longtail.models.multi_expert import MultiExpert

ROUNDS = 10
"""Target number of rounds"""


@dataclass(frozen=True)
class Speed:
    """Images per second: the median over rounds. In a round, all variants run in turn on the same images."""

    prefixes: list[float]
    """The first 1 to E experts (E)"""

    routed: float | None
    """None for a model without a router"""

    batch_size: int
    rounds: int


def images_per_second(
    model: MultiExpert,
    images: Tensor,
    batch_size: int,
    seconds: float = 1.0,
    *,
    num_views: int = 1,
) -> Speed:
    """Measures the first k experts for each k, and routing if the model has a router.

    In a round all variants run in turn on the same few batches, so that other load of the machine slows all of them
    alike. A warm-up before the first round compiles and allocates. An image counts once, however many views it has.

    Args:
        model: keeps its mode, training or evaluation.
        images: normalised (V * N, 3, H, W), on the model's device, all images of one view after those of another; the
            speed of routing depends on their content.
        batch_size: images in a batch, counting every view; the last batch may be smaller.
        seconds: measured time of each variant, approximately; at least one batch.
        num_views: V.
    """
    size = max(1, batch_size // num_views)
    views = (torch.split(view, size) for view in images.chunk(num_views))
    batches = [torch.cat(parts) for parts in zip(*views, strict=True)]
    variants: list[Callable[[Tensor], Any]] = [
        lambda batch, number=number: model(batch, experts=range(number))  # type: ignore[misc]
        for number in range(1, model.num_experts + 1)
    ]
    if model.router is not None:
        variants.append(lambda batch: model.route(batch, num_views=num_views))

    def measure(variant: Callable[[Tensor], Any], some_batches: list[Tensor]) -> float:
        _synchronize(images.device)
        start = time.perf_counter()
        for batch in some_batches:
            variant(batch)
        _synchronize(images.device)
        return time.perf_counter() - start

    was_training = model.training
    model.eval()
    rates: list[list[float]] = []
    with torch.inference_mode():
        for batch in {len(batch): batch for batch in (batches[0], batches[-1])}.values():  # one of each size
            for variant in variants:
                measure(variant, [batch])
        position, length = 0, 1
        end = time.perf_counter() + seconds * len(variants)
        while not rates or time.perf_counter() < end:
            some_batches = [batches[(position + i) % len(batches)] for i in range(length)]
            times = [measure(variant, some_batches) for variant in variants]
            rates.append([sum(map(len, some_batches)) / num_views / elapsed for elapsed in times])
            position += length
            # Short batches are measured several at a time: the synchronisation would add to the time of each.
            length = min(len(batches), max(1, int(length * seconds / ROUNDS / max(times))))
    model.train(was_training)

    medians = [statistics.median(variant_rates) for variant_rates in zip(*rates, strict=True)]
    routed = None if model.router is None else medians.pop()
    return Speed(medians, routed, batch_size, len(rates))


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

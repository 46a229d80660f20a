"""How many images a second a model answers, with few experts, with all, and routed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from longtail.models.multi_expert import MultiExpert
from longtail.models.router import THRESHOLD

TURNS = 10  # of each variant in the time it has


@dataclass(frozen=True)
class Speed:
    """Images a second: the median over rounds in which all variants take turns, on the same images."""

    prefixes: tuple[float, ...]
    """The first expert, the first two, ..., all (E)"""

    routed: float | None
    """None for a model without a router"""

    batch_size: int
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, ready for JSON."""
        return asdict(self) | {"prefixes": list(self.prefixes)}


def images_per_second(
    model: MultiExpert, images: Tensor, batch_size: int, seconds: float = 1.0, *, threshold: float = THRESHOLD
) -> Speed:
    """Measures the first k experts for each k, and the routing of a model that has a router.

    In a round every variant in turn answers the same few batches, so that whatever else the machine does slows all of
    them alike. A first round that is not pluralize compiles, allocates and warms up.

    Args:
        model: is left as it was, in training or in evaluation mode.
        images: normalised (N, 3, H, W), on the model's device; a routing's speed depends on what they show.
        batch_size: images at a time; a last batch may be smaller.
        seconds: about how long each variant is measured, after the first round; one batch at least.
        threshold: of the routing.
    """
    batches = torch.split(images, batch_size)
    variants: list[Callable[[Tensor], Any]] = [
        lambda batch, number=number: model(batch, experts=range(number))  # type: ignore[misc]
        for number in range(1, model.num_experts + 1)
    ]
    if model.router is not None:
        variants.append(lambda batch: model.route(batch, threshold))

    def timed(variant: Callable[[Tensor], Any], chosen: list[Tensor]) -> float:
        _wait(images.device)
        start = time.perf_counter()
        for batch in chosen:
            variant(batch)
        _wait(images.device)
        return time.perf_counter() - start

    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for shape in {len(batch): batch for batch in (batches[0], batches[-1])}.values():
            for variant in variants:
                timed(variant, [shape])
        rates: list[list[float]] = []
        position, length = 0, 1
        end = time.perf_counter() + seconds * len(variants)
        while not rates or time.perf_counter() < end:
            turn = [batches[(position + i) % len(batches)] for i in range(length)]
            times = [timed(variant, turn) for variant in variants]
            rates.append([sum(map(len, turn)) / own for own in times])
            position += length
            # Several batches a turn, where they are short: waiting for a device after each would be measured too.
            length = min(len(batches), max(1, int(length * seconds / TURNS / max(times))))
    model.train(was_training)

    medians = [statistics.median(own) for own in zip(*rates, strict=True)]
    return Speed(
        prefixes=tuple(medians[: model.num_experts]),
        routed=medians[-1] if model.router is not None else None,
        batch_size=batch_size,
        rounds=len(rates),
    )


def _wait(device: torch.device) -> None:
    """Until the device has done all that it was asked to."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

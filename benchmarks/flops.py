"""Our counts of multiply-accumulates, compared with those of the original RIDE and RIDE-Swin code and of the paper.

    python benchmarks/flops.py                # all, some minutes on one CPU core
    python benchmarks/flops.py ResNet32 tiny  # only models whose name contains one of these

All numbers are millions of multiply-accumulates for one image. The original RIDE counts with thop, which adds 2
(release 0.0.31) or 4 (release 0.1.1) for each output of a batch norm. RIDE-Swin has its own formulas. The last column
lists the causes of all differences. Needs ``LONGTAIL_GOLDEN``, a folder with all values of the original.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.golden import flops as golden_flops
from helpers.golden.flops import Comparison

from longtail.evaluation.flops import Cost, cost
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import create_model

BATCH_NORMS = "includes batch norms"


def main() -> None:
    wanted = sys.argv[1:] or [""]
    print(f"python benchmarks/flops.py, torch {torch.__version__.partition('+')[0]}; millions of multiply-accumulates")
    print(f"\n{'published':48} {'ours':>10} {'published':>10} {'differ':>8}  cause")
    for name, ours, theirs, digits, why in published():
        if any(text in name for text in wanted):
            print(f"{name:48} {ours / 1e6:10.{digits}f} {theirs / 1e6:10.{digits}f} {theirs / ours - 1:8.2%}  {why}")
    for release in golden_flops.THOP:
        show(f"thop {release}", (c for network in golden_flops.NETWORKS for c in compare(network, release, wanted)))
    show(
        "RIDE-Swin",
        (c for size in ("tiny", "small") if any(text in size for text in wanted) for c in golden_flops.swin(size)),
    )


def compare(network: str, release: str, wanted: list[str]) -> Iterator[Comparison]:
    """Yields the comparisons of a network if its name is wanted."""
    if any(text in network for text in wanted):
        yield from golden_flops.ride(release, network)


def show(counter: str, comparisons: Iterator[Comparison]) -> None:
    """Prints a row for each network, with the causes of the difference."""
    print(f"\n{counter:76} {'ours':>10} {'theirs':>10} {'differ':>7} {'unexplained':>11}  causes (millions)")
    for comparison in comparisons:
        name, ours, theirs, terms = comparison
        unexplained = comparison.unexplained
        why = ", ".join(f"{what} {macs / 1e6:+.4f}" for what, macs in terms.items() if macs)
        exact = "0" if abs(unexplained) < 1e-3 else f"{unexplained / 1e6:.4f}"
        name = name.replace("ea_percentage", "routed")
        print(
            f"{name:76} {ours / 1e6:10.3f} {theirs / 1e6:10.3f} {theirs / ours - 1:7.2%} {exact:>11}  {why}", flush=True
        )


def published() -> Iterator[tuple[str, float, float, int, str]]:
    """Yields name, our count, the published number, its decimals in millions, and the cause of the difference."""
    ride, rounded = model_cost("resnet32", 100, 4), "rounding"
    full = model_cost("resnet32", 100, 1, width="full", head="linear")
    yield "CIFAR ResNet-32", full.total, 68.9e6, 1, rounded
    yield "CIFAR ResNet-32 RIDE, trunk", ride.trunk, 24.0e6, 1, rounded
    yield "CIFAR ResNet-32 RIDE, an expert", ride.branches[0] + ride.heads[0], 25.4e6, 1, rounded
    for experts, printed in ((2, 74.9e6), (3, 100.4e6), (4, 125.8e6)):
        yield f"CIFAR ResNet-32 RIDE, {experts} experts", ride.prefix(experts), printed, 1, rounded
    for title, name, classes, single, three, why in (
        ("ResNeXt-50", "resnext50_32x4d", 1000, 4.26e9, 6.08e9, f"{BATCH_NORMS}: thop 0.0.31 gives 4.26"),
        ("ResNet-50", "resnet50", 8142, 4.14e9, 5.80e9, f"{BATCH_NORMS}: thop 0.0.31 gives 4.13, thop 0.1.1 4.15"),
    ):
        plain = model_cost(name, classes, 1, width="full", head="linear").total
        yield title, plain, single, 0, why
        why = f"{BATCH_NORMS}, but not the cosine heads"
        yield f"{title} RIDE, 3 experts", model_cost(name, classes, 3).total, three, 0, why


def model_cost(name: str, num_classes: int, num_experts: int, **options: str) -> Cost:
    """Returns the cost of a model with the original's image size."""
    with torch.device("meta"), skip_init():
        model = create_model(name, num_classes, num_experts, **options)
    return cost(model, 32 if num_classes == 100 else 224)


if __name__ == "__main__":
    main()

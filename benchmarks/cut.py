"""Splits backbones of all kinds into trunk and branch, and compares them with the complete network.

    python benchmarks/cut.py                    # all networks that the tests split, a minute or two on a CPU
    python benchmarks/cut.py swin convnext      # only networks whose name contains one of these

Full width, in eval mode and float32, with the same weights. "add up" is whether trunk, one branch and neck have as many
parameters as the network. "difference" is the largest of |neck(branch(trunk(x))) - network(x)|, relative to the largest
|network(x)|. Transformers whose blocks are all equal have fewer blocks than published, as in the tests. The last rows
are networks that cannot be split, with the error message.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from helpers.networks import HIERARCHICAL, PLAIN, UNSPLITTABLE, options
from result import report

from longtail.models.backbones import backbone
from longtail.models.multi_expert import create_model
from longtail.models.split import split_backbone
from longtail.utils.errors import InputError

SIZES = HIERARCHICAL | PLAIN
COLUMNS = ("image", "      trunk", "     branch", "   neck", "    network", "add up", "difference")


def row(name: str) -> str:
    size = SIZES[name]
    new_network = backbone(name, **options(name, size))

    def build() -> torch.nn.Module:
        torch.manual_seed(0)  # the same weights in each call
        return new_network().eval()

    network = build()
    trunk, (branch,), neck, _ = split_backbone(build, num_branches=1)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        features = network(images)
        difference = (neck(branch(trunk(images))) - features).abs().max() / features.abs().max()
    parts = [sum(p.numel() for p in module.parameters()) for module in (trunk, branch, neck)]
    total = sum(p.numel() for p in network.parameters())
    verdict = "yes" if sum(parts) == total else "NO"
    numbers = [f"{number:{len(column)},}" for number, column in zip([*parts, total], COLUMNS[1:5], strict=True)]
    return "  ".join([f"{size:5}", *numbers, f"{verdict:>6}", f"{difference.item():10.1e}"])


def error_message(name: str) -> str:
    try:
        create_model(name, num_classes=2, width="full")
    except InputError as error:
        return str(error)
    return "CAN BE SPLIT"


def table() -> Iterator[str]:
    wanted = sys.argv[1:] or [""]
    names = [name for name in (*SIZES, *UNSPLITTABLE) if any(text in name for text in wanted)]
    width = max(map(len, (*SIZES, *UNSPLITTABLE)))
    yield "  ".join(["network".ljust(width), *COLUMNS])
    for name in names:
        yield f"{name:{width}}  {row(name) if name in SIZES else error_message(name)}"


if __name__ == "__main__":
    report(table(), "cut.txt")

"""The cut over networks of all kinds: the parts' parameters, and how far their features are from the whole network's.

    python benchmarks/cut.py                    # all networks that the tests cut, a minute or two on a CPU
    python benchmarks/cut.py swin convnext      # those whose name has one of these in it

Full width and the same weights in trunk, branch and network, in evaluation mode and float32. "add up" is whether trunk,
one branch and neck have as many parameters as the network; "difference" the largest of |neck(branch(trunk(x))) -
network(x)|, relative to the largest |network(x)|. Transformers whose blocks are all alike have fewer of them than
published, as in the tests. Networks that cannot be cut follow, with what they say.
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
    new = backbone(name, **options(name, size))

    def build() -> torch.nn.Module:
        torch.manual_seed(0)  # the same weights at every build
        return new().eval()

    network = build()
    trunk, (branch,), neck, _ = split_backbone(build, num_branches=1)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        wanted = network(images)
        difference = (neck(branch(trunk(images))) - wanted).abs().max() / wanted.abs().max()
    parts = [sum(p.numel() for p in module.parameters()) for module in (trunk, branch, neck)]
    total = sum(p.numel() for p in network.parameters())
    verdict = "yes" if sum(parts) == total else "NO"
    numbers = [f"{number:{len(column)},}" for number, column in zip([*parts, total], COLUMNS[1:5], strict=True)]
    return "  ".join([f"{size:5}", *numbers, f"{verdict:>6}", f"{difference.item():10.1e}"])


def refusal(name: str) -> str:
    try:
        create_model(name, num_classes=2, width="full")
    except InputError as error:
        return str(error)
    return "CAN BE CUT"


def table() -> Iterator[str]:
    wanted = sys.argv[1:] or [""]
    names = [name for name in (*SIZES, *UNSPLITTABLE) if any(part in name for part in wanted)]
    width = max(map(len, (*SIZES, *UNSPLITTABLE)))
    yield "  ".join(["network".ljust(width), *COLUMNS])
    for name in names:
        yield f"{name:{width}}  {row(name) if name in SIZES else refusal(name)}"


if __name__ == "__main__":
    report(table(), "cut.txt")

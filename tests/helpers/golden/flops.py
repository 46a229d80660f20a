"""Compares our counts of multiply-accumulates with those of the original code, and explains every difference.

The original RIDE counts with thop, which adds batch norms and pooling. RIDE-Swin has its own formulas, which add layer
norms. Both also omit some operations or count them twice. `Comparison.terms` computes all of these from the shapes.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from helpers import golden
from helpers.golden.networks import SWIN_SIZES, architecture
from torch import nn

from longtail.evaluation.flops import Cost, cost
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.router import Router

THOP = {"0.1.1": ("flops/ride_gflops.json", 4), "0.0.31": ("flops/ride_gflops_thop_0.0.31.json", 2)}
"""Release -> file of its counts, and its count for each output of a batch norm"""

NETWORKS = ("ResNet32", "ResNet10", "ResNet50", "ResNeXt50", "ResNet101", "ResNet152", "ResNeXt152")
"""Networks for `ride`, smallest first"""

CLASSES = {0: 1000, 1: 8142, 2: 100}
"""Classes of ImageNet-LT, iNaturalist 2018 and CIFAR-100-LT, by the number of the data set in the original's counter"""

TOP_CHOICES, HIDDEN = 5, 16
"""Router of the original's counter. In training it has 30 or 50 choices"""


class Comparison(NamedTuple):
    """Two counts of one network, in multiply-accumulates."""

    name: str
    ours: float
    theirs: float
    terms: dict[str, float]
    """Differences between the counts, by cause"""

    @property
    def unexplained(self) -> float:
        """The difference without the terms."""
        return self.theirs - self.ours - sum(self.terms.values())


class Measured(NamedTuple):
    """The cost of a network, and the number of outputs of its norms."""

    cost: Cost
    trunk_norms: int
    branch_norms: list[int]
    """Of each branch and the neck after it"""
    num_features: int


def ride(release: str, network: str) -> Iterator[Comparison]:
    """Yields the networks of one depth, such as ``ResNet32``, counted by one release of thop; some have a router."""
    file, per_norm = THOP[release]
    found = golden.table(file)
    entries = [
        entry for entry in found["results"] if "macs" in entry and re.match(rf"{network}(EA)?Model$", entry["model"])
    ]
    for entry in {_name(entry): entry for entry in entries}.values():
        yield _ride(_name(entry), _arguments(entry), entry["macs"], per_norm, entry["options"].get("ea_percentage"))
    for entry in (entry for entry in found["ea_direct"] if re.match(rf"{network}(EA)?Model$", entry["model"])):
        arguments = {key: entry[key] for key in ("num_classes", "use_norm")}
        arguments |= {"num_experts": entry["experts"], "reduce_dimension": entry["reduce_dim"]}
        last = ",".join(["0"] * (entry["experts"] - 1) + ["100"])
        name = f"{entry['model']} {entry['num_classes']} {entry['experts']} experts, all used"
        yield _ride(name, {"class": entry["model"], "args": arguments}, entry["macs"], per_norm, last)


def swin(size: str) -> Iterator[Comparison]:
    """Yields the networks of RIDE-Swin of one size, counted by its formulas."""
    found = golden.table("flops/swin_flops.json")["flops"]
    for name, theirs in ((name, theirs) for name, theirs in found.items() if size in name):
        _, size, experts, variant = name.split("_", 3)
        num_experts, num_classes = int(experts[1:]), 1000
        narrow = num_experts > 1 and variant != "origdim"
        width: Any = "narrow" if narrow else "full"
        if variant == "branch3":  # only the last stage, which belongs to the experts, is narrow
            width = (384, 576)
        ours = _measure(
            SWIN_SIZES[size], num_classes, num_experts, width=width, expert_stages=1 if variant == "branch3" else 2
        )
        channels, positions = ours.num_features, 7 * 7
        # The first narrow downsampling, 4C -> 3C/2 at half the resolution, is counted as 4C -> 2C. The difference is
        # the same in both stages, because channels double and positions are divided by four.
        patches, entering = 14 * 14, 192
        yield Comparison(
            name,
            ours.cost.total,
            theirs,
            {
                "layer norm": ours.trunk_norms + sum(ours.branch_norms),
                "final norm, counted once with 4 times the positions": channels * positions * (4 - num_experts),
                "downsampling, counted with full width": narrow * patches * 4 * entering * entering // 2,
                "heads, of which one is counted": -(num_experts - 1) * channels * num_classes,
            },
        )


def _ride(name: str, keys: dict[str, Any], theirs: float, per_norm: int, percents: str | None) -> Comparison:
    """Compares one network; with ``percents``, a routed one whose images use 1, 2, ... experts in these shares."""
    arguments = architecture(keys | {"args": {"top_choices_num": TOP_CHOICES} | keys["args"]})
    arguments.pop("router", None)  # `_measure` adds that of the counter
    num_experts, num_classes = arguments["num_experts"], arguments["num_classes"]
    cosine = arguments["head"] == "cosine"
    ours = _measure(**arguments, routed=percents is not None)
    channels = ours.num_features
    if percents is None:
        shares = [0.0] * (num_experts - 1) + [1.0]
        count: float = ours.cost.total
    else:
        shares = [float(percent) / 100 for percent in percents.split(",")]
        count = ours.cost.expected(shares)
    # The counter supports the cosine heads of single experts and of routed ResNets, and adds one number per feature for
    # them. It ignores the others.
    is_counted = num_experts == 1 or (percents is not None and "ResNeXt" not in name)
    head = channels if is_counted else -channels * num_classes
    terms = {
        "batch norm": per_norm * (ours.trunk_norms + _mean(shares, ours.branch_norms)),
        "pooling": 0 if num_classes == 100 else _mean(shares, [channels] * num_experts),  # CIFAR's is not a module
        "cosine heads": _mean(shares, [head] * num_experts) if cosine else 0,
    }
    if percents is not None:  # the step after which an image stops; there is none after the last expert
        stops = zip(shares, ours.cost.router, strict=False)
        terms["router's last step, not counted"] = -sum(share * step for share, step in stops)
    return Comparison(name, count, theirs, terms)


def _mean(shares: list[float], each: list[int]) -> float:
    """Returns the mean of the sum over the experts that are used."""
    return sum(share * sum(each[:used]) for used, share in enumerate(shares, start=1))


def _name(entry: dict[str, Any]) -> str:
    options = dict(entry["options"])
    experts = options.pop("num_experts")
    classes = CLASSES[entry["dataset"]]
    return " ".join([entry["model"], str(classes), experts, *(f"{key}={value}" for key, value in options.items())])


def _arguments(entry: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `golden.networks.architecture`."""
    options = entry["options"]
    arguments: dict[str, Any] = {
        "num_classes": CLASSES[entry["dataset"]],
        "num_experts": int(options["num_experts"]),
        "use_norm": options["use_norm"] == "True",
        "reduce_dimension": options.get("reduce_dim") == "True",
    }
    if "layer2_dim" in options:
        arguments |= {f"layer{stage}_output_dim": int(options[f"layer{stage}_dim"]) for stage in (2, 3)}
    return {"class": entry["model"], "args": arguments}


def _measure(
    name: str, num_classes: int, num_experts: int, width: Any, routed: bool = False, **options: Any
) -> Measured:
    width = width if isinstance(width, str) else tuple(width)
    return _measure_once(name, num_classes, num_experts, width, routed, tuple(options.items()))


@cache
def _measure_once(
    name: str, num_classes: int, num_experts: int, width: Any, routed: bool, options: tuple[Any, ...]
) -> Measured:
    size = 32 if num_classes == 100 else 224
    with torch.device("meta"), skip_init():
        model = create_model(name, num_classes, num_experts, width=width, **dict(options)).eval()
        channels = model(torch.empty(1, 3, size, size)).features.shape[-1]
        if routed:
            model.router = Router(num_experts, channels, model.num_classes, top_choices=TOP_CHOICES, hidden=HIDDEN)
        trunk, branches = _norms(model, torch.empty(1, 3, size, size))
    return Measured(cost(model, size), trunk, branches, channels)


def _norms(model: MultiExpert, image: torch.Tensor) -> tuple[int, list[int]]:
    """Returns the number of outputs of the trunk's norms, and of those of each branch and the neck after it."""
    sizes: dict[str, int] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            part = re.sub(r"^(branches\.\d+|\w+)\..*", r"\1", name)

            def add(module: nn.Module, inputs: Any, output: torch.Tensor, part: str = part) -> None:
                sizes[part] = sizes.get(part, 0) + output.numel()

            hooks.append(module.register_forward_hook(add))
    model(image)
    for hook in hooks:
        hook.remove()
    neck = sizes.get("neck", 0) // model.num_experts
    return sizes["trunk"], [sizes[f"branches.{e}"] + neck for e in range(model.num_experts)]

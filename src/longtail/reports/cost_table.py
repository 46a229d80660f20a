"""The table of `longtail flops`: the cost of a model by module and by number of experts, and of a plain network."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from longtail.evaluation.flops import FLOPS_PER_MAC, Cost, cost
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.reports.tables import ReportTable
from longtail.utils.errors import InputError
from longtail.utils.format import exact, pluralize

NOTES = [
    "For one image. MACs: multiply-accumulates of convolutions,",
    "linear layers and attention; FLOPs: 2 per MAC. Norms,",
    "activations and pooling are not counted.",
    "relative: to 1 expert, which is the trunk, a branch and its head.",
]
NO_ROUTER = "The model has no router; the routed cost does not include one."


def planned_model(architecture: Mapping[str, Any]) -> MultiExpert:
    """Builds a model without memory for its weights.

    Args:
        architecture: arguments of `longtail.create_model`.

    Raises:
        InputError: it cannot be built.
    """
    with torch.device("meta"), skip_init():
        return create_model(**architecture)


def cost_table(
    model: MultiExpert, architecture: Mapping[str, Any], image_size: int, shares: Sequence[float] | None = None
) -> ReportTable:
    """Returns parameters, MACs and FLOPs of each module, of the first 1 to E experts, of a routing and a plain network.

    Args:
        model: with any weights.
        architecture: arguments of `longtail.create_model` that built it.
        image_size: height and width of its images, pixels.
        shares: of the images that use 1 to E experts, in any unit; adds the row of that routing.

    Raises:
        InputError: the shares are not E numbers of 0 or more.
    """
    count, num_experts = cost(model, image_size), model.num_experts
    rows, notes = list(_modules(model, count)), list(NOTES)
    first_total = len(rows)
    for used in range(1, num_experts + 1):
        label = f"{used} of {num_experts} experts" if used < num_experts else f"all {used} experts"
        size = _size(model.trunk, model.neck, *model.branches[:used], *model.heads[:used])
        rows.append((label if num_experts > 1 else "the expert", size, count.prefix(used)))
    bold_row = None
    if shares is not None:
        bold_row = len(rows)
        rows.append((f"routed: {count.mean_experts(shares):.2f} experts", _size(model), count.expected(shares)))
        notes += [] if count.router else [NO_ROUTER]
    if plain := _plain_network(model, architecture):
        rows.append(("full width, 1 expert", _size(plain), cost(plain, image_size).total))
    classes = pluralize(architecture["num_classes"], "class", "classes")
    return ReportTable(
        ("", "parameters", "MACs", "FLOPs", "relative"),
        [
            [label, f"{size:,}", exact(macs), exact(FLOPS_PER_MAC * macs), f"{macs / count.prefix(1):.3f}"]
            for label, size, macs in rows
        ],
        f"{architecture['name']}, {pluralize(num_experts, 'expert')}, {classes}, {image_size} x {image_size} pixels",
        notes,
        bold_row=bold_row,
        sections=[first_total],
    )


def _modules(model: MultiExpert, count: Cost) -> Iterator[tuple[str, int, float]]:
    """Name, parameters and MACs of each module."""
    yield "trunk", _size(model.trunk), count.trunk
    for e, (branch, head) in enumerate(zip(model.branches, model.heads, strict=True)):
        yield f"branch {e + 1}", _size(branch), count.branches[e]
        yield f"head {e + 1}", _size(head), count.heads[e]
    if neck := _size(model.neck):
        yield "neck", neck, 0  # its MACs are in those of the branches
    if model.router is not None:
        yield f"router, {pluralize(len(count.router), 'step')}", _size(model.router), sum(count.router)


def _plain_network(model: MultiExpert, architecture: Mapping[str, Any]) -> MultiExpert | None:
    """One expert of full width; None if that is the model itself or cannot be built."""
    if model.num_experts == 1 and architecture["width"] == "full":
        return None
    without_router = {name: value for name, value in architecture.items() if name != "router"}
    try:
        return planned_model(without_router | {"width": "full", "num_experts": 1})
    except InputError:
        return None


def _size(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())

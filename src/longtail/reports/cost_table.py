"""What `longtail flops` prints: the cost of a model by parts, by experts used, and of what it is compared with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import nn

from longtail.evaluation.flops import FLOPS_PER_MAC, Cost, cost
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize, short

CAPTION = """For one image. MACs: multiply-accumulates of convolutions,
linear layers and attention; FLOPs: 2 MACs.
Norms, activations and pooling are not pluralize.
relative: to 1 expert, the trunk with a branch and its head."""
NO_ROUTER = "\nThere is no router; the routing is without its own cost."


@dataclass(frozen=True)
class Subject:
    """A model to be described."""

    model: MultiExpert

    architecture: Mapping[str, Any]
    """Arguments of `longtail.create_model` it was built with"""

    image_size: int
    """Height and width of its images, pixels"""

    @classmethod
    def planned(cls, architecture: Mapping[str, Any]) -> "Subject":
        """A model that does not exist yet, without weights.

        Raises:
            InputError: it cannot be built.
        """
        return cls(_build(architecture), architecture, architecture["image_size"])

    def single(self) -> "Subject | None":
        """One expert of full width: the plain network. None where that is the model itself, or cannot be built."""
        if self.model.num_experts == 1 and self.architecture["width"] == "full":
            return None
        # The router of several experts has nothing to decide here.
        same = {name: value for name, value in self.architecture.items() if name != "router"}
        try:
            return self.planned(same | {"width": "full", "num_experts": 1})
        except InputError:
            return None


def cost_table(subject: Subject, shares: Sequence[float] | None = None) -> Table:
    """Parameters, MACs and FLOPs: of each part, of the first 1 to E experts, of a plain network and of a routing.

    Args:
        subject: the model.
        shares: of the images that use 1 to E experts, in any unit; adds the line of that routing.

    Raises:
        InputError: the shares are not E numbers of 0 or more.
    """
    model = subject.model
    whole = cost(model, subject.image_size)
    name, classes = subject.architecture["name"], subject.architecture["num_classes"]
    table = Table(
        title=f"{name}, {pluralize(model.num_experts, 'expert', 'experts')}, {pluralize(classes, 'class', 'classes')}, "
        f"{subject.image_size} x {subject.image_size} pixels",
        caption=CAPTION + (NO_ROUTER if shares is not None and not whole.router else ""),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("")
    for column in ("parameters", "MACs", "FLOPs", "relative"):
        table.add_column(column, justify="right")

    def add(label: str, parameters: int | None, macs: float, style: str = "") -> None:
        size = "" if parameters is None else f"{parameters:,}"
        numbers = [short(macs), short(FLOPS_PER_MAC * macs), f"{macs / whole.prefix(1):.3f}"]
        table.add_row(label, size, *numbers, style=style)

    for label, parameters, macs in _parts(model, whole):
        add(label, parameters, macs)
    table.add_section()
    for used in range(1, model.num_experts + 1):
        label = f"{used} of {model.num_experts} experts" if used < model.num_experts else f"all {used} experts"
        parts = [model.trunk, model.neck, *model.branches[:used], *model.heads[:used]]
        add(label if model.num_experts > 1 else "the expert", _size(*parts), whole.prefix(used))
    if shares is not None:
        add(f"routed: {whole.mean_experts(shares):.2f} experts", model.num_parameters, whole.expected(shares), "bold")
    if single := subject.single():
        add("full width, 1 expert", single.model.num_parameters, cost(single.model, single.image_size).total)
    return table


def _parts(model: MultiExpert, whole: Cost) -> list[tuple[str, int, int]]:
    """Name, parameters and MACs of each part."""
    parts = [("trunk", _size(model.trunk), whole.trunk)]
    for e, (branch, head) in enumerate(zip(model.branches, model.heads, strict=True)):
        parts.append((f"branch {e + 1}", _size(branch), whole.branches[e]))
        parts.append((f"head {e + 1}", _size(head), whole.heads[e]))
    if neck := _size(model.neck):
        parts.append(("neck", neck, 0))  # what it computes is in the branches
    router = model.router
    if router is not None:
        parts.append((f"router, {pluralize(len(whole.router), 'step', 'steps')}", _size(router), sum(whole.router)))
    return parts


def _build(architecture: Mapping[str, Any]) -> MultiExpert:
    with torch.device("meta"), skip_init():
        return create_model(**architecture)


def _size(*modules: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())

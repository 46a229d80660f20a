"""The multi-expert classifier: one shared trunk, several branches with a head each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from longtail.models.backbones import Width, backbone
from longtail.models.heads import classify, create_heads, initialise_like
from longtail.models.resnet_cifar import CifarResNet
from longtail.models.router import RoutedOutput, Router, should_continue, thresholds
from longtail.models.split import Identity, split_backbone
from longtail.utils.ensembles import AVERAGES, SUMMING, Average, ensemble
from longtail.utils.errors import InputError, did_you_mean


class ExpertOutput(NamedTuple):
    """Outputs of all experts for a batch of B images. E experts, C classes, D features."""

    logits: Tensor
    """(B, E, C)"""
    features: Tensor
    """(B, E, D), pooled; the inputs of the heads"""

    average: Average = "logits"
    """What the ensemble averages"""

    @property
    def ensemble(self) -> Tensor:
        """Logits of the ensemble of all experts: (B, C)."""
        return ensemble(self.logits, self.average)


class MultiExpert(nn.Module):
    """``heads[e](neck(branches[e](trunk(images))))`` for every expert e.

    Args:
        trunk: images to shared feature maps.
        branches: an expert's own part, shared feature maps to features; E of them.
        heads: features (B, D) to logits (B, C); E of them.
        neck: what all experts' features go through at the end; nothing by default.
        router: decides how many experts an image sees, in `route`; `forward` does not use it.
        average: what of the experts makes the answers of `answer` and `route`.
    """

    def __init__(
        self,
        trunk: nn.Module,
        branches: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        neck: nn.Module | None = None,
        router: Router | None = None,
        average: Average = "logits",
    ):
        super().__init__()
        assert len(branches) == len(heads) > 0
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.neck = neck or Identity()
        self.heads = nn.ModuleList(heads)
        # None is not registered as a submodule: strict loading would pass over weights under its name.
        self.router: Router | None = router
        self.average: Average = average

    @property
    def num_experts(self) -> int:
        """How many experts the model has."""
        return len(self.branches)

    @property
    def num_classes(self) -> int:
        """C, what an expert's head yields."""
        return self._head_shape[0]

    @property
    def num_features(self) -> int:
        """D, what an expert's head takes."""
        return self._head_shape[1]

    @property
    def _head_shape(self) -> torch.Size:
        weight: Tensor = self.heads[0].weight  # type: ignore[assignment]
        return weight.shape

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in all parts."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images: Tensor, experts: Sequence[int] | None = None) -> ExpertOutput:
        """Images (B, 3, H, W) -> logits (B, E, C) and features (B, E, D).

        Args:
            images: normalised images.
            experts: run only these experts, in this order; all by default.
        """
        shared = self.trunk(images)
        chosen = range(self.num_experts) if experts is None else experts
        logits, features = zip(*(self.expert(e, shared) for e in chosen), strict=True)
        return ExpertOutput(torch.stack(logits, dim=1), torch.stack(features, dim=1), self.average)

    def expert(self, number: int, shared: Tensor) -> tuple[Tensor, Tensor]:
        """One expert (from 0) on what the trunk yields: its logits (B, C) and features (B, D)."""
        return classify(self.heads[number], self.neck(self.branches[number](shared)))

    def predict_logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, C) of the ensemble of all experts, by the model's average."""
        output: ExpertOutput = self(images)
        return output.ensemble

    def route(self, images: Tensor, threshold: float | Sequence[float] | None = None) -> RoutedOutput:
        """Images (B, 3, H, W) -> logits (B, C) and how many experts each image was shown to (B,).

        Experts are asked in turn. Those images go on to the next one for which the router's probability is above the
        threshold; the branches of later experts never run on the others. RIDE (Wang et al., 2021), section 3.

        Args:
            images: normalised images. The model is to be in eval mode: in training mode a batch norm would see
                different images in each branch.
            threshold: one for all steps, or one for each of the E - 1; the router's own by default. The higher, the
                fewer experts are asked: with a negative one every image sees all experts, from 1 on only the first.

        Raises:
            InputError: the model has no router, or the number of thresholds is wrong.
        """
        if self.router is None:
            raise InputError("the model has no router; 'longtail router RUN' trains one and adds it to the run")
        limits = thresholds(self.router.threshold if threshold is None else threshold, self.num_experts - 1)
        shared = self.trunk(images)
        total, features = self.expert(0, shared)
        term, add, average = SUMMING[self.average]
        said = term(total)  # summed up for the answers; the router sees mean logits, whatever these are
        answers = average(said, 1)
        experts_used = torch.ones(len(images), dtype=torch.int64, device=images.device)
        # What follows is of the images that still go on: their positions in the batch, and their mean logits.
        going, mean = torch.arange(len(images), device=images.device), total
        for step, limit in enumerate(limits):
            # The only wait for the device: how many images go on is the size of all that follows.
            kept = should_continue(self.router.step(step, features, mean), limit).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            # Indexing keeps channels_last, which index_select does not.
            shared, total, said, going = shared[kept], total[kept], said[kept], going[kept]
            logits, features = self.expert(step + 1, shared)
            total, said = total + logits, add(said, term(logits))
            mean = total / (step + 2)
            answers = answers.index_copy(0, going, average(said, step + 2))
            experts_used = experts_used.index_fill(0, going, step + 2)
        return RoutedOutput(answers, experts_used)


def create_model(
    name: str,
    num_classes: int,
    num_experts: int = 3,
    *,
    width: Width = "narrow",
    head: Literal["cosine", "linear"] = "cosine",
    scale: float = 30.0,
    expert_stages: int | None = None,
    pretrained: bool | str | Path = False,
    image_size: int | None = None,
    router: Mapping[str, Any] | None = None,
    average: Average = "logits",
    **options: Any,
) -> MultiExpert:
    """Builds a freshly initialised multi-expert model.

    Args:
        name: the backbone: resnet20/32/44/56/110 for small images, or any hierarchical network or plain vision
            transformer of timm.
        num_classes: classes C.
        num_experts: experts E.
        width: channels of an expert's stages: ``"narrow"`` (RIDE's three quarters), ``"full"``, or the numbers.
        head: ``"cosine"`` or ``"linear"``.
        scale: what a cosine head multiplies its cosines by.
        expert_stages: how many of the last stages belong to each expert, see `longtail.models.split.split_backbone`.
        pretrained: trunk and all branches start from timm's published weights, or from those in a file.
        image_size: height and width of the images, for networks that must know it; their own by default.
        router: gives the model a router: ``{}``, or other ``top_choices``, ``hidden``, ``shared`` or ``threshold`` of
            `longtail.models.router.Router`.
        average: what of the experts makes the model's answers, ``"logits"`` or ``"probabilities"``.
        options: of the network's constructor in timm, such as ``drop_path_rate``.

    Raises:
        InputError: an argument is out of range or unknown.
    """
    if num_classes < 1 or num_experts < 1:
        raise InputError(f"num_classes is {num_classes} and num_experts {num_experts}; both must be at least 1")
    if head not in ("cosine", "linear"):
        raise InputError(f"head '{head}': 'cosine' or 'linear'")
    if average not in AVERAGES:
        raise InputError(f"average '{average}': one of {', '.join(AVERAGES)}{did_you_mean(average, AVERAGES)}")
    build = backbone(name, width, pretrained, image_size, **options)
    trunk, branches, neck, num_features = split_backbone(build, num_experts, expert_stages, image_size)
    heads = create_heads(num_experts, num_features, num_classes, head, scale)
    for classifier in heads:
        initialise_like(classifier, trunk)
    model = MultiExpert(trunk, branches, heads, neck, average=average)
    if router is not None:
        model.router = create_router(model, **router)
    return model


def create_router(model: MultiExpert, **options: Any) -> Router:
    """A fresh router that fits a model, to be set as its ``router``.

    Args:
        model: with at least two experts.
        options: of `Router`: top_choices, hidden, shared, threshold; kaiming is as the original has it for the model's
            network.

    Raises:
        InputError: the model has one expert, or an option is unknown or out of range.
    """
    options = {"kaiming": isinstance(model.trunk, CifarResNet)} | options
    try:
        return Router(model.num_experts, model.num_features, model.num_classes, **options)
    except TypeError as error:
        raise InputError(f"router {options}: {error}") from error

"""The multi-expert classifier: a shared trunk, and a branch and a head for each expert.

Letters in shapes: B images, E experts, C classes, D features.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from longtail.models.backbones import Width, backbone
from longtail.models.heads import classify, classify_each, create_heads, initialise_like
from longtail.models.parallel import run_each
from longtail.models.resnet_cifar import CifarResNet
from longtail.models.router import RoutedOutput, Router, should_continue, step_thresholds
from longtail.models.split import Identity, split_backbone
from longtail.utils.choices import Average, HeadKind
from longtail.utils.ensembles import RUNNING_AVERAGES, average_views, ensemble
from longtail.utils.errors import InputError, check_choice


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
    """Computes ``heads[e](neck(branches[e](trunk(images))))`` for every expert e.

    Args:
        trunk: images -> shared feature maps.
        branches: shared feature maps -> features, one module per expert.
        heads: features (B, D) -> logits (B, C), one module per expert.
        neck: shared last part of all branches; None if there is none.
        router: decides in `route` how many experts run on an image; `forward` does not use it.
        average: what the ensemble averages.
        temperature: of the probabilities, which are ``softmax(logits / temperature)``. Logits, also those that `route`
            and `predict_logits` return, are not divided by it.
    """

    def __init__(
        self,
        trunk: nn.Module,
        branches: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        neck: nn.Module | None = None,
        router: Router | None = None,
        average: Average = "logits",
        temperature: float = 1.0,
    ):
        super().__init__()
        assert len(branches) == len(heads) > 0
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.neck = neck or Identity()
        self.heads = nn.ModuleList(heads)
        # None is not registered as a submodule: strict loading would ignore weights of a router.
        self.router: Router | None = router
        self.average: Average = average
        self.temperature = temperature

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.branches)

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.heads[0].weight.shape[0])  # type: ignore[index, arg-type]

    @property
    def num_features(self) -> int:
        """D."""
        return int(self.heads[0].weight.shape[1])  # type: ignore[index, arg-type]

    @property
    def num_parameters(self) -> int:
        """Number of parameters, including the router."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, images: Tensor, experts: Sequence[int] | None = None) -> ExpertOutput:
        """Returns the logits (B, E, C) and features (B, E, D) of images (B, 3, H, W).

        Args:
            images: normalised images.
            experts: run only these experts, in this order; None: all.
        """
        return self.from_shared(self.trunk(images), experts)

    def from_shared(self, shared: Tensor, experts: Sequence[int] | None = None) -> ExpertOutput:
        """As `forward`, from the output of the trunk."""
        chosen = range(self.num_experts) if experts is None else experts
        outputs = run_each([partial(self.expert, number) for number in chosen], shared)
        logits, features = zip(*outputs, strict=True)
        return ExpertOutput(torch.stack(logits, dim=1), torch.stack(features, dim=1), self.average)

    def compute_features(self, images: Tensor) -> Tensor:
        """Returns the inputs of the heads: (B, 3, H, W) -> (B, E, D)."""
        shared = self.trunk(images)
        return torch.stack([self.neck(branch(shared)) for branch in self.branches], dim=1)

    def from_features(self, features: Tensor) -> ExpertOutput:
        """As `forward`, from the inputs of the heads (B, E, D)."""
        return ExpertOutput(*classify_each(self.heads, features), self.average)

    def expert(self, number: int, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Runs one expert (from 0) on the output of the trunk; returns its logits (B, C) and features (B, D)."""
        return classify(self.heads[number], self.neck(self.branches[number](shared)))

    def predict_logits(self, images: Tensor, num_views: int = 1) -> Tensor:
        """Returns the logits of the ensemble of all experts, averaged over V views: (V * B, 3, H, W) -> (B, C)."""
        output: ExpertOutput = self(images)
        return average_views(output.ensemble, num_views, self.average)

    def answer(self, images: Tensor) -> Tensor:
        """The name of `predict_logits` in version 0.1, which still works in version 0.2."""
        warnings.warn("MultiExpert.answer is now MultiExpert.predict_logits", DeprecationWarning, stacklevel=2)
        return self.predict_logits(images)

    def route(
        self, images: Tensor, threshold: float | Sequence[float] | None = None, num_views: int = 1
    ) -> RoutedOutput:
        """Runs as many experts on each image as the router decides: RIDE (Wang et al., 2021), section 3.

        Experts run in turn. An image continues to the next expert if the router's probability is above the threshold.
        The branches of later experts never run on the other images. Use eval mode: in training mode the batch norms of
        each branch would see different images.

        Args:
            images: normalised images (V * B, 3, H, W), all images of one view after those of another.
            threshold: one for all steps, or one for each of the E - 1 steps; None: that of the router. With a negative
                threshold all experts run, from 1 on only the first.
            num_views: V. All views of an image use the same experts: the router's outputs are averaged over them.

        Returns:
            Logits (B, C) and number of experts (B,) of each image.

        Raises:
            InputError: the model has no router, or the number of thresholds is wrong.
        """
        if self.router is None:
            raise InputError("the model has no router; 'longtail router RUN' trains one and adds it to the run")
        limits = step_thresholds(self.router.threshold if threshold is None else threshold, self.num_experts - 1)
        shared = self.trunk(images)
        logits, features = self.expert(0, shared)
        # Two sums over experts: the router uses mean logits, whatever the ensemble averages.
        term, add, mean = RUNNING_AVERAGES[self.average]
        logit_sum, ensemble_sum = logits, term(logits)
        outputs = mean(ensemble_sum, 1)
        size = len(images) // num_views
        used = torch.ones(size, dtype=torch.int64, device=images.device)
        active = torch.arange(size, device=images.device)  # positions in the batch; all else follows them
        mean_logits = logits
        for step, limit in enumerate(limits):
            # The only synchronisation with the device: the number of active images is the size of all that follows.
            decision = average_views(self.router.step(step, features, mean_logits), num_views)
            kept = should_continue(decision, limit).nonzero().squeeze(1)
            if len(kept) == 0:
                break
            # Indexing keeps channels_last, which index_select does not.
            rows = _view_rows(kept, len(active), num_views)
            active, shared, logit_sum, ensemble_sum = active[kept], shared[rows], logit_sum[rows], ensemble_sum[rows]
            logits, features = self.expert(step + 1, shared)
            logit_sum, ensemble_sum = logit_sum + logits, add(ensemble_sum, term(logits))
            mean_logits = logit_sum / (step + 2)
            outputs = outputs.index_copy(0, _view_rows(active, size, num_views), mean(ensemble_sum, step + 2))
            used = used.index_fill(0, active, step + 2)
        return RoutedOutput(average_views(outputs, num_views, self.average), used)


def _view_rows(positions: Tensor, size: int, num_views: int) -> Tensor:
    """Returns the rows of all views of some of ``size`` images: (B,) -> (V * B,)."""
    if num_views == 1:
        return positions
    return (positions + size * torch.arange(num_views, device=positions.device)[:, None]).flatten()


def compile_model(model: MultiExpert) -> MultiExpert:
    """Returns a model with the same weights whose trunk and branches are compiled on first use.

    The model itself does not change. Use it for routing, whose batches have many sizes.
    """

    def compiled(module: nn.Module) -> nn.Module:
        # One program per batch size, of which training has few. A program for all sizes, made when the last batch of an
        # epoch is smaller, would replace the faster one.
        return torch.compile(module, dynamic=False)  # type: ignore[return-value]

    branches, heads = [compiled(branch) for branch in model.branches], list(model.heads)
    options = model.neck, model.router, model.average, model.temperature
    return MultiExpert(compiled(model.trunk), branches, heads, *options)


def create_model(
    name: str,
    num_classes: int,
    num_experts: int = 3,
    *,
    width: Width = "narrow",
    head: HeadKind = "cosine",
    scale: float = 30.0,
    expert_stages: int | None = None,
    pretrained: bool | str | Path = False,
    image_size: int | None = None,
    experts_from: str | None = None,
    router: Mapping[str, Any] | None = None,
    average: Average = "logits",
    temperature: float = 1.0,
    **options: Any,
) -> MultiExpert:
    """Builds a multi-expert model with new weights.

    Args:
        name: the backbone: resnet20/32/44/56/110 for small images, resnet10, or nearly every hierarchical network or
            plain vision transformer of timm.
        num_classes: classes C.
        num_experts: experts E.
        width: channels of the last two stages: ``"narrow"`` (RIDE's three quarters), ``"full"``, or two numbers.
        head: ``"cosine"`` or ``"linear"``.
        scale: factor of the cosines of a cosine head.
        expert_stages: number of last stages that each expert has for itself, see
            `longtail.models.split.split_backbone`.
        pretrained: start trunk and all branches from timm's published weights, or from the weights in a file.
        image_size: height and width of the images, for networks that need it; None: that of the published network.
        experts_from: name of the first module that each expert has for itself, such as ``blocks.6``, instead of
            ``expert_stages``.
        router: ``{}`` adds a router with default options. The options are ``top_choices``, ``hidden``, ``shared`` and
            ``threshold`` of `longtail.models.router.Router`.
        average: what the ensemble averages, ``"logits"`` or ``"probabilities"``.
        temperature: by which logits are divided before probabilities are computed, above 0.
        options: of `longtail.models.backbones.backbone` (``absolute_position``) or of the network's constructor in
            timm, such as ``drop_path_rate``.

    Raises:
        InputError: an argument is out of range or unknown.
    """
    if num_classes < 1 or num_experts < 1:
        raise InputError(f"num_classes is {num_classes} and num_experts {num_experts}; both must be at least 1")
    check_choice("head", head, ("cosine", "linear"))
    check_choice("average", average, get_args(Average))
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature is {temperature}; it must be above 0 and finite")
    build = backbone(name, width, pretrained, image_size, **options)
    trunk, branches, neck, num_features = split_backbone(build, num_experts, expert_stages, image_size, experts_from)
    heads = create_heads(num_experts, num_features, num_classes, head, scale)
    for classifier in heads:
        initialise_like(classifier, trunk)
    model = MultiExpert(trunk, branches, heads, neck, average=average, temperature=temperature)
    if router is not None:
        model.router = create_router(model, **router)
    return model


def create_router(model: MultiExpert, **options: Any) -> Router:
    """Returns a new router that fits a model; assign it to ``model.router``.

    Args:
        model: with at least two experts.
        options: of `Router`: top_choices, hidden, shared, threshold. The default of kaiming depends on the backbone, as
            in the original.

    Raises:
        InputError: the model has one expert, or an option is unknown or out of range.
    """
    options = {"kaiming": isinstance(model.trunk, CifarResNet)} | options
    try:
        return Router(model.num_experts, model.num_features, model.num_classes, **options)
    except TypeError as error:
        raise InputError(f"router {options}: {error}") from error

"""What is trained, and what stays as it is."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longtail.models.fuse import fuse_batch_norms
from longtail.models.lora import add_adapters
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.utils.choices import TrainedParts


class FrozenPart(NamedTuple):
    """The first part of a model, which is not trained, and the rest."""

    modules: tuple[nn.Module, ...]
    """Of the first part; they stay in eval mode"""

    start: Callable[[Tensor], Tensor]
    """The first part: images (B, 3, H, W) -> its outputs (B, ...)"""

    rest: Callable[[Tensor], ExpertOutput]
    """The rest: outputs of the first part -> logits and features"""

    def run(self, images: Tensor) -> ExpertOutput:
        """Both parts: images (B, 3, H, W) -> logits and features."""
        with torch.no_grad():
            start = self.start(images)
        return self.rest(start)


def freeze(model: MultiExpert, trained: TrainedParts, lora_rank: int) -> None:
    """Leaves gradients only to the parameters that are trained, in place; for lora it adds the adapters.

    Args:
        model: with its initial weights.
        trained: everything; the experts' branches and heads; the heads; or adapters in the branches, and the heads.
        lora_rank: of the adapters.

    Raises:
        InputError: the branches have no layers for adapters.
    """
    frozen = {
        "all": (),
        "experts": (model.trunk,),
        "heads": (model.trunk, model.branches, model.neck),
        "lora": (model.trunk,),
    }
    for part in frozen[trained]:
        part.requires_grad_(False)
    if trained == "lora":
        add_adapters(model, lora_rank)


def frozen_part(
    model: MultiExpert, trained: TrainedParts, image_size: int, compiled: MultiExpert | None = None
) -> FrozenPart | None:
    """Returns the first part of a model that stays as it is; None if everything is trained.

    The first part is computed by a copy with fused batch norms, which is faster.

    Args:
        model: in which `freeze` was called.
        trained: as there.
        image_size: height and width of the images, pixels.
        compiled: the same model, perhaps compiled, for the rest.
    """
    compiled = compiled or model
    if trained == "all":
        return None
    fused = fuse_batch_norms(model, image_size)
    if trained == "heads":
        return FrozenPart((model.trunk, *model.branches, model.neck), fused.compute_features, compiled.from_features)
    return FrozenPart((model.trunk,), fused.trunk, compiled.from_shared)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """Returns the batch norms in a module."""
    return [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]

"""Settings -> optimiser and learning rate."""

from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from longtail.config.schema import ClassifierConfig, RouterConfig, TrainingConfig, epoch_of
from longtail.training.loop import Schedule
from longtail.training.schedules import cosine_rate, step_multiplier
from longtail.training.tasks import TrainExperts


def optimizer(settings: TrainingConfig, task: TrainExperts) -> torch.optim.Optimizer:
    """Returns the optimiser of the parameters of the experts' task that are trained."""
    groups, fused = _parameter_groups(settings, task), _can_fuse(task)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)
    sgd = torch.optim.SGD(
        groups,
        settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        fused=fused,
    )
    if settings.momentum:
        # Otherwise torch allocates them in the first step; if fp16 skips that step they hold arbitrary memory.
        for group in groups:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate(settings: TrainingConfig) -> Schedule:
    """Returns the schedule of the experts' training."""
    epochs = settings.epochs
    scale = settings.batch_size / settings.learning_rate_batch if settings.learning_rate_batch else 1.0
    base, final = settings.learning_rate * scale, settings.final_learning_rate * scale
    warmup, start = epoch_of(settings.warmup, epochs), settings.warmup_learning_rate * scale
    if settings.schedule == "cosine":
        return lambda epoch: cosine_rate(epoch, epochs, base, final, warmup, start)
    milestones = [epoch_of(milestone, epochs) for milestone in settings.milestones]
    return lambda epoch: base * step_multiplier(int(epoch), milestones, settings.decay, warmup)


def sgd(settings: ClassifierConfig | RouterConfig, module: nn.Module, nesterov: bool) -> torch.optim.Optimizer:
    """Returns SGD with momentum 0.9 for the trainable parameters of heads or a router."""
    return torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        settings.learning_rate,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=settings.weight_decay,
        fused=_can_fuse(module),
    )


def epoch_cosine(settings: ClassifierConfig | RouterConfig) -> Schedule:
    """Returns a cosine to 0 that is constant within an epoch, as in the original code."""
    return lambda epoch: cosine_rate(int(epoch), settings.epochs, settings.learning_rate)


def _can_fuse(module: nn.Module) -> bool:
    """Whether a step can be a single kernel: fewer passes over memory, and no wait for the device with fp16."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in module.parameters())


def _parameter_groups(settings: TrainingConfig, task: TrainExperts) -> list[dict[str, Any]]:
    """Groups the parameters by weight decay and by learning rate."""
    trained = [parameter for parameter in task.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained, "weight_decay": settings.weight_decay}]
    if not settings.decay_vectors:
        # timm's networks list their position tables themselves; each part of a split network lists its own.
        tables = [
            f"{prefix}.{name}"
            for prefix, part in task.named_modules()
            for name in getattr(part, "no_weight_decay", tuple)()
        ]
        groups = param_groups_weight_decay(task, settings.weight_decay, no_weight_decay_list=tables)
    if settings.trunk_learning_rate == 1:
        return groups
    trunk = set(task.model.trunk.parameters())
    scaled = [
        {**group, "params": [p for p in group["params"] if (p in trunk) == in_trunk], "lr_scale": scale}
        for group in groups
        for in_trunk, scale in ((True, settings.trunk_learning_rate), (False, 1.0))
    ]
    return [group for group in scaled if group["params"]]

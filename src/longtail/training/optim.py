"""`Config` -> optimiser and learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from longtail.config.schema import ClassifierConfig, Config, RouterConfig
from longtail.training.schedules import cosine_rate, epoch_of, step_multiplier
from longtail.training.tasks import TrainExperts


def optimizer(config: Config, task: TrainExperts) -> torch.optim.Optimizer:
    """Over every parameter of the task."""
    training = config.training
    groups, fused = _parameter_groups(config, task), _can_fuse(task)
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, training.learning_rate, weight_decay=training.weight_decay, fused=fused)
    sgd = torch.optim.SGD(
        groups,
        training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
        fused=fused,
    )
    if training.momentum:
        # Otherwise torch makes them in the first step, and where fp16 skips that one leaves in them what was there.
        for parameter in task.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _can_fuse(module: nn.Module) -> bool:
    """Whether a step can be one kernel: fewer passes over memory, and no wait for the device with fp16."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in module.parameters())


def _parameter_groups(config: Config, task: TrainExperts) -> list[dict[str, Any]]:
    """By weight decay, and by learning rate."""
    training = config.training
    groups: list[dict[str, Any]] = [{"params": list(task.parameters()), "weight_decay": training.weight_decay}]
    if not training.decay_vectors:
        # timm's networks name their position tables themselves, each part of a cut one its own.
        tables = [
            f"{prefix}.{name}"
            for prefix, part in task.named_modules()
            for name in getattr(part, "no_weight_decay", tuple)()
        ]
        groups = param_groups_weight_decay(task, training.weight_decay, no_weight_decay_list=tables)
    if training.trunk_learning_rate == 1:
        return groups
    trunk = set(task.model.trunk.parameters())
    scaled = [
        {**group, "params": [p for p in group["params"] if (p in trunk) == shared], "lr_scale": scale}
        for group in groups
        for shared, scale in ((True, training.trunk_learning_rate), (False, 1.0))
    ]
    return [group for group in scaled if group["params"]]


def learning_rate(config: Config) -> Callable[[float], float]:
    """The rate at a point of training, in epochs from 0 with a fraction."""
    training = config.training
    epochs = training.epochs
    scale = training.batch_size / training.learning_rate_batch if training.learning_rate_batch else 1.0
    rate, final, start = (
        value * scale for value in (training.learning_rate, training.final_learning_rate, training.warmup_learning_rate)
    )
    warmup = epoch_of(training.warmup, epochs)
    if training.schedule == "cosine":
        return lambda epoch: cosine_rate(epoch, epochs, rate, final, warmup, start)
    milestones = [epoch_of(milestone, epochs) for milestone in training.milestones]
    return lambda epoch: rate * step_multiplier(int(epoch), milestones, training.decay, warmup)


def classifier_optimizer(config: Config, heads: nn.Module) -> torch.optim.Optimizer:
    """Over what the heads have to train."""
    return _sgd(config.classifier, heads, nesterov=False)


def router_optimizer(config: Config, router: nn.Module) -> torch.optim.Optimizer:
    """Over every parameter of the router."""
    return _sgd(config.router, router, nesterov=True)


def _sgd(settings: ClassifierConfig | RouterConfig, module: nn.Module, nesterov: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [parameter for parameter in module.parameters() if parameter.requires_grad],
        settings.learning_rate,
        momentum=0.9,
        nesterov=nesterov,
        weight_decay=settings.weight_decay,
        fused=_can_fuse(module),
    )


def classifier_learning_rate(config: Config) -> Callable[[float], float]:
    """As `router_learning_rate`."""
    return _cosine_by_epoch(config.classifier)


def router_learning_rate(config: Config) -> Callable[[float], float]:
    """The rate in each epoch, pluralize from 0: the same in all of it, as in the original."""
    return _cosine_by_epoch(config.router)


def _cosine_by_epoch(settings: ClassifierConfig | RouterConfig) -> Callable[[float], float]:
    return lambda epoch: cosine_rate(int(epoch), settings.epochs, settings.learning_rate)

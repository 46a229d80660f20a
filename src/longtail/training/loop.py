"""The training loop, for every task."""

import math
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longtail.data.loaders import Batch, Loader
from longtail.runtime.device import Runtime
from longtail.runtime.seed import seeded
from longtail.training.checkpoint import Checkpoint
from longtail.training.cuda_graph import GraphedStep
from longtail.training.ema import WeightAverage
from longtail.training.state import Position, TrainingState
from longtail.training.tasks import Step
from longtail.utils.errors import InputError

CHECK_EVERY = 50
"""Steps between two reads of the loss: each read waits for the device."""

Schedule = Callable[[float], float]
"""Epochs from 0, with a fraction, to the learning rate"""


@dataclass(frozen=True)
class LoopOptions:
    """How the loop trains, whatever the task is."""

    accumulation: int = 1
    """Parts into which each process divides its share of a batch, one after the other, to save memory"""

    clip_gradient: float | None = None
    """Largest norm of the gradient of all parameters together; None: not clipped"""

    seed: int = 0
    """Of the random numbers that the network draws (dropout, stochastic depth), step by step"""

    runtime: Runtime = field(default_factory=Runtime)
    """Device, precision, and the processes that train together"""

    checkpoint: Checkpoint | None = None
    """Restores the training and saves it from time to time"""

    average: WeightAverage | None = None
    """Average of the weights, updated after each step"""

    graph_phase: Callable[[int], Hashable] | None = None
    """Captures steps as CUDA graphs, see `GraphedStep`: the phase of an epoch from 1. None: steps are not captured"""

    on_step: Callable[[int, float, float | None], None] = field(default=lambda *step: None)
    """Called after each step with the steps done in this epoch, the learning rate and, if it was read, the mean loss"""


def fit(
    task: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    learning_rate: Schedule,
    epochs: int,
    options: LoopOptions | None = None,
) -> Iterator[dict[str, Any]]:
    """Generator: trains one epoch per ``next()`` and yields its metrics.

    Between two epochs the caller may save, validate, and add to the metrics.

    Args:
        task: (`Batch`, epoch) -> `longtail.training.tasks.Step`.
        loader: the training images, or cached outputs for them.
        optimizer: of the parameters to train; the rate of a group is multiplied by its ``lr_scale``, if any.
        learning_rate: the rate at a point of training.
        epochs: number of epochs.
        options: accumulation, clipping, device and so on.

    Raises:
        InputError: the loss is NaN or infinite; found within `CHECK_EVERY` steps.
        Stopped: a signal asked for it; the checkpoint is saved.
    """
    options = options or LoopOptions()
    runtime, checkpoint = options.runtime, options.checkpoint
    steps, group, device = len(loader), runtime.group, runtime.device
    parallel, scaler = group.parallel(task, device), runtime.scaler()
    zero = torch.zeros((), dtype=torch.int64, device=device)
    losses = torch.zeros(steps, device=device)
    state = TrainingState(task, optimizer, scaler, Position(), losses, zero, group, options.average)
    if checkpoint is not None:
        checkpoint.restore(state)
    now = state.position
    train_step: Callable[[Batch, int], Step] = partial(_train_step, parallel, optimizer, scaler, options)
    if options.graph_phase is not None:
        train_step = GraphedStep(train_step, optimizer, options.graph_phase)
    for epoch in range(now.epoch, epochs + 1):
        start = time.perf_counter() - now.seconds
        task.train()
        if now.step:
            rate = learning_rate(epoch - 1 + (now.step - 1) / steps)  # for the metrics, if no step is left
        batches = loader.epoch(epoch, now.step)
        batches = batches if checkpoint is None else checkpoint.saving(batches, state)
        for step, batch in enumerate(batches, start=now.step):
            rate = learning_rate(epoch - 1 + step / steps)
            _set_rate(optimizer, rate)
            with seeded(options.seed, epoch, step, 2 + 2 * group.rank, device=device):
                loss, correct = train_step(batch, epoch)
            if options.average is not None:
                options.average.update((epoch - 1) * steps + step)
            # Losses stay on the device; they are read every CHECK_EVERY steps and at the end of the epoch.
            state.losses[step] = loss
            state.correct += correct
            done = now.step = step + 1
            check = done % CHECK_EVERY == 0 or done == steps
            mean = _mean_loss(group.sum(state.losses[:done].clone()), epoch, steps, learning_rate) if check else None
            now.seconds = time.perf_counter() - start  # after the read, a GPU has finished its work, too
            options.on_step(done, rate, mean)
            if checkpoint is not None:
                checkpoint.after_step(state)
        metrics = {
            "epoch": epoch,
            "loss": group.sum(state.losses.clone()).mean().item(),
            "accuracy": float(group.sum(state.correct.clone())) / loader.num_images,
            "learning_rate": rate,
            "seconds": now.seconds,
            "images_per_second": loader.num_images / now.seconds,
        }
        yield metrics
        # Only now: a training that resumes from an earlier checkpoint repeats the end of this epoch.
        now.records.append(metrics)
        now.epoch, now.step, now.seconds = epoch + 1, 0, 0.0
        state.losses.zero_()
        state.correct.zero_()
    optimizer.zero_grad(set_to_none=True)  # later stages may need the memory


def _train_step(
    task: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, options: LoopOptions, batch: Batch, epoch: int
) -> Step:
    """One step: gradients, and the update of the weights."""
    optimizer.zero_grad(set_to_none=True)
    result = _backward(task, batch, epoch, options.accumulation, options.runtime, scaler)
    if options.clip_gradient is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(task.parameters(), options.clip_gradient)
    scaler.step(optimizer)
    scaler.update()
    return result


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        value = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # which a CUDA graph reads
            group["lr"].fill_(value)
        else:
            group["lr"] = value


def _backward(task: nn.Module, batch: Batch, epoch: int, parts: int, runtime: Runtime, scaler: Any) -> Step:
    """Computes the gradients of a process's share of a batch, in parts of about equal size.

    Averaged over the processes, the gradients are those of the full batch.

    Returns:
        This process's share of the loss, and the images that it classified correctly.
    """
    size = len(batch.labels)
    # At least two images for batch norm, and the same number of parts in every process.
    parts = max(1, min(parts, size // runtime.group.size // 2))
    steps = []
    for number, part in enumerate(batch.divide(parts), start=1):
        with nullcontext() if number == parts else runtime.group.no_sync(task):
            with runtime.autocast():
                loss, correct = task(part, epoch)
            loss = loss * (len(part.own_labels) / size)
            scaler.scale(loss * runtime.group.size).backward()
        steps.append((loss.detach(), correct))
    losses, corrects = zip(*steps, strict=True)
    return Step(torch.stack(losses).sum(), torch.stack(corrects).sum())


def _mean_loss(losses: Tensor, epoch: int, steps: int, learning_rate: Schedule) -> float:
    mean = losses.mean().item()
    if not math.isfinite(mean):
        step = int((~losses.isfinite()).nonzero()[0])
        rate = learning_rate(epoch - 1 + step / steps)
        raise InputError(
            f"the loss is {losses[step].item()} at epoch {epoch}, step {step + 1} of {steps}, learning rate {rate:g}; "
            "use a lower learning rate or a longer warm-up"
        )
    return mean

"""The training loop: the only one, whatever the task."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from longtail.data.loaders import Batch, Loader
from longtail.runtime.device import Runtime
from longtail.runtime.seed import seeded
from longtail.training.checkpoint import Checkpoint
from longtail.training.state import Position, TrainingState
from longtail.training.tasks import Step
from longtail.utils.errors import InputError

CHECK_EVERY = 50
"""Steps between two looks at the loss: each one waits for the device."""


class DivergedError(InputError):
    """The loss became NaN or infinite."""


def fit(
    task: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[float], float],
    epochs: int,
    on_step: Callable[[int, float, float | None], None] = lambda done, rate, loss: None,
    *,
    accumulation: int = 1,
    clip_gradient: float | None = None,
    seed: int = 0,
    runtime: Runtime | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains epoch by epoch; after each, yields its record and goes on when asked for the next.

    The caller saves, validates and adds to the record as it likes in between.

    Args:
        task: (images, labels, epoch, and what else the loader yields) -> `longtail.training.tasks.Step`. Where a batch is
            divided it also gets the labels of all of it, as ``batch_labels``.
        loader: the training images, or what stands for them.
        optimizer: over the parameters to train; the rate of a group is multiplied by its ``lr_scale``, if any.
        learning_rate: rate at a point of training, in epochs from 0 with a fraction.
        epochs: how many.
        on_step: called after each step with the number of steps done in this epoch, the learning rate and, now and
            then, the mean loss of the epoch so far.
        accumulation: parts that each process computes its share of a batch in, one after the other.
        clip_gradient: largest norm of the gradient of all parameters together.
        seed: of what the network itself draws (dropout, stochastic depth), a step at a time.
        runtime: device, precision, and the processes that train together.
        checkpoint: where training goes on from, and what saves it now and then.

    Raises:
        DivergedError: the loss is NaN or infinite; found within `CHECK_EVERY` steps.
        Stopped: somebody asked for it; the checkpoint is saved.
    """
    runtime = runtime or Runtime()
    steps, group, device = len(loader), runtime.group, runtime.device
    parallel, scaler = group.parallel(task, device), runtime.scaler()
    zero = torch.zeros((), dtype=torch.int64, device=device)
    state = TrainingState(task, optimizer, scaler, Position(), torch.zeros(steps, device=device), zero, group)
    if checkpoint is not None:
        checkpoint.restore(state)
    now = state.position
    divided = accumulation > 1 or group.size > 1
    for epoch in range(now.epoch, epochs + 1):
        start = time.perf_counter() - now.seconds
        task.train()
        every_label = loader.labels(epoch).to(device) if divided else None
        if now.step:
            rate = learning_rate(epoch - 1 + (now.step - 1) / steps)  # of the record, where no step is left
        for step, batch in enumerate(loader.epoch(epoch, now.step), start=now.step):
            rate = learning_rate(epoch - 1 + step / steps)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate * parameters.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            whole = None
            if every_label is not None:
                whole = every_label[step * loader.batch_size : (step + 1) * loader.batch_size]
            with seeded(seed, epoch, step, 2 + 2 * group.rank, device=device):
                loss, right = _backward(parallel, batch, epoch, accumulation, whole, runtime, scaler)
            if clip_gradient is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(task.parameters(), clip_gradient)
            scaler.step(optimizer)
            scaler.update()
            # Losses stay on the device; they are read every CHECK_EVERY steps and at the end of the epoch.
            state.losses[step] = loss
            state.correct += right
            done = now.step = step + 1
            check = done % CHECK_EVERY == 0 or done == steps
            mean = _mean_loss(group.sum(state.losses[:done].clone()), epoch, steps, learning_rate) if check else None
            now.seconds = time.perf_counter() - start  # now a GPU, too, has done what it was given
            on_step(done, rate, mean)
            if checkpoint is not None:
                checkpoint.after_step(state)
        record = {
            "epoch": epoch,
            "loss": group.sum(state.losses.clone()).mean().item(),
            "accuracy": float(group.sum(state.correct.clone())) / loader.num_images,
            "learning_rate": rate,
            "seconds": now.seconds,
            "images_per_second": loader.num_images / now.seconds,
        }
        yield record
        # Only now: whoever goes on from what was saved in between gets the end of this epoch again.
        now.records.append(record)
        now.epoch, now.step, now.seconds = epoch + 1, 0, 0.0
        state.losses.zero_()
        state.correct.zero_()
    optimizer.zero_grad(set_to_none=True)  # what follows may need the memory


def _backward(
    task: nn.Module, batch: Batch, epoch: int, parts: int, whole: Tensor | None, runtime: Runtime, scaler: Any
) -> Step:
    """Gradients of a process's share of a batch, in parts of about equal size; its share of the loss; right answers.

    The gradients, averaged over the processes, are those of the whole batch, whose labels are ``whole``.
    """
    size = len(batch[1]) if whole is None else len(whole)
    # Of two images at least, which batch norm needs; in every process as many.
    parts = max(1, min(parts, size // runtime.group.size // 2))
    known = {} if whole is None else {"batch_labels": whole}
    steps = []
    divided = list(zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True))
    for number, (inputs, labels, *others) in enumerate(divided, start=1):
        with nullcontext() if number == len(divided) else runtime.group.no_sync(task):
            with runtime.autocast():
                loss, correct = task(inputs, labels, epoch, *others, **known)
            loss = loss * (len(labels) / size)
            scaler.scale(loss * runtime.group.size).backward()
        steps.append((loss.detach(), correct))
    losses, corrects = zip(*steps, strict=True)
    return Step(torch.stack(losses).sum(), torch.stack(corrects).sum())


def _mean_loss(losses: Tensor, epoch: int, steps: int, learning_rate: Callable[[float], float]) -> float:
    mean = losses.mean().item()
    if not math.isfinite(mean):
        step = int((~losses.isfinite()).nonzero()[0])
        rate = learning_rate(epoch - 1 + step / steps)
        raise DivergedError(
            f"the loss is {losses[step].item()} at epoch {epoch}, step {step + 1} of {steps}, learning rate {rate:g}; "
            "a lower learning rate, or a longer warm-up, helps"
        )
    return mean

"""The training loop: the only one, whatever the task."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longtail.data.loading import Batch, Loader
from longtail.errors import InputError
from longtail.seeds import seeded
from longtail.tasks import Step

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
    device: torch.device | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains epoch by epoch; after each, yields its record and goes on when asked for the next.

    The caller saves, validates and stops as it likes in between.

    Args:
        task: (images, labels, epoch, and what else the loader yields) -> `longtail.tasks.Step`.
        loader: the training images, or what stands for them.
        optimizer: over the parameters to train; the rate of a group is multiplied by its ``lr_scale``, if any.
        learning_rate: rate at a point of training, in epochs from 0 with a fraction.
        epochs: how many.
        on_step: called after each step with the number of steps done in this epoch, the learning rate and, now and
            then, the mean loss of the epoch so far.
        accumulation: parts that each batch is computed in, one after the other.
        clip_gradient: largest norm of the gradient of all parameters together.
        seed: of what the network itself draws (dropout, stochastic depth), a step at a time.
        device: where it draws.

    Raises:
        DivergedError: the loss is NaN or infinite; found within `CHECK_EVERY` steps.
    """
    steps = len(loader)
    losses: Tensor | None = None
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        task.train()
        correct: Tensor | int = 0
        for step, batch in enumerate(loader.epoch(epoch)):
            rate = learning_rate(epoch - 1 + step / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            optimizer.zero_grad(set_to_none=True)
            with seeded(seed, epoch, step, 2, device=device):
                loss, right = _backward(task, batch, epoch, accumulation)
            if clip_gradient is not None:
                nn.utils.clip_grad_norm_(task.parameters(), clip_gradient)
            optimizer.step()
            # Losses stay on the device; they are read every CHECK_EVERY steps and at the end of the epoch.
            losses = loss.new_zeros(steps) if losses is None else losses
            losses[step] = loss
            correct += right
            done = step + 1
            check = done % CHECK_EVERY == 0 or done == steps
            on_step(done, rate, _mean_loss(losses[:done], epoch, steps, learning_rate) if check else None)
        assert losses is not None
        seconds = time.perf_counter() - start
        yield {
            "epoch": epoch,
            "loss": losses.mean().item(),
            "accuracy": float(correct) / loader.num_images,
            "learning_rate": rate,
            "seconds": seconds,
            "images_per_second": loader.num_images / seconds,
        }


def _backward(task: nn.Module, batch: Batch, epoch: int, parts: int) -> Step:
    """Gradients of a batch, computed in parts of about equal size, and its loss and number of right answers."""
    # Of two images at least, which batch norm needs.
    parts = max(1, min(parts, len(batch[0]) // 2))
    steps = []
    for inputs, labels, *others in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True):
        loss, correct = task(inputs, labels, epoch, *others)
        loss = loss * (len(labels) / len(batch[1]))
        loss.backward()
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

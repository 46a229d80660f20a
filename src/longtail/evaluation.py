"""Predict once, derive everything from the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.config import Config
from longtail.data.loading import Loader
from longtail.metrics import Evaluation, evaluate_logits
from longtail.models.experts import MultiExpert


@torch.inference_mode()
def expert_logits(model: MultiExpert, loader: Loader) -> tuple[Tensor, Tensor]:
    """Every expert's logits (N, E, C), float32, and the labels (N,), both on the CPU and in the loader's order."""
    was_training = model.training
    model.eval()
    logits, labels = torch.empty(0), torch.empty(loader.num_images, dtype=torch.int64)
    done = 0
    for images, targets in loader.epoch(0):
        batch = model(images).logits
        if done == 0:  # one array from the start: joining batches would need twice the memory
            logits = torch.empty(loader.num_images, *batch.shape[1:])
        logits[done : done + len(batch)] = batch
        labels[done : done + len(batch)] = targets
        done += len(batch)
    model.train(was_training)
    return logits, labels


def evaluate_loader(model: MultiExpert, loader: Loader, class_counts: Sequence[int], config: Config) -> Evaluation:
    """All metrics of a model on the images of a loader."""
    logits, labels = expert_logits(model, loader)
    evaluation = config.evaluation
    return evaluate_logits(
        logits,
        labels,
        class_counts,
        many_above=evaluation.many_above,
        few_below=evaluation.few_below,
        bins=evaluation.calibration_bins,
    )

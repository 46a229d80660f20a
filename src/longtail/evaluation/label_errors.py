"""Likely wrong labels: images that a trained model holds for another class, judged class by class.

Letters in shapes: N images, E experts, D features, C classes.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.check.findings import Finding, make_finding
from longtail.data.copies import AllImages
from longtail.evaluation.label_shift.learned_prior import learned_prior
from longtail.evaluation.metrics import BLOCK
from longtail.evaluation.outputs import ModelOutputs, collect_features, collect_outputs
from longtail.runs.context import EvalSplit
from longtail.runs.opened_model import OpenedModel
from longtail.utils.ensembles import ensemble

MIN_ODDS = 30.0
"""A label is likely to be wrong if another class is so many times as probable, see `label_doubts`"""

MAX_SHARE = 0.2
"""Of the images of a class that can be reported. A class with fewer than 5 images is not judged"""

INVERSE_TEMPERATURES = np.geomspace(0.03, 300, 60)

MAX_FIT_NUMBERS = 5_000_000
"""The temperature is chosen on a part of the images, evenly spread, if there are more logits"""


class LabelDoubts(NamedTuple):
    """How doubtful the labels of N images are."""

    log_odds: Tensor
    """(N,), see `label_doubts`"""
    suggested: Tensor
    """(N,), the most probable other class"""
    probability: Tensor
    """(N,), of the suggested class"""


def leave_one_out_logits(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Returns the cosine between each image and the mean of each class, without the image itself: (N, C).

    The nearest-mean classifier treats all classes as equally common, and leaving an image out has a closed form.

    Args:
        features: (N, E, D), standardised within.
        labels: (N,).
        num_classes: C.
    """
    flat = features.flatten(1)
    flat = F.normalize((flat - flat.mean(dim=0)) / flat.std(dim=0, unbiased=False).clamp(min=1e-6), dim=1)
    sums = flat.new_zeros(num_classes, flat.shape[1]).index_add_(0, labels, flat)
    logits = flat @ F.normalize(sums, dim=1).T
    label_logits = (flat * F.normalize(sums[labels] - flat, dim=1)).sum(dim=1)
    return logits.scatter(1, labels[:, None], label_logits[:, None])


def label_doubts(logits: Tensor, labels: Tensor) -> LabelDoubts:
    """Returns how doubtful each label is, for logits of a classifier that treats classes as equally common.

    The logits become probabilities p by temperature scaling (Guo et al., 2017). With t_k, the mean of p_k over the
    images with label k, the log odds are ``log(max_j p_j) - log(p_label / t_label)``, with j other than the label. So
    the images of a difficult class are compared with their own class, as in confident learning (Northcutt et al.,
    2021).

    Args:
        logits: (N, C), of a classifier that did not see the labels of these images.
        labels: (N,).
    """
    step = -(-logits.numel() // MAX_FIT_NUMBERS)
    part, part_labels = logits[::step], labels[::step]
    losses = [F.cross_entropy(part * float(scale), part_labels).item() for scale in INVERSE_TEMPERATURES]
    log_p = F.log_softmax(logits * float(INVERSE_TEMPERATURES[int(np.argmin(losses))]), dim=1)
    label_log_p = log_p.gather(1, labels[:, None]).squeeze(1)
    others = log_p.scatter(1, labels[:, None], -math.inf)
    best, suggested = others.max(dim=1)
    sums = torch.zeros(logits.shape[1]).index_add_(0, labels, label_log_p.exp())
    mean_confidence = sums / labels.bincount(minlength=logits.shape[1]).clamp(min=1)
    return LabelDoubts(best - label_log_p + mean_confidence[labels].log(), suggested, best.exp())


def output_doubts(outputs: ModelOutputs, learned_log_prior: Tensor) -> LabelDoubts:
    """Returns `label_doubts` for a model's probabilities, adjusted to classes that are equally common.

    Args:
        outputs: of the model for N images.
        learned_log_prior: the class shares that the experts assume, (E, C) or (1, C).
    """
    adjusted = (block - learned_log_prior for block in torch.split(outputs.logits, BLOCK))
    return label_doubts(torch.cat([ensemble(block, outputs.average) for block in adjusted]), outputs.labels)


def most_doubtful(log_odds: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the positions of the labels that are likely to be wrong, the most doubtful first.

    Of each class at most `MAX_SHARE`: a model that does not know a class must not accuse all of its images.
    """
    order = np.argsort(-log_odds, kind="stable")
    order = order[log_odds[order] >= math.log(MIN_ODDS)]
    limits = (MAX_SHARE * np.bincount(labels)).astype(int)
    chosen, seen = [], np.zeros_like(limits)
    for position in order:
        seen[labels[position]] += 1
        if seen[labels[position]] <= limits[labels[position]]:
            chosen.append(position)
    return np.array(chosen, dtype=np.int64)


def wrong_labels(opened: OpenedModel) -> Iterator[Finding]:
    """Yields the labels that are likely to be wrong, the most doubtful first."""
    context, metadata = opened.context, opened.metadata
    images = AllImages(context.dataset, Path(context.config.data.root))
    doubts = list(split_label_doubts(opened))
    log_odds, suggested, probability = (torch.cat(parts).numpy() for parts in zip(*doubts, strict=True))
    for position in most_doubtful(log_odds, images.labels):
        detail = f"{metadata.class_names[suggested[position]]}, probability {probability[position]:.2f}"
        yield make_finding(images, "likely wrong label", position, detail=detail)


def split_label_doubts(opened: OpenedModel) -> Iterator[LabelDoubts]:
    """Yields the doubts about the labels of each split: train, val (if any), test.

    The model was trained with the training labels. Therefore these are judged by the means of its features, each image
    without itself, and those of the other splits by its probabilities, adjusted to classes that are equally common.
    """
    context, model, metadata, loaders, _ = opened
    group = context.runtime.group
    for split in context.dataset.splits:
        if split == "train":
            features, labels = collect_features(model, context.eval_loader(context.dataset.train), group)
            yield label_doubts(leave_one_out_logits(features, labels, model.num_classes), labels)
        else:
            name: EvalSplit = "val" if split == "val" else "test"
            learned = learned_prior(context.config, metadata.class_counts, metadata.classifier, metadata.epoch)
            yield output_doubts(collect_outputs(model, loaders[name], group), learned.log_prior)

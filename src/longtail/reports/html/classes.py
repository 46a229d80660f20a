"""The table of classes of the report page."""

from typing import NamedTuple

import torch

from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.significance import wilson_interval
from longtail.reports.html.examples import confusions

MAX_CLASSES = 10_000
"""Rows of a table, at most: the most common classes"""


class ClassRow(NamedTuple):
    """What is known about a class."""

    position: int
    hits: int
    """Test images that are classified correctly"""
    total: int
    """Test images"""
    low: float
    """Lower limit of the accuracy's confidence interval; nan without test images"""
    high: float
    confused_with: int | None
    """The class that its images are most often taken for; None if all are classified correctly"""
    confused: int
    """Images that are taken for it"""
    best_experts: tuple[int, ...]
    """Experts with the highest accuracy for the class, from 1; empty without test images"""

    @property
    def accuracy(self) -> float | None:
        """Of the class; None without test images."""
        return self.hits / self.total if self.total else None


def class_rows(outputs: ImageOutputs, num_classes: int) -> list[ClassRow]:
    """Returns a row for each class, in the order of the classes."""
    labels = outputs.labels
    totals = torch.bincount(labels, minlength=num_classes)
    hits = torch.bincount(labels[outputs.predictions == labels], minlength=num_classes)
    of_experts = torch.stack(
        [torch.bincount(labels[expert == labels], minlength=num_classes) for expert in outputs.experts.unbind(dim=1)]
    )
    is_best = (of_experts == of_experts.max(dim=0).values) & (totals > 0)  # (E, C)
    low, high = wilson_interval(hits.numpy(), totals.numpy())
    nothing: tuple[int | None, int] = (None, 0)
    worst: dict[int, tuple[int | None, int]] = {}
    for (true, predicted), count in confusions(outputs, num_classes).items():
        if count > worst.get(true, nothing)[1]:
            worst[true] = predicted, count
    best: list[list[int]] = [[] for _ in range(num_classes)]
    for expert, k in torch.nonzero(is_best).tolist():
        best[k].append(expert + 1)
    return [
        ClassRow(k, hit, total, float(low[k]), float(high[k]), *worst.get(k, nothing), tuple(best[k]))
        for k, (hit, total) in enumerate(zip(hits.tolist(), totals.tolist(), strict=True))
    ]

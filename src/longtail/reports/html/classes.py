"""The table of classes of the report page."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.significance import wilson_interval
from longtail.reports.html.text import interval
from longtail.reports.page import RunReport
from longtail.utils.format import percent

MAX_CLASSES = 10_000
"""Rows of a table, at most: the most common classes"""


def class_cells(report: RunReport, outputs: ImageOutputs, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yields the cells of each class, the most common first."""
    evaluation, counts, labels = report.evaluation, report.class_counts, outputs.labels
    totals = evaluation.test_counts
    low, high = wilson_interval(np.diag(evaluation.confusion), totals)
    hits = torch.stack(
        [torch.bincount(labels[expert == labels], minlength=len(names)) for expert in outputs.experts.unbind(dim=1)]
    )
    is_best = (hits == hits.max(dim=0).values).T.tolist()  # (C, E)
    worst: dict[int, dict[str, int]] = {}
    for error in evaluation.frequent_confusions(evaluation.num_images):  # the most frequent first
        worst.setdefault(error["true"], error)
    for k in sorted(range(len(names)), key=lambda k: -counts[k])[:MAX_CLASSES]:
        best = [str(expert) for expert, wins in enumerate(is_best[k], start=1) if wins and totals[k]]
        confusion = worst.get(k)
        yield {
            "name": names[k],
            "shot": evaluation.shots[k],
            "trained": f"{counts[k]:,}",
            "tested": f"{totals[k]:,}",
            "accuracy": percent(evaluation.per_class[k]),
            "interval": interval(low[k], high[k]) if totals[k] else "n/a",
            "confused_with": names[confusion["predicted"]] if confusion else "",
            "confused": f"{100 * confusion['count'] / totals[k]:.0f} %" if confusion else "",
            "best": "all" if len(best) == len(hits) else ", ".join(best),
        }

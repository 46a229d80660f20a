"""When training ends before its last epoch, and which epoch's model is the result."""

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

from longtail.config.schema import TrainingConfig
from longtail.runtime.distributed import SINGLE_PROCESS, Group

Reason = Literal["validation", "time"]


class EarlyEnd:
    """Decides after each epoch whether training continues. Its clock starts with it.

    Args:
        settings: training.patience and training.max_minutes.
        group: processes, which end together.
    """

    def __init__(self, settings: TrainingConfig, group: Group = SINGLE_PROCESS):
        self._settings, self._group, self._start = settings, group, time.monotonic()
        self._last: float | None = None  # end of the epoch before, with its validation

    def reason(self, records: Sequence[dict[str, Any]]) -> Reason | None:
        """Returns why training ends after these epochs; None: it continues, or all epochs are done.

        Args:
            records: metrics of the epochs.
        """
        if len(records) == self._settings.epochs:
            return None
        if self._settings.patience and _without_gain(records) >= self._settings.patience:
            return "validation"
        if self._settings.max_minutes is None:
            return None
        now, seconds = time.monotonic(), records[-1]["seconds"]  # without the validation
        if self._last is not None:
            seconds = max(seconds, now - self._last)
        self._last, end = now, now - self._start + seconds  # of an epoch like the last one
        return "time" if self._group.all_reduce_max(int(end > 60 * self._settings.max_minutes)) else None

    def is_result(self, records: Sequence[dict[str, Any]]) -> bool:
        """Whether the model of the last of these epochs is the result so far.

        With patience it is the best of the validated epochs. Before the first of them it is the last epoch.
        """
        if not self._settings.patience or not any("val_balanced" in record for record in records):
            return True
        return "val_balanced" in records[-1] and _without_gain(records) == 0


def describe(reason: Reason, records: Sequence[dict[str, Any]], settings: TrainingConfig) -> str:
    """Returns a sentence about a training that ended early."""
    why = "the balanced validation accuracy has not risen"
    if reason == "time":
        why = f"another one would end later than training.max_minutes, {settings.max_minutes:g}"
    ended = f"Training ended after epoch {len(records)} of {settings.epochs}: {why}"
    best = records[_best(records)]
    if not settings.patience or "val_balanced" not in best:
        return ended
    return f"{ended}; the model of epoch {best['epoch']} ({best['val_balanced']:.1%}) is the result"


def _best(records: Sequence[dict[str, Any]]) -> int:
    """The position of the first of the best validated epochs."""
    return max(range(len(records)), key=lambda position: (records[position].get("val_balanced", -math.inf), -position))


def _without_gain(records: Sequence[dict[str, Any]]) -> int:
    """The number of evaluations after the best one."""
    return sum("val_balanced" in record for record in records[_best(records) + 1 :])

"""The trackers of one run: which they are, what they have been sent, and what happens if one fails."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtail.tracking import REGISTRY, TrackedRun, Tracker
from longtail.tracking.metrics import epoch_metrics, result_metrics
from longtail.utils.errors import InputError, one_line
from longtail.utils.extras import check_extra

logger = logging.getLogger(__name__)


class Trackers:
    """The trackers of one run. They see records and results, and change nothing.

    A tracker that fails gives one warning and is not called again; the run continues.

    Args:
        names: of the trackers, separated by commas; None or "": no trackers.
        is_active: False in all processes of a job but one.
        strict: a tracker that fails raises `InputError` instead.

    Raises:
        InputError: there is no such tracker, or its package is not installed.
    """

    def __init__(self, names: str | None = None, *, is_active: bool = True, strict: bool = False):
        self.names = list(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
        for name in self.names:
            check_extra(name, REGISTRY[name].needs)
        self._is_active, self._strict = is_active, strict
        self._open: dict[str, Tracker] = {}
        self._last: dict[tuple[str, str], int] = {}

    @contextmanager
    def sending(self, run: TrackedRun) -> Iterator[None]:
        """Within it, the trackers send what they are given."""
        is_complete = False
        if self.names and self._is_active:
            for name in self.names:
                with self._reported(name):
                    run.folder.mkdir(exist_ok=True)
                    self._open[name] = REGISTRY[name](run)
        try:
            yield
            is_complete = True
        finally:
            for name, tracker in list(self._open.items()):
                with self._reported(name):
                    tracker.close(is_complete)
            self._open.clear()

    def epochs(self, stage: str, *records: Mapping[str, Any]) -> None:
        """Sends the epochs of a stage that a tracker does not have yet; a resumed stage begins with all its records.

        Args:
            stage: of the training: train (the experts), classifier or router.
            records: as in metrics.jsonl.
        """
        for name, tracker in list(self._open.items()):
            with self._reported(name):
                last = self._last.get((name, stage))
                last = tracker.last_epoch(stage) if last is None else last
                for record in records:
                    if record["epoch"] > last:
                        last = record["epoch"]
                        tracker.log_epoch(stage, last, epoch_metrics(stage, record))
                self._last[name, stage] = last

    def results(self, results: Mapping[str, Any], plots: Mapping[str, Path]) -> None:
        """Sends the results of an evaluation.

        Args:
            results: results.json.
            plots: PNG files by name.
        """
        for name, tracker in list(self._open.items()):
            with self._reported(name):
                tracker.log_results(results["epoch"], result_metrics(results), plots)

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Reports an error of a tracker, which is then closed for good."""
        try:
            yield
        except Exception as error:  # clients raise anything
            self._open.pop(name, None)
            reason = one_line(str(error).strip()[:300]) or type(error).__name__
            if self._strict:
                raise InputError(f"{name}: {reason}") from error
            logger.warning("tracker %s is off from here: %s. 'longtail track' sends a finished run again", name, reason)

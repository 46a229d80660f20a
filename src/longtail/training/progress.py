"""The display of a training: a progress bar in a terminal, log lines elsewhere."""

import logging
import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from longtail.data.loaders import Loader
from longtail.utils.console import console

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
SECONDS_WITHOUT_LINE = 60.0
"""After this time a line is logged within an epoch, too"""


class TrainingProgress:
    """Shows loss, learning rate, images per second and the time left.

    Args:
        epochs: of the training.
        loader: its images.
        unit: name of an epoch.
        done: epochs done before.
        seconds: spent before on the epoch that it starts with, of which some steps may be done.
    """

    def __init__(self, epochs: int, loader: Loader, unit: str = "epoch", *, done: int = 0, seconds: float = 0.0):
        self.unit = unit
        self.epochs, self.steps, self.num_images = epochs, len(loader), loader.num_images
        self.last_line = time.perf_counter()
        self.start = self.last_line - seconds  # as if the first epoch had not been interrupted
        self.first = self.done = done
        self.bar: Progress | None = None
        if console().is_terminal and not console().quiet:
            columns = (unit + " {task.fields[epoch]}/" + str(epochs), BarColumn(), "{task.percentage:>3.0f}%")
            numbers = TextColumn("{task.fields[numbers]}")
            self.bar = Progress(*columns, numbers, TimeRemainingColumn(), TextColumn("left"), console=console())
            completed, total = done * self.steps, epochs * self.steps
            self.task = self.bar.add_task("", total=total, completed=completed, epoch=done + 1, numbers="")

    def __enter__(self) -> "TrainingProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, done_in_epoch: int, learning_rate: float, loss: float | None) -> None:
        """Called after each step; the loss is given from time to time."""
        if self.bar:
            self.bar.update(self.task, completed=self.done * self.steps + done_in_epoch, epoch=self.done + 1)
        if loss is None:
            return
        now = time.perf_counter()
        epochs = self.done - self.first + done_in_epoch / self.steps
        speed = self.num_images * epochs / (now - self.start)
        numbers = f"loss {loss:.3f}  lr {learning_rate:.2g}  {speed:,.0f} images/s"
        if self.bar:
            self.bar.update(self.task, numbers=numbers)
        elif now - self.last_line > SECONDS_WITHOUT_LINE and done_in_epoch < self.steps:
            self.last_line = now
            share = done_in_epoch / self.steps
            logger.info("%s %d/%d (%.0f%% done)  %s", self.unit, self.done + 1, self.epochs, 100 * share, numbers)

    def epoch(self, record: dict[str, Any]) -> None:
        """Called after each epoch, with its metrics."""
        self.done = record["epoch"]
        now = time.perf_counter()
        if self.bar:
            return
        if now - self.last_line < SECONDS_BETWEEN_LINES and self.done not in (self.first + 1, self.epochs):
            return
        self.last_line = now
        left = (now - self.start) / (self.done - self.first) * (self.epochs - self.done)
        validation = f"  val {record['val_balanced']:6.1%}" if "val_balanced" in record else ""
        logger.info(
            f"{self.unit} {self.done:>{len(str(self.epochs))}}/{self.epochs}  loss {record['loss']:8.3f}  "
            f"train {record['accuracy']:6.1%}{validation}  lr {record['learning_rate']:.2g}  "
            f"{record['images_per_second']:,.0f} images/s  {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

"""What a person sees of training: a bar in a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
SECONDS_WITHOUT_LINE = 60.0
"""After which something is said within an epoch, too"""


def say(console: Console, text: str) -> None:
    """A line for the user, as it is."""
    # Names may hold what Rich takes for markup, and a command or a path must not be broken into lines.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class TrainingProgress:
    """Shows loss, learning rate, images per second and time left of a training.

    Args:
        console: where to.
        epochs: in all.
        steps: in an epoch.
        num_images: in an epoch.
        what: what an epoch is called.
        done: epochs done before.
    """

    def __init__(
        self, console: Console, epochs: int, steps: int, num_images: int, what: str = "epoch", *, done: int = 0
    ):
        self.console = console
        self.what = what
        self.epochs, self.steps, self.num_images = epochs, steps, num_images
        self.start = self.last_line = time.perf_counter()
        self.first = self.done = done
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (what + " {task.fields[epoch]}/" + str(epochs), BarColumn(), "{task.percentage:>3.0f}%")
            numbers = TextColumn("{task.fields[numbers]}")
            self.bar = Progress(*columns, numbers, TimeRemainingColumn(), TextColumn("left"), console=console)
            self.task = self.bar.add_task("", total=epochs * steps, completed=done * steps, epoch=done + 1, numbers="")

    def __enter__(self) -> "TrainingProgress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, done_in_epoch: int, learning_rate: float, loss: float | None) -> None:
        """After each step; the loss comes now and then."""
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
            share = f"{done_in_epoch / self.steps:.0%}"
            say(self.console, f"{self.what} {self.done + 1}/{self.epochs}, {share} of it  {numbers}")

    def epoch(self, record: dict[str, Any]) -> None:
        """After each epoch, with its record."""
        self.done = record["epoch"]
        now = time.perf_counter()
        if self.bar:
            return
        if now - self.last_line < SECONDS_BETWEEN_LINES and self.done not in (self.first + 1, self.epochs):
            return
        self.last_line = now
        left = (now - self.start) / (self.done - self.first) * (self.epochs - self.done)
        validation = f"  val {record['val_balanced']:6.1%}" if "val_balanced" in record else ""
        self.console.print(
            f"{self.what} {self.done:>{len(str(self.epochs))}}/{self.epochs}  loss {record['loss']:8.3f}  "
            f"train {record['accuracy']:6.1%}{validation}  lr {record['learning_rate']:.2g}  "
            f"{record['images_per_second']:,.0f} images/s  {_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

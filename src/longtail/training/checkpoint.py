"""Checkpoints: where a training is saved from time to time, and resumes exactly."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from longtail.config.recipes import same_fingerprint
from longtail.data.loaders import Batch
from longtail.runs.context import RunContext
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals, Stopped
from longtail.training.state import Position, TrainingState
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """What is read from a checkpoint, see `TrainingState.capture`."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    position: Position


class Checkpoint:
    """The checkpoint file of a stage.

    The last two checkpoints are kept. If the last one is damaged, the one before it is used.

    Args:
        path: of the last checkpoint.
        settings: fingerprint of the settings and the training images, stored with the checkpoint.
        matches: whether a stored fingerprint and this one are of the same training; by default, whether they are equal.
        strict: a checkpoint of another training is an error; otherwise it is ignored.
        every: seconds between two checkpoints.
        group: the processes that train together; the first one writes.
        signals: may ask to stop.

    Raises:
        InputError: there is a checkpoint of another training, and ``strict`` is set.
    """

    def __init__(
        self,
        path: Path,
        settings: str,
        *,
        matches: Callable[[str, str], bool] = str.__eq__,
        strict: bool = True,
        every: float = 600.0,
        group: Group = SINGLE_PROCESS,
        signals: Signals | None = None,
    ):
        self.path, self.settings, self.every = path, settings, every
        self.group, self.signals = group, signals or Signals()
        self._last = time.perf_counter()
        self._is_damaged = False
        self._teacher = ""
        self._saved = self._read(matches, strict)

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one."""
        return self.path.with_name(f"{self.path.stem}.before{self.path.suffix}")

    @property
    def records(self) -> list[dict[str, Any]]:
        """Metrics of the epochs that were complete when it was saved."""
        return list(self._saved.position.records) if self._saved else []

    @property
    def seconds(self) -> float:
        """Time spent on the epoch in which it was saved."""
        return self._saved.position.seconds if self._saved else 0.0

    @property
    def exists(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self._saved is not None

    def weights(self) -> dict[str, Tensor]:
        """The weights of the task, to restore some of them before the rest; none without a checkpoint."""
        tensors = self._saved.tensors if self._saved else {}
        return {name.removeprefix("task."): tensor for name, tensor in tensors.items() if name.startswith("task.")}

    def check_teacher(self, teacher: str) -> None:
        """Checks that a teacher is the one with which the checkpoint was saved.

        Args:
            teacher: its `checksum`, stored with the checkpoint.

        Raises:
            InputError: it is another one.
        """
        if self._saved and self._saved.values.get("teacher", teacher) != teacher:  # earlier versions did not store it
            raise self._unusable(self.path, "was saved with another teacher; restore that one")
        self._teacher = teacher

    def restore(self, state: TrainingState) -> None:
        """Restores a training from the checkpoint, if there is one.

        Raises:
            InputError: the file is of another training.
        """
        if self._saved:
            try:
                state.restore(*self._saved)
            except InputError as error:
                raise self._unusable(self.path, str(error)) from error
            self._saved = None  # frees its memory
        self.group.barrier()  # before the file may be replaced

    def after_step(self, state: TrainingState) -> None:
        """Saves if it is time, or if a signal asked any of the processes to stop.

        Raises:
            Stopped: a signal asked for it.
        """
        due = time.perf_counter() - self._last >= self.every
        action = self.group.all_reduce_max(2 if self.signals.asked_to_stop else int(due))
        if action == 2:
            self.signals.answered()
        if action:
            self.save(state)
        if action == 2:
            self.group.barrier()  # a process that ends early would end the others while they write
            raise Stopped

    def saving(self, batches: Iterator[Batch], state: TrainingState) -> Iterator[Batch]:
        """Yields the batches of an epoch; saves if loading fails, or if a signal comes while a batch is waited for.

        Several processes only save together, after a step; there the last checkpoint remains.

        Raises:
            Stopped: a signal asked for it.
        """
        alone, batches = self.group.size == 1, iter(batches)
        while True:
            try:
                with self.signals.interruptible() if alone else nullcontext():
                    batch = next(batches, None)
            except KeyboardInterrupt as error:
                self.signals.answered()
                if alone:
                    self.save(state)
                raise Stopped from error
            except Exception as error:
                if alone and (state.position.step or state.position.epoch > 1):  # there is work to save
                    self.save(state)
                    logger.info("The training is saved; it can be resumed")
                raise error from None
            if batch is None:
                return
            yield batch

    def save(self, state: TrainingState) -> None:
        """Saves now; all processes take part.

        Raises:
            InputError: the disk is full or the folder is not writable; the last checkpoint is unchanged.
        """
        tensors, values = state.capture()
        if self.group.is_main:
            keep = None if self._is_damaged else self.previous
            stored = {"settings": self.settings, "teacher": self._teacher}
            write_tensors(self.path, tensors, values | stored, keep=keep)
        self._is_damaged = False
        self._last = time.perf_counter()

    def remove(self) -> None:
        """Removes the files, after the stage is complete."""
        if self.group.is_main:
            for path in (self.path, self.previous):
                path.unlink(missing_ok=True)

    def _read(self, matches: Callable[[str, str], bool], strict: bool) -> Saved | None:
        for path in (self.path, self.previous):
            if not path.is_file():
                continue
            try:
                tensors, values = read_tensors(path)
                saved = values["settings"]
            except (InputError, KeyError, TypeError) as error:
                self._is_damaged |= path == self.path
                reason = str(error) if isinstance(error, InputError) else f"{path}: not a checkpoint"
                logger.warning("%s; ignored", reason)
                continue
            if saved == self.settings or matches(saved, self.settings):
                try:
                    return Saved(tensors, values, Position.parse(values))
                except InputError as error:
                    raise self._unusable(path, str(error)) from error
            if strict:
                raise self._unusable(path, "was saved with other settings or other training images; restore these")
        return None

    def _unusable(self, path: Path, reason: str) -> InputError:
        names = f"{self.path.name} and {self.previous.name}"
        return InputError(f"{path}: {reason}, or remove {names} to start again")


def checksum(*modules: nn.Module) -> str:
    """Identifies the weights of modules."""
    digest = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def stage_checkpoint(context: RunContext, stage: str, strict: bool = True) -> Checkpoint:
    """Returns the checkpoint of a stage of a run: experts, classifier or router."""
    return Checkpoint(
        context.run.checkpoint_path(stage),
        context.fingerprint,
        matches=_is_same_training,
        strict=strict,
        every=60 * context.config.training.checkpoint_every,
        group=context.runtime.group,
        signals=context.signals,
    )


def _is_same_training(saved: str, current: str) -> bool:
    """Whether two fingerprints are of the same settings and images; the saved one may be of an earlier version."""
    (settings, _, images), (current_settings, _, current_images) = saved.rpartition("\n"), current.rpartition("\n")
    return images == current_images and same_fingerprint(settings, current_settings)

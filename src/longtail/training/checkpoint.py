"""Where a training is saved now and then, and goes on from."""

import logging
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals, Stopped
from longtail.training.state import TrainingState
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

logger = logging.getLogger(__name__)


class Checkpoint:
    """Where a training is saved now and then, and from where it goes on exactly.

    The last two are kept, and the one before stands in where the last is damaged.

    Args:
        path: of the last one.
        settings: what a training must have in common with the one that was saved.
        strict: other settings; otherwise what was saved with them is passed over.
        every: seconds between two.
        group: the processes that train together, of which the first writes.
        signals: what may ask to stop.

    Raises:
        InputError: what was saved has other settings.
    """

    def __init__(
        self,
        path: Path,
        settings: str = "",
        *,
        strict: bool = True,
        every: float = 600.0,
        group: Group = SINGLE_PROCESS,
        signals: Signals | None = None,
    ):
        self.path, self.settings, self.strict, self.every = path, settings, strict, every
        self.group, self.signals = group, signals or Signals()
        self._last = time.perf_counter()
        self._is_damaged = False
        self._saved = self._read()

    @property
    def before(self) -> Path:
        """The one before the last."""
        return self.path.with_name(f"{self.path.stem}.before{self.path.suffix}")

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of the epochs that were complete when it was saved."""
        return list(self._saved[1]["position"]["records"]) if self._saved else []

    @property
    def is_there(self) -> bool:
        """Whether there is anything to go on from."""
        return self._saved is not None

    def restore(self, state: TrainingState) -> None:
        """Brings a training to where it was saved, if it was.

        Raises:
            InputError: the file is of another training.
        """
        if self._saved:
            try:
                state.restore(*self._saved)
            except InputError as error:
                raise InputError(f"{self.path}: {error}") from error
            self._saved = None  # it was large
        self.group.barrier()  # before the file may be replaced

    def after_step(self, state: TrainingState) -> None:
        """Saves if it is time or somebody asked to stop, in any of the processes.

        Raises:
            Stopped: somebody asked.
        """
        due = time.perf_counter() - self._last >= self.every
        wish = self.group.all_reduce_max(2 if self.signals.asked_to_stop else int(due))
        if wish:
            self.save(state)
        if wish == 2:
            self.group.barrier()  # a process that ends early has the others ended too, in the middle of writing
            raise Stopped

    def save(self, state: TrainingState) -> None:
        """Saves now; all processes take part.

        Raises:
            InputError: the disk is full or the folder cannot be written to; the last one is as it was.
        """
        tensors, values = state.captured()
        if self.group.is_main:
            keep = None if self._is_damaged else self.before
            write_tensors(self.path, tensors, values | {"settings": self.settings}, keep=keep)
        self._is_damaged = False
        self._last = time.perf_counter()

    def remove(self) -> None:
        """When training is complete."""
        if self.group.is_main:
            for path in (self.path, self.before):
                path.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        for path in (self.path, self.before):
            if not path.is_file():
                continue
            try:
                tensors, values = read_tensors(path)
                saved, _ = values["settings"], values["position"]["records"]
            except (InputError, KeyError, TypeError) as error:
                self._is_damaged |= path == self.path
                logger.warning("%s; not used", error if isinstance(error, InputError) else f"{path}: no checkpoint")
                continue
            if saved != self.settings and not self.strict:
                continue
            if saved != self.settings:
                raise InputError(
                    f"{path}: was saved with other settings or other training images, and cannot go on with these; "
                    f"take back what was changed, or remove {self.path.name} and {self.before.name} to begin anew"
                )
            return tensors, values
        return None

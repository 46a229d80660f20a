"""Trackers: services that a run's metrics are sent to. Each module of this package registers one.

A new tracker is one new module::

    @register("my-service", needs="my_client")
    class MyService(Tracker): ...
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from longtail.utils.files import write_atomically
from longtail.utils.registry import Registry


class TrackedRun(NamedTuple):
    """What a tracker knows of a run when it starts."""

    name: str

    folder: Path
    """For the tracker's own files; it exists, and a resumed run finds them again"""

    settings: Mapping[str, Any]
    """Every setting by ``section.field``, the hyper-parameters"""

    def read_state(self, name: str) -> dict[str, Any]:
        """Returns what a tracker has kept for the next start; empty at the first one."""
        path = self.folder / f"{name}.json"
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}

    def write_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keeps what a tracker needs at the next start."""
        write_atomically(self.folder / f"{name}.json", json.dumps(state).encode())


class Tracker(ABC):
    """Sends the metrics of a run to a service. Any method may raise any error: it ends this tracker, not the run.

    Modules import the client of the service in the constructor, so that it is imported only if it is used.

    Args:
        run: the run. If the tracker knows it from an earlier start, it continues there.
    """

    needs: ClassVar[str]
    """Package that it imports; the extra of longtail has the tracker's name"""

    @abstractmethod
    def __init__(self, run: TrackedRun): ...

    def last_epoch(self, stage: str) -> int:
        """Returns the last epoch of a stage (train, classifier, router) that the service has; 0 if it has none."""
        return 0

    @abstractmethod
    def log_epoch(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of an epoch, such as ``train/loss``. Epochs of a stage come in order, each once."""

    @abstractmethod
    def log_results(self, epoch: int, metrics: Mapping[str, float], plots: Mapping[str, Path]) -> None:
        """Sends the results, such as ``results/test/few``, and the plots: PNG files by name."""

    @abstractmethod
    def close(self, is_complete: bool) -> None:
        """Sends what is left. If the run is not complete, it may be resumed."""


Class = TypeVar("Class", bound=type[Tracker])

REGISTRY: Registry[type[Tracker]] = Registry("track", __name__)


def register(name: str, *, needs: str) -> Callable[[Class], Class]:
    """Decorator that makes a class the tracker ``track: <name>``."""

    def decorate(tracker: Class) -> Class:
        tracker.needs = needs
        REGISTRY.added[name] = tracker
        return tracker

    return decorate

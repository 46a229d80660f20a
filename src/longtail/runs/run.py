"""A run folder: what training leaves behind and everything later starts from."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from longtail.config.recipes import load_recipe, to_yaml
from longtail.config.schema import Config
from longtail.data.corrupt_images import SKIPPED_FILE, CorruptImage, from_text, to_text
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import MODEL_FILE, ModelMetadata, load_metadata, load_model_file, save_model
from longtail.utils.errors import InputError
from longtail.utils.files import UNFINISHED, write_atomically

LOCK_FILE = ".lock"
PREDICTIONS_FILE = "predictions.csv"


class Run:
    """A run folder.

    ``config.yaml`` (every setting; train with it again), ``metrics.jsonl`` (one line an epoch),
    ``model.safetensors``, ``results.json``, ``environment.json``, ``report.md`` and ``plots/``; where test pictures are
    files ``predictions.csv``; while a stage is being trained also its checkpoint.

    Args:
        folder: of the run.
        writes: whether this process is the one that writes; in others all writing is passed over.
    """

    def __init__(self, folder: str | Path, writes: bool = True):
        self.folder = Path(folder)
        self.writes = writes

    def __repr__(self) -> str:
        return f"Run('{self.folder}')"

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """An existing run.

        Raises:
            InputError: the folder holds no model.
        """
        run = cls(folder)
        if not run.model_path.is_file():
            raise InputError(f"'{folder}' is not a run folder: it has no {run.model_path.name}")
        return run

    @property
    def config_path(self) -> Path:
        """Every setting."""
        return self.folder / "config.yaml"

    @property
    def model_path(self) -> Path:
        """The weights with their description."""
        return self.folder / MODEL_FILE

    @property
    def heads_path(self) -> Path:
        """The experts' own heads, where the model has others."""
        return self.folder / "heads.safetensors"

    def checkpoint_path(self, stage: str) -> Path:
        """What a stage, experts, classifier or router, goes on from while it is unfinished."""
        return self.folder / f"checkpoint-{stage}.safetensors"

    @property
    def teacher_folder(self) -> Path:
        """The run of a teacher that was trained for this one."""
        return self.folder / "teacher"

    @cached_property
    def config(self) -> Config:
        """The settings it was trained with."""
        return load_recipe(self.config_path)

    def load_model(self) -> tuple[MultiExpert, ModelMetadata]:
        """The model of the last complete epoch, on the CPU in eval mode, with its description."""
        return load_model_file(self.model_path)

    def history(self) -> list[dict[str, Any]]:
        """The record of each epoch."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]

    def results(self) -> dict[str, Any]:
        """What it reached, by part: test, and val where there is one.

        Raises:
            InputError: they are damaged.
        """
        return _parse(self.results_path.read_bytes(), str(self.results_path))

    @property
    def results_path(self) -> Path:
        """The results for programs."""
        return self.folder / "results.json"

    def environment(self) -> dict[str, Any]:
        """Versions and hardware it was trained with."""
        path = self.folder / "environment.json"
        return _parse(path.read_bytes(), str(path)) if path.is_file() else {}

    def skipped(self) -> list[CorruptImage] | None:
        """The images that were left out because they do not decode; None where nobody looked.

        Raises:
            InputError: the list is damaged.
        """
        path = self.folder / SKIPPED_FILE
        return from_text(path.read_bytes(), path) if path.is_file() else None

    def write_skipped(self, bad: list[CorruptImage]) -> None:
        """Keeps that list, so that everything later leaves out the same images."""
        self._write(self.folder / SKIPPED_FILE, to_text(bad))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Within it, no other process may write to the folder, which is made if need be.

        Raises:
            InputError: another process has it, or it cannot be made or written to.
        """
        if not self.writes:
            yield
            return
        lock = FileLock(self.folder / LOCK_FILE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"'{self.folder}' is in use by another longtail process; wait for it, or stop it"
            ) from error
        except OSError as error:
            raise InputError(f"run folder '{self.folder}' cannot be written to: {error.strerror}") from error
        try:
            for left in self.folder.glob(f".*{UNFINISHED}"):  # by somebody who was killed
                left.unlink(missing_ok=True)
            yield
        finally:
            if not self.config_path.exists() and not self.model_path.exists():  # nothing came of it
                with suppress(OSError):
                    (self.folder / LOCK_FILE).unlink()
                    self.folder.rmdir()
            lock.release()

    def start(self, config: Config, environment: dict[str, Any]) -> None:
        """Writes what is known before training.

        Raises:
            InputError: another run has taken the folder meanwhile.
        """
        if self.writes and self.config_path.exists():
            raise InputError(f"another run has taken '{self.folder}' meanwhile; start again")
        try:
            self.write_json("environment.json", environment)
            self.write_history([])
            self.write_config(config)  # last: a folder with settings is a run
        except InputError:  # the disk is full
            self.discard()
            raise

    def write_config(self, config: Config) -> None:
        """Replaces the settings."""
        self._write(self.config_path, to_yaml(config).encode())
        self.__dict__.pop("config", None)  # what was read before

    @property
    def is_converted(self) -> bool:
        """Whether it was made of a checkpoint of the original."""
        return "converted_from" in self.environment()

    @property
    def is_routed(self) -> bool:
        """Whether its model has a router."""
        return self.model_path.is_file() and "router" in load_metadata(self.model_path).architecture

    @property
    def average(self) -> str:
        """What of its model's experts is averaged."""
        return str(load_metadata(self.model_path).architecture.get("average", "logits"))

    @property
    def classifier(self) -> str:
        """Method by which its model's heads were made after the experts' training; empty: they are the experts' own."""
        return load_metadata(self.model_path).classifier if self.model_path.is_file() else ""

    @property
    def has_classifier(self) -> bool:
        """Whether its model has the heads that the settings ask for."""
        return self.config.classifier.method in ("none", self.classifier)

    @property
    def epochs_done(self) -> int:
        """Complete epochs of the experts' training that the model stands for; 0 where there is none."""
        return load_metadata(self.model_path).epoch if self.model_path.is_file() else 0

    @property
    def has_experts(self) -> bool:
        """Whether the experts' training is complete."""
        epochs = self.config.training.epochs
        return self.epochs_done >= epochs and (self.is_converted or len(self.history()) >= epochs)

    @property
    def is_finished(self) -> bool:
        """Whether all stages are done and tested."""
        if not self.results_path.is_file() or not self.model_path.is_file():
            return False
        return self.has_experts and self.has_classifier and (self.is_routed or not self.config.router.train)

    def discard(self) -> None:
        """Takes back what `start` wrote, where nothing came of the run."""
        for name in ("config.yaml", "environment.json", "metrics.jsonl", SKIPPED_FILE):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # it may hold something else
            self.folder.rmdir()

    def remove_checkpoints(self) -> None:
        """When all stages are complete."""
        for path in self.folder.glob("checkpoint-*.safetensors") if self.writes else ():
            path.unlink(missing_ok=True)

    def save_model(self, model: MultiExpert, metadata: ModelMetadata) -> None:
        """Replaces the model."""
        if self.writes:
            save_model(self.model_path, model, metadata)

    def write_history(self, records: list[dict[str, Any]]) -> None:
        """Replaces the records of the epochs."""
        self._write(self.folder / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file into the folder."""
        self._write(self.folder / name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def write_csv(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        """Writes a CSV file into the folder; names of files in it may be no text."""
        if self.writes:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            self._write(self.folder / name, text.getvalue().encode(errors="surrogateescape"))

    def remove(self, name: str) -> None:
        """Removes a file that says nothing of the run any more."""
        if self.writes:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, path: Path, content: bytes) -> None:
        if self.writes:
            write_atomically(path, content)


def _is_leftover(path: Path) -> bool:
    """Of somebody who was killed before the folder was a run, see `Run.start`."""
    return path.name in (LOCK_FILE, "environment.json", "metrics.jsonl") or path.name.endswith(UNFINISHED)


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise InputError(f"{where}: damaged ({error}); mend or remove it") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{where}: damaged; mend or remove it")
    return parsed


def new_run(name: str, output: str | Path | None = None) -> Run:
    """A run folder that does not exist yet: ``output``, or the first free of runs/name, runs/name-2, ...

    Raises:
        InputError: ``output`` holds something already, or ``name`` leads out of runs/.
    """
    if output is not None:
        folder = Path(output)
        if folder.exists() and (not folder.is_dir() or any(not _is_leftover(path) for path in folder.iterdir())):
            raise InputError(f"'{output}' exists already; choose another --output, or remove it first")
        return Run(folder)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"name is '{name}', which is no name of a folder in runs/; give another, or an --output")
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return Run(folder)

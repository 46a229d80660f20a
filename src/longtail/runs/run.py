"""The run folder: what training writes, and everything later reads."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from longtail.config.recipes import load_recipe, to_yaml
from longtail.config.schema import Config
from longtail.data.corrupt_images import SKIPPED_FILE, CorruptImage, from_text, to_text
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import (
    MODEL_FILE,
    ModelMetadata,
    load_metadata,
    load_model_file,
    reject_original,
    save_model,
)
from longtail.utils.errors import InputError
from longtail.utils.files import UNFINISHED, write_atomically, write_csv
from longtail.utils.locks import LOCK_FILE, acquire_lock, is_locked

PREDICTIONS_FILE = "predictions.csv"
ADJUSTED_RESULTS = ("prior.json", "label_shift.json", "label_shift.md")
"""Further results of `longtail evaluate`"""


class Progress(NamedTuple):
    """How far a run is. It follows from the metadata of its model file, and from which results are there."""

    epochs: int = 0
    """Epoch of the model: the last complete one of the experts' training or, with patience, the best one"""

    has_experts: bool = False
    """The experts are trained"""

    has_classifier: bool = False
    """and have the classifiers that the settings ask for"""

    is_routed: bool = False
    """The model has a router"""

    is_finished: bool = False
    """All stages are complete, and the model was evaluated"""


class Run:
    """A run folder.

    It holds ``config.yaml`` (every setting), ``metrics.jsonl`` (one line for each epoch), ``model.safetensors``,
    ``results.json``, ``outputs.safetensors``, ``environment.json``, ``report.html``, ``report.md`` and ``plots/``; if
    test images are files, ``predictions.csv``; while a stage is trained, its checkpoint.

    Args:
        folder: path of the run.
        writes: whether this process writes; in other processes of a job all writing is skipped.
    """

    def __init__(self, folder: str | Path, writes: bool = True):
        self.folder = folder = Path(folder)
        self.writes = writes
        self.config_path = folder / "config.yaml"
        """Every setting"""
        self.model_path = folder / MODEL_FILE
        """Weights and metadata"""
        self.heads_path = folder / "heads.safetensors"
        """The experts' own heads, if the model has other ones"""
        self.results_path = folder / "results.json"
        """Results as JSON"""
        self.teacher_folder = folder / "teacher"
        """The run of a teacher that is trained for this run"""
        self.views_folder = folder / "frozen-views"
        """Outputs of the frozen part of the network for the training images, while the rest is trained"""
        self.tracking_folder = folder / "tracking"
        """Files of the trackers"""
        self.epochs_folder = folder / "epochs"
        """The models that are kept every so many epochs"""

    def __repr__(self) -> str:
        return f"Run('{self.folder}')"

    @classmethod
    def open(cls, folder: str | Path) -> "Run":
        """Opens an existing run.

        Raises:
            InputError: the folder holds no model.
        """
        run = cls(folder)
        reject_original(folder)
        if run.folder.is_file():
            raise InputError(f"'{folder}' is a file; the folder of a run is needed")
        if not run.model_path.is_file():
            raise InputError(f"'{folder}' is not a run folder: it has no {run.model_path.name}")
        return run

    def checkpoint_path(self, stage: str) -> Path:
        """The checkpoint of an unfinished stage: experts, classifier or router."""
        return self.folder / f"checkpoint-{stage}.safetensors"

    @cached_property
    def config(self) -> Config:
        """The settings of the run."""
        return load_recipe(self.config_path)

    def load_model(self) -> tuple[MultiExpert, ModelMetadata]:
        """The model on the CPU in eval mode, and its metadata. Its epoch is `Progress.epochs`."""
        return load_model_file(self.model_path)

    def history(self) -> list[dict[str, Any]]:
        """The metrics of each epoch."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.is_file() else []
        return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]

    def stage_records(self) -> dict[str, list[dict[str, Any]]]:
        """The metrics of the epochs of each complete stage: train (the experts), classifier, router."""
        later = {stage: self._json(f"{stage}.json") for stage in ("classifier", "router")}
        records = {stage: list(found.get("epochs", ())) for stage, found in later.items() if found}
        return {"train": self.history()} | records

    def plots(self) -> dict[str, Path]:
        """The plots of the report by name."""
        return {path.stem: path for path in sorted((self.folder / "plots").glob("*.png"))}

    def results(self) -> dict[str, Any]:
        """The results by split: test, and val if there is one.

        Raises:
            InputError: the run has not been evaluated, or the file is damaged.
        """
        if not self.results_path.is_file():
            raise InputError(
                f"'{self.folder}' has no {self.results_path.name}; longtail evaluate {self.folder} writes it"
            )
        return _parse(self.results_path.read_bytes(), str(self.results_path))

    def environment(self) -> dict[str, Any]:
        """Versions and hardware of the training."""
        return self._json("environment.json")

    def skipped(self) -> list[CorruptImage] | None:
        """The images that were skipped because they do not decode; None if images were not checked.

        Raises:
            InputError: the list is damaged.
        """
        path = self.folder / SKIPPED_FILE
        return from_text(path.read_bytes(), path) if path.is_file() else None

    @property
    def is_converted(self) -> bool:
        """Whether the run was made from a checkpoint of the original code, or downloaded: it was not trained here."""
        return not {"converted_from", "pulled_from"}.isdisjoint(self.environment())

    def progress(self) -> Progress:
        """How far the run is."""
        if not (self.config_path.is_file() and self.model_path.is_file()):  # `start` writes the settings last
            return Progress()
        config = self.config
        try:
            metadata = load_metadata(self.model_path)
        except InputError as error:
            if self.checkpoint_path("experts").is_file():
                return Progress()  # training resumes from there, and replaces the damaged model
            raise InputError(
                f"{error}; if you remove it, 'longtail train --resume' trains the experts again"
            ) from error
        history, epochs = self.history(), config.training.epochs
        # The history is written after the model of an epoch.
        is_trained = len(history) >= epochs or (len(history) > 0 and "ended" in history[-1])
        has_experts = is_trained or self.is_converted
        has_classifier = has_experts and config.classifier.method in ("none", metadata.classifier)
        is_routed = "router" in metadata.architecture
        has_stages = has_classifier and (is_routed or not config.router.train)
        return Progress(
            metadata.epoch, has_experts, has_classifier, is_routed, has_stages and self.results_path.is_file()
        )

    @property
    def is_finished(self) -> bool:
        """Whether all stages are complete and evaluated."""
        return self.progress().is_finished

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Within it, no other process writes to the folder, which is made if necessary.

        Raises:
            InputError: another process uses it, or it is not writable.
        """
        if not self.writes:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = acquire_lock(self.folder)
        except Timeout as error:
            raise InputError(f"'{self.folder}' is in use by another longtail process; wait, or stop it") from error
        except OSError as error:
            raise InputError(f"run folder '{self.folder}' is not writable: {error.strerror}") from error
        try:
            for folder in (self.folder, self.epochs_folder):
                for leftover in folder.glob(f".*{UNFINISHED}"):  # of a process that was killed
                    leftover.unlink(missing_ok=True)
            yield
        finally:
            if not self.config_path.exists() and not self.model_path.exists():  # the run was not started
                with suppress(OSError):
                    (self.folder / LOCK_FILE).unlink()
                    self.folder.rmdir()
            if lock is not None:
                lock.release()

    @property
    def in_use(self) -> bool:
        """Whether another process writes to the folder."""
        return is_locked(self.folder)

    def start(
        self,
        config: Config,
        environment: dict[str, Any],
        model: tuple[MultiExpert, ModelMetadata] | None = None,
        history: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Writes what is known before training; of a trained or converted model, also the model and its history.

        Raises:
            InputError: another run has taken the folder meanwhile.
        """
        if self.writes and self.config_path.exists():
            raise InputError(f"another run has taken '{self.folder}' meanwhile; start again")
        try:
            self.write_json("environment.json", environment)
            self.write_history(history)
            if model is not None:
                self.save_model(*model)
            self.write_config(config)  # last: a folder with settings is a run
        except InputError:  # the disk is full
            self.discard()
            raise

    def discard(self) -> None:
        """Removes what `start` wrote."""
        for name in ("config.yaml", "environment.json", "metrics.jsonl", MODEL_FILE, SKIPPED_FILE):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.tracking_folder, ignore_errors=True)
        with suppress(OSError):  # it may hold other files
            self.folder.rmdir()

    def remove(self, *names: str) -> None:
        """Removes files that belong to an earlier model."""
        for name in names if self.writes else ():
            (self.folder / name).unlink(missing_ok=True)

    def remove_checkpoints(self) -> None:
        """Removes all checkpoints, and the outputs of a frozen part, after all stages are complete."""
        if self.writes:
            for path in self.folder.glob("checkpoint-*.safetensors"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.views_folder, ignore_errors=True)

    def save_model(
        self, model: MultiExpert, metadata: ModelMetadata, before: Callable[[], None] = lambda: None
    ) -> None:
        """Replaces the model. ``before`` is called when the new one is complete on the disk."""
        if self.writes:
            save_model(self.model_path, model, metadata, before)

    def keep_model(self, model: MultiExpert, metadata: ModelMetadata) -> None:
        """Writes the model of an epoch to a file of its own."""
        if self.writes:
            self.epochs_folder.mkdir(exist_ok=True)
            save_model(self.epochs_folder / f"epoch-{metadata.epoch}.safetensors", model, metadata)

    def _json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file; empty if there is none."""
        path = self.folder / name
        return _parse(path.read_bytes(), str(path)) if path.is_file() else {}

    def write_config(self, config: Config) -> None:
        """Replaces the settings."""
        self._write("config.yaml", to_yaml(config).encode())
        self.__dict__.pop("config", None)  # the cached settings

    def write_history(self, records: Sequence[dict[str, Any]]) -> None:
        """Replaces the metrics of the epochs."""
        self._write("metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records).encode())

    def write_skipped(self, skipped: list[CorruptImage]) -> None:
        """Writes the list of skipped images, so that later commands skip the same ones."""
        self._write(SKIPPED_FILE, to_text(skipped))

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file."""
        self._write(name, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

    def write_csv(self, name: str, rows: Iterable[Sequence[object]]) -> None:
        """Writes a CSV file; file names in it may hold bytes that are not text."""
        if self.writes:
            write_csv(self.folder / name, rows)

    def _write(self, name: str, content: bytes) -> None:
        if self.writes:
            write_atomically(self.folder / name, content)


def _is_leftover(path: Path) -> bool:
    """Whether a file was left by a process that was killed before the folder was a run, see `Run.start`."""
    return path.name in (LOCK_FILE, "environment.json", "metrics.jsonl") or path.name.endswith(UNFINISHED)


def _parse(text: bytes, source: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not UTF-8
        raise InputError(f"{source}: damaged ({error}); repair or remove it") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{source}: damaged; repair or remove it")
    return parsed


def new_run(name: str, output: str | Path | None = None) -> Run:
    """A new run folder: ``output``, or the first free one of runs/name, runs/name-2, ...

    Raises:
        InputError: ``output`` holds files already, or ``name`` leads out of runs/.
    """
    if output is not None:
        folder = Path(output)
        if folder.exists() and (not folder.is_dir() or any(not _is_leftover(path) for path in folder.iterdir())):
            raise InputError(f"'{output}' exists already; choose another --output, or remove it first")
        return Run(folder)
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"name is '{name}', which is not a folder name in runs/; set another name, or --output")
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return Run(folder)

"""The definition of an experiment: rows of a table, each a recipe with changed settings, trained with every seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from longtail.config.recipes import Settings, diff_configs, merged, resolve
from longtail.config.schema import Config
from longtail.config.yaml_file import parse_yaml, read_text
from longtail.runs.run import Run
from longtail.utils.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Published:
    """Published results for a row; accuracies in %."""

    overall: float | None = None
    """With all experts"""

    routed: float | None = None
    """With the experts that the router chooses"""

    many: float | None = None
    """Many-shot classes, of ``overall`` if it is given, otherwise of ``routed``; so are the next two"""

    medium: float | None = None
    few: float | None = None

    source: str = ""
    """Where they were published"""

    @property
    def accuracy(self) -> float | None:
        """The accuracy to compare with."""
        return self.routed if self.overall is None else self.overall


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    recipe: str
    """A recipe, or a YAML file of settings"""

    settings: Settings = field(default_factory=dict)
    """Changes to the recipe; ``teacher`` may be the name of another row"""

    published: Published | None = None
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """Rows and seeds."""

    title: str
    seeds: tuple[int, ...]
    settings: Settings
    """Of all rows; a row's own settings take precedence"""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Job:
    """One training: a row with a seed."""

    row: Row
    config: Config
    run: Run
    teacher: "Job | None" = None
    """The job of another row, with the same seed, whose run is the teacher"""

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.config.seed

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.run.folder.name

    @property
    def is_done(self) -> bool:
        """Whether its run is finished, with the planned settings."""
        return self.run.is_finished and self.difference() is None

    def difference(self) -> tuple[str, Any, Any] | None:
        """The first setting that differs in the existing run: name, value in the run, planned value.

        A finished run may also have been trained on data in another folder.
        """
        existing, planned = self.run.config, self.config
        differences = diff_configs(existing, planned)
        roots = existing.data.root, planned.data.root
        if not differences and self.run.is_finished and Path(roots[0]).resolve() != Path(roots[1]).resolve():
            differences = [("data.root", *roots)]
        return differences[0] if differences else None


def read_experiment(path: Path) -> Experiment:
    """Reads a YAML file with ``title``, ``seeds``, ``settings`` of all rows, and ``rows``: name to the fields of `Row`.

    Raises:
        InputError: the file is missing, or has other content.
    """
    if not path.is_file():
        raise InputError(f"no file '{path}'; an experiment is a YAML file with rows, see docs/experiments.md")
    content = _mapping(parse_yaml(read_text(path), str(path)), str(path), Experiment)
    rows = content.get("rows")
    if not isinstance(rows, dict) or not rows:
        raise InputError(f"{path}: rows is {rows!r}; it must name at least one row, 'name: {{recipe: ...}}'")
    return Experiment(
        title=str(content.get("title", path.stem)),
        seeds=check_seeds(content.get("seeds", [0]), str(path)),
        settings=_mapping(content.get("settings"), f"{path}: settings"),
        rows=tuple(_row(str(name), row, f"{path}: row '{name}'") for name, row in rows.items()),
    )


def check_seeds(seeds: Any, source: str) -> tuple[int, ...]:
    """Returns the seeds.

    Raises:
        InputError: they are not different whole numbers from 0.
    """
    if not isinstance(seeds, Sequence) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"{source}: seeds is {seeds!r}; it must be a list of whole numbers from 0, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{source}: seeds is {seeds!r}; each seed must occur once")
    return tuple(seeds)


def plan(experiment: Experiment, folder: Path, arguments: Sequence[str] = ()) -> list[Job]:
    """Returns every job of an experiment: teachers before their students, the first seed of all rows first.

    Args:
        experiment: rows and seeds.
        folder: of the runs, ``ROW-seedS``.
        arguments: settings of all rows from the command line, ``--section.field value``.

    Raises:
        InputError: a setting is wrong, or a row is its own teacher.
    """
    rows = {row.name: row for row in experiment.rows}
    options = [word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--")]
    configs: dict[str, Config] = {}
    for row in experiment.rows:
        settings = merged(experiment.settings, row.settings)
        try:
            for name, instead in (("seed", "use 'seeds' or --seeds 0,1,2"), ("name", "a row has its own name")):
                if name in (*settings, *options):
                    raise InputError(f"'{name}' is not a setting of an experiment; {instead}")
            configs[row.name] = replace(resolve(row.recipe, settings, arguments), name=row.name)
        except InputError as error:
            raise InputError(f"row '{row.name}': {error}") from error
    jobs: dict[tuple[str, int], Job] = {}

    def add(name: str, seed: int, students: tuple[str, ...] = ()) -> Job:
        """Adds a job after that of its teacher, and returns it."""
        if name in students:
            raise InputError(f"row '{name}': circular teacher reference")
        if (name, seed) not in jobs:
            config, run = configs[name], Run(folder / f"{name}-seed{seed}")
            teacher = add(config.teacher, seed, (*students, name)) if config.teacher in rows else None
            path = config.teacher if teacher is None else str(teacher.run.folder)
            existing = run.config.teacher if run.config_path.is_file() else None
            if existing and path and Path(existing).resolve() == Path(path).resolve():
                path = existing  # the same folder by another path
            jobs[name, seed] = Job(rows[name], replace(config, seed=seed, teacher=path), run, teacher)
        return jobs[name, seed]

    for seed in experiment.seeds:
        for name in rows:
            add(name, seed)
    return list(jobs.values())


def select(jobs: Sequence[Job], rows: Sequence[str]) -> list[Job]:
    """Returns the jobs of some rows and of their teachers.

    Raises:
        InputError: there is no such row.
    """
    names = list(dict.fromkeys(job.row.name for job in jobs))
    for name in rows:
        if name not in names:
            raise InputError(f"no row '{name}'; rows are {', '.join(names)}{did_you_mean(name, names)}")
    selected = {job.name for job in jobs if job.row.name in rows}
    for job in reversed(jobs):  # students come after their teachers
        if job.name in selected and job.teacher is not None:
            selected.add(job.teacher.name)
    return [job for job in jobs if job.name in selected]


def _row(name: str, content: Any, source: str) -> Row:
    content = _mapping(content, source, Row)
    if not name or Path(name).name != name:
        raise InputError(f"{source}: the name of a row becomes a folder name; it cannot contain '/'")
    published = None
    if content.get("published") is not None:
        published = _published(_mapping(content["published"], f"{source}: published", Published), source)
    settings = _mapping(content.get("settings"), f"{source}: settings")
    return Row(name, str(content.get("recipe", name)), settings, published, str(content.get("note", "")))


def _published(content: Settings, source: str) -> Published:
    for name, value in content.items():
        if name != "source" and (type(value) not in (int, float) or not 0 <= value <= 100):
            raise InputError(f"{source}: published.{name} is {value!r}; it must be an accuracy in %")
    return Published(**content)


def _mapping(content: Any, source: str, kind: type[Experiment | Row | Published] | None = None) -> Settings:
    """Returns a mapping; its keys must be fields of ``kind``, other than the name."""
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"{source}: is {content!r}; it must contain 'name: value'")
    valid_names = [field.name for field in fields(kind) if field.name != "name"] if kind else list(content)
    for name in content:
        if name not in valid_names:
            hint = did_you_mean(str(name), valid_names)
            raise InputError(f"{source}: unknown '{name}'; known are {', '.join(valid_names)}{hint}")
    return content

"""What an experiment is: rows of a table, each a recipe with some settings, trained with every seed."""

from collections.abc import Mapping, Sequence
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
    """What somebody else's table says of a row; accuracies in %."""

    overall: float | None = None
    """With all experts"""

    routed: float | None = None
    """With as many as the router asks for"""

    many: float | None = None
    """Of overall where it is there, else of routed; likewise the next two"""

    medium: float | None = None
    few: float | None = None

    source: str = ""
    """Whose table"""

    @property
    def accuracy(self) -> float | None:
        """The one to compare with."""
        return self.routed if self.overall is None else self.overall


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    recipe: str
    """A recipe, or a YAML file of settings"""

    settings: Settings = field(default_factory=dict)
    """What differs from the recipe; a ``teacher`` may be the name of another row"""

    published: Published | None = None
    note: str = ""
    """Anything a reader should know, in a few words"""


@dataclass(frozen=True)
class Experiment:
    """Rows and seeds."""

    title: str
    seeds: tuple[int, ...]
    settings: Settings
    """Of all rows; a row's own go before them"""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Job:
    """One training: a row with a seed."""

    row: Row
    config: Config
    run: Run
    teacher: str | None = None
    """Name of the row whose run, with the same seed, is its teacher"""

    @property
    def seed(self) -> int:
        """Its own."""
        return self.config.seed

    @property
    def name(self) -> str:
        """Of its run folder."""
        return self.run.folder.name

    @property
    def is_done(self) -> bool:
        """Whether its run is finished, and was trained as jobs_planned."""
        return self.run.is_finished and self.difference() is None

    def difference(self) -> tuple[str, Any, Any] | None:
        """A setting in which the run that is there is not as jobs_planned: its name, what it is, what it should be.

        Of finished ones also where the data were: they may have been others.
        """
        there, wanted = self.run.config, self.config
        found = diff_configs(there, wanted)
        if not found and self.run.is_finished and Path(there.data.root).resolve() != Path(wanted.data.root).resolve():
            found = [("data.root", there.data.root, wanted.data.root)]
        return found[0] if found else None


def read_experiment(path: Path) -> Experiment:
    """Reads a YAML file: ``title``, ``seeds``, ``settings`` (of all rows) and ``rows``, name to what `Row` has.

    Raises:
        InputError: it is not there, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file '{path}'; an experiment is a YAML file with rows, see the README")
    content = parse_yaml(read_text(path), str(path))
    _check_names(content, ("title", "seeds", "settings", "rows"), str(path))
    rows, seeds = content.get("rows"), content.get("seeds", [0])
    if not isinstance(rows, dict) or not rows:
        raise InputError(f"{path}: rows is {rows!r}; it must name at least one row, 'name: {{recipe: ...}}'")
    return Experiment(
        title=str(content.get("title", path.stem)),
        seeds=check_seeds(seeds, str(path)),
        settings=_mapping(content.get("settings"), f"{path}: settings"),
        rows=tuple(_row(str(name), row, f"{path}: row '{name}'") for name, row in rows.items()),
    )


def check_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    """Seeds as they were given.

    Raises:
        InputError: they are not different whole numbers from 0.
    """
    if not isinstance(seeds, Sequence) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"{where}: seeds is {seeds!r}; it must be a list of whole numbers from 0, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds is {seeds!r}; each one counts once")
    return tuple(seeds)


def _row(name: str, content: Any, where: str) -> Row:
    content = _mapping(content, where)
    _check_names(content, ("recipe", "settings", "published", "note"), where)
    if not name or Path(name).name != name:
        raise InputError(f"{where}: the name of a row becomes that of a folder; it cannot hold '/'")
    published = content.get("published")
    return Row(
        name,
        str(content.get("recipe", name)),
        _mapping(content.get("settings"), f"{where}: settings"),
        None if published is None else _published(_mapping(published, f"{where}: published"), where),
        str(content.get("note", "")),
    )


def _published(content: Settings, where: str) -> Published:
    _check_names(content, [field.name for field in fields(Published)], f"{where}: published")
    for name, value in content.items():
        if name != "source" and (type(value) not in (int, float) or not 0 <= value <= 100):
            raise InputError(f"{where}: published.{name} is {value!r}; it must be an accuracy in %")
    return Published(**content)


def _mapping(content: Any, where: str) -> Settings:
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{where}: is {content!r}; it must hold 'name: value'")
    return content


def _check_names(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in content:
        if name not in known:
            raise InputError(f"{where}: unknown '{name}'; there is {', '.join(known)}{did_you_mean(str(name), known)}")


def plan(experiment: Experiment, folder: Path, arguments: Sequence[str] = ()) -> list[Job]:
    """Every training of an experiment, teachers before their students, the first seed of all rows first.

    Args:
        experiment: what is wanted.
        folder: each training's run is in a folder of it, ``ROW-seedS``.
        arguments: settings of all rows from the command line, ``--section.field value``.

    Raises:
        InputError: a setting is wrong; or a teacher is taught by its own student.
    """
    rows = {row.name: row for row in experiment.rows}
    order: dict[str, str | None] = {}
    configs: dict[str, Config] = {}
    for row in experiment.rows:
        settings = merged(experiment.settings, row.settings)
        given = [*settings, *(word.removeprefix("--").partition("=")[0] for word in arguments if word.startswith("--"))]
        try:
            _check_free(given)
            configs[row.name] = replace(resolve(row.recipe, settings, arguments), name=row.name)
        except InputError as error:
            raise InputError(f"row '{row.name}': {error}") from error
    for name in rows:
        _put(name, configs, order, ())
    return [
        _planned(rows[name], seed, configs[name], folder, teacher)
        for seed in experiment.seeds
        for name, teacher in order.items()
    ]


def _check_free(settings: Sequence[str]) -> None:
    """Refuses what a row cannot set, because it follows from its name and its seed."""
    for name, instead in (("seed", "seeds are given by 'seeds' or --seeds 0,1,2"), ("name", "a row has its name")):
        if name in settings:
            raise InputError(f"'{name}' is no setting of an experiment; {instead}")


def chosen(jobs_planned: Sequence[Job], rows: Sequence[str]) -> list[Job]:
    """Those of some rows, and of their teachers.

    Raises:
        InputError: there is no such row.
    """
    known = list(dict.fromkeys(one.row.name for one in jobs_planned))
    for name in rows:
        if name not in known:
            raise InputError(f"no row '{name}'; there is {', '.join(known)}{did_you_mean(name, known)}")
    wanted = set(rows)
    for one in reversed(jobs_planned):  # students come after their teachers
        if one.row.name in wanted and one.teacher is not None:
            wanted.add(one.teacher)
    return [one for one in jobs_planned if one.row.name in wanted]


def _put(name: str, configs: Mapping[str, Config], order: dict[str, str | None], students: tuple[str, ...]) -> None:
    """Puts a row into the order, after its teacher."""
    if name in students:
        raise InputError(f"row '{name}' is in the end its own teacher")
    if name in order:
        return
    teacher = configs[name].teacher
    if teacher is None or teacher not in configs:
        order[name] = None
        return
    _put(teacher, configs, order, (*students, name))
    order[name] = teacher


def _planned(row: Row, seed: int, config: Config, folder: Path, teacher: str | None) -> Job:
    run, known = Run(_folder(folder, row.name, seed)), config.teacher
    if teacher is not None:
        known = str(_folder(folder, teacher, seed))
        if (
            run.config_path.is_file()
            and (before := run.config.teacher)
            and Path(before).resolve() == Path(known).resolve()
        ):
            known = before  # the same folder, by another path to it
    return Job(row, replace(config, seed=seed, teacher=known), run, teacher)


def _folder(folder: Path, row: str, seed: int) -> Path:
    return folder / f"{row}-seed{seed}"

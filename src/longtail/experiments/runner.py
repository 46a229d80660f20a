"""The whole way: from an experiment's file to its table."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from longtail.experiments.processes import Trainings
from longtail.experiments.spec import check_seeds, chosen, plan, read_experiment
from longtail.experiments.table import collect, write_table
from longtail.training.progress import say
from longtail.utils.errors import InputError

ENVIRONMENT = ("python", "device", "device_name", "threads", "packages")
"""What is told of the machine"""


def run_experiment(
    file: str | Path,
    output: str | Path | None = None,
    *,
    table: str | Path | None = None,
    rows: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    arguments: Sequence[str] = (),
    command: str = "",
    console: Console | None = None,
) -> Path:
    """Trains every row with every seed, but for what is finished, and writes the table; returns its Markdown file.

    Args:
        file: see `longtail.experiments.spec.read_experiment`.
        output: folder of the runs; runs/FILE by default.
        table: where the table goes, without suffix; ``table`` in ``output`` by default. It is written anew after each
            training.
        rows: train only these, and their teachers; all by default. The table has whatever is finished.
        seeds: other ones than the file's.
        jobs: trainings at once.
        arguments: settings of all rows, ``--section.field value``.
        command: what to say in the table that it was made by.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: the file, a row or a setting is wrong; a run is in the way; or some rows could not be trained, after
            the others were.
        Stopped: a signal asked for it; the same again goes on.
    """
    file, console = Path(file), console or Console(quiet=True)
    experiment = read_experiment(file)
    if seeds is not None:
        experiment = replace(experiment, seeds=check_seeds(seeds, "--seeds"))
    folder = Path("runs") / file.stem if output is None else Path(output)
    where = folder / "table" if table is None else Path(table)
    where = where.with_suffix("") if where.suffix in (".md", ".json") else where
    every = plan(experiment, folder, arguments)
    jobs_planned = every if rows is None else chosen(every, rows)
    if jobs < 1:
        raise InputError(f"--jobs is {jobs}; it must be at least 1")

    def tell() -> bool:
        told = [one for one in every if one in jobs_planned or one.is_done]
        if finished := [one.run for one in told if one.run.is_finished]:
            known = [run.environment() for run in finished]
            told_of = [{name: one[name] for name in ENVIRONMENT if name in one} for one in known]
            table = {
                "title": experiment.title,
                "command": command,
                "environments": [one for i, one in enumerate(told_of) if one not in told_of[:i]],
                "seeds": experiment.seeds,
                "settings": experiment.settings,
                "rows": collect(told),
            }
            write_table(where, table)
        return bool(finished)

    trainings = Trainings(jobs_planned, every, jobs, console, tell)
    trainings.check()
    where.parent.mkdir(parents=True, exist_ok=True)  # now, and not after hours, if it cannot be
    trainings.carry_out()
    others = f"; the others are in {where}.md" if tell() else ""
    if trainings.failed:
        raise InputError(f"not trained: {', '.join(trainings.failed)}{others}")
    say(console, f"The table: {where}.md")
    return where.with_name(f"{where.name}.md")

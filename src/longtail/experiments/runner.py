"""Runs an experiment: from its file to its table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtail.experiments.processes import JobRunner
from longtail.experiments.spec import check_seeds, plan, read_experiment, select
from longtail.experiments.table import collect, write_table
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)

ENVIRONMENT = ("python", "device", "device_name", "threads", "packages")
"""Fields of a run's environment that the table's JSON file keeps"""


@dataclass(frozen=True)
class ExperimentOptions:
    """How an experiment is run."""

    table: str | Path | None = None
    """Path of the table without suffix; ``table`` in the output folder by default"""

    rows: Sequence[str] | None = None
    """Train only these rows and their teachers; all by default. The table has every finished row."""

    seeds: Sequence[int] | None = None
    """Instead of the seeds of the file"""

    jobs: int = 1
    """Parallel trainings"""

    arguments: Sequence[str] = ()
    """Settings of all rows, ``--section.field value``"""

    command: str = ""
    """Named in the table as the command that made it"""


def run_experiment(
    file: str | Path, output: str | Path | None = None, options: ExperimentOptions | None = None
) -> Path:
    """Trains each row with each seed, except for finished runs, and writes the table after each training.

    Args:
        file: see `longtail.experiments.spec.read_experiment`.
        output: folder of the runs; runs/FILE by default.
        options: which rows and seeds, and so on.

    Returns:
        The Markdown file of the table.

    Raises:
        InputError: the file, a row or a setting is wrong; another run is in the way; or some rows failed, after all
            others were trained.
        Stopped: a signal asked for it; the same call resumes.
    """
    file, options = Path(file), options or ExperimentOptions()
    experiment = read_experiment(file)
    if options.seeds is not None:
        experiment = replace(experiment, seeds=check_seeds(options.seeds, "--seeds"))
    if options.jobs < 1:
        raise InputError(f"--jobs is {options.jobs}; it must be at least 1")
    folder = Path("runs") / file.stem if output is None else Path(output)
    table = folder / "table" if options.table is None else Path(options.table)
    table = table.with_suffix("") if table.suffix in (".md", ".json") else table
    all_jobs = plan(experiment, folder, options.arguments)
    jobs = all_jobs if options.rows is None else select(all_jobs, options.rows)

    def update_table() -> bool:
        shown = [job for job in all_jobs if job in jobs or job.is_done]
        finished = [job.run.environment() for job in shown if job.run.is_finished]
        if finished:
            environments = [{name: values[name] for name in ENVIRONMENT if name in values} for values in finished]
            content = {
                "title": experiment.title,
                "command": options.command,
                "environments": [values for i, values in enumerate(environments) if values not in environments[:i]],
                "seeds": experiment.seeds,
                "settings": experiment.settings,
                "rows": collect(shown),
            }
            write_table(table, content)
        return bool(finished)

    runner = JobRunner(jobs, all_jobs, options.jobs, update_table)
    runner.check()
    table.parent.mkdir(parents=True, exist_ok=True)  # before hours of training, in case that it fails
    runner.run()
    has_table = update_table()
    if runner.failed:
        others = f"; the other rows are in {table}.md" if has_table else ""
        raise InputError(f"not trained: {', '.join(runner.failed)}{others}")
    logger.info("Table: %s.md", table)
    return table.with_name(f"{table.name}.md")

"""Opens the runs that a benchmark measures."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from longtail.config.recipes import resolve
from longtail.data.build import load_data
from longtail.runs.context import RunContext
from longtail.runs.model_file import MODEL_FILE
from longtail.runs.run import Run
from longtail.runtime.device import Runtime, pick_device


def run_contexts(arguments: Sequence[str]) -> Iterator[RunContext]:
    """Yields runs with their settings, data and device.

    Args:
        arguments: of the command line: run folders, and settings of all runs such as ``--data.root FOLDER``.
    """
    folders = [word for word in arguments if (Path(word) / MODEL_FILE).is_file()]
    settings = [word for word in arguments if word not in folders]
    if not folders:
        raise SystemExit("name at least one run folder")
    for folder in folders:
        run = Run.open(folder)
        config = resolve(str(run.config_path), arguments=settings)
        yield RunContext(run, config, load_data(config.data, run.skipped() or ()), Runtime(pick_device(config.device)))

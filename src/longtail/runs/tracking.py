"""What trackers get of a run, from its files."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtail.config.recipes import as_dict, flat
from longtail.config.schema import Config
from longtail.runs.pulled import as_run
from longtail.runs.run import Run
from longtail.tracking import REGISTRY, TrackedRun
from longtail.tracking.trackers import Trackers
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)


def track(run: Run | str | Path, to: str) -> None:
    """Sends a finished run to trackers, from its files: metrics, results, settings and plots.

    A tracker that has the run already gets what it lacks.

    Args:
        run: a run or its folder.
        to: trackers, separated by commas, see `longtail.config.schema.Config.track`.

    Raises:
        InputError: there is no such run, it is not finished, or it is in use; there is no such tracker, or it fails.
    """
    run, trackers = as_run(run), Trackers(to, strict=True)
    if not trackers.names:
        raise InputError(f"track '{to}' names no tracker; there are {', '.join(REGISTRY.names())}")
    if not run.is_finished:
        raise InputError(f"'{run.folder}' is not finished; finish it with: longtail train --resume {run.folder}")
    with run.lock(), tracking(run, run.config, trackers):
        pass
    logger.info("Sent %s to %s", run.folder, " and ".join(trackers.names))


@contextmanager
def tracking(run: Run, config: Config, trackers: Trackers) -> Iterator[None]:
    """Within it, trackers send what they are given.

    At its start they get the epochs in the run folder, and leave out those that they have; at its end the results.
    """
    with trackers.sending(TrackedRun(run.folder.resolve().name, run.tracking_folder, flat(as_dict(config)))):
        for stage, records in run.stage_records().items() if trackers.names else ():
            trackers.epochs(stage, *records)
        yield
        if trackers.names and run.writes:
            trackers.results(run.results(), run.plots())

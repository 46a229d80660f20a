"""Train several recipes with several seeds, and make a table.

Trains each row of an experiment with each seed, except for finished runs, and writes a table as Markdown and JSON: mean
± standard deviation over the seeds, beside published values. Settings apply to all rows.
"""

import argparse
import shlex
import sys

from longtail.cli._shared import comma_separated
from longtail.utils.errors import InputError

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("file", metavar="FILE", help="YAML file with title, seeds, settings for all rows, and rows")
    parser.add_argument("--output", metavar="FOLDER", help="folder for the runs (default: runs/FILE)")
    parser.add_argument(
        "--table", metavar="PATH", help="path of the table without suffix (default: table in the folder)"
    )
    parser.add_argument(
        "--rows", metavar="NAMES", help="train only these rows, separated by commas, and their teachers"
    )
    parser.add_argument(
        "--seeds", metavar="SEEDS", type=comma_separated(int, "0,1,2"), help="replace the seeds of the file: 0,1,2"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="parallel trainings, which share cores and GPUs (default: 1)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.experiments.runner import ExperimentOptions, run_experiment

    if arguments.settings and not arguments.settings[0].startswith("-"):
        raise InputError(f"unknown argument '{arguments.settings[0]}'; rows and seeds are separated by commas: a,b")
    options = ExperimentOptions(
        table=arguments.table,
        rows=arguments.rows.split(",") if arguments.rows else None,
        seeds=arguments.seeds,
        jobs=arguments.jobs,
        arguments=arguments.settings,
        command=shlex.join(["longtail", *sys.argv[1:]]),
    )
    run_experiment(arguments.file, arguments.output, options)

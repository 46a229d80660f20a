"""Send a finished run to trackers, from its files: metrics, results, settings and plots.

Training sends them with --track.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.add_argument(
        "--to",
        metavar="TRACKERS",
        required=True,
        help="tensorboard, wandb, mlflow; several are separated by commas",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.runs.tracking import track

    track(arguments.folder, arguments.to)

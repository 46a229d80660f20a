"""Train a router for a finished run or a converted checkpoint.

Replaces any earlier router and evaluates the run. The experts stay as they are.
"""

import argparse

from longtail.cli._shared import add_threshold_options, open_run

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder, or hf://owner/name")
    add_threshold_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail import api

    goals = {"compute_budget": arguments.compute_budget, "max_accuracy_drop": arguments.max_accuracy_drop}
    settings = list(arguments.settings)
    if any(goal is not None for goal in goals.values()):  # the other one is reset: only one of them can be set
        settings += [f"--router.{name}={'null' if goal is None else goal}" for name, goal in goals.items()]
    trained, config = open_run(arguments.folder, settings, ("router", "data", "evaluation"))
    api.add_router(trained, config=config)

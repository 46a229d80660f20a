"""Replace the classifiers of a finished run or a converted checkpoint.

Trains the router again, if any, and evaluates the run. --classifier.method is retrain (cRT), scale (LWS), tau,
nearest-mean (NCM), or none to restore the experts' own classifiers.
"""

import argparse

from longtail.cli._shared import open_run

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder, or hf://owner/name")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail import api

    trained, config = open_run(arguments.folder, arguments.settings, ("classifier", "data", "evaluation"))
    api.retrain_classifier(trained, config=config)

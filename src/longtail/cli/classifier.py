"""`longtail classifier`."""

import argparse

from longtail.cli._shared import Commands, open_run


def add_parser(commands: Commands) -> None:
    """Adds the parser."""
    parser = commands.add_parser(
        "classifier",
        help="replace the classifiers of a run",
        description="Replaces the classifiers of a finished run or a converted checkpoint, trains its router again and "
        "evaluates it. --classifier.method is retrain (cRT), scale (LWS), tau, nearest-mean (NCM), or none to restore "
        "the experts' own classifiers.",
    )
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.set_defaults(run=run, takes_settings=True)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail import api

    trained, config = open_run(arguments.folder, arguments.settings, ("classifier", "data", "evaluation"))
    api.retrain_classifier(trained, config=config)

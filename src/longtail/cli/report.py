"""Write the HTML report of a run again, from its saved outputs.

A run that was not evaluated by this version is evaluated. The pictures need the data: --data.root FOLDER if they moved.
"""

import argparse

from longtail.cli._shared import open_run

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import webbrowser

    from longtail import api

    trained, config = open_run(arguments.folder, arguments.settings, ("data",))
    page = api.report(trained, config=config)
    if arguments.open:
        webbrowser.open(page.resolve().as_uri())

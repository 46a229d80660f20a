"""Check the images of a data set before training, and list damaged, blank, tiny and mislabelled images and copies.

Prints a table, and writes all findings to a CSV file: kind, image, class, split, other image, detail. With --run, a
trained run also names images whose label is likely to be wrong.
"""

import argparse

from longtail.cli._shared import folder_settings, open_run, split_folder
from longtail.utils.errors import InputError

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.usage = "longtail check [FOLDER] [options] [settings]; FOLDER is the same as --data.root FOLDER"
    parser.add_argument("--config", metavar="RECIPE", help="recipe or YAML file (default: folder, or that of the run)")
    parser.add_argument("--run", metavar="RUN", dest="trained", help="trained run folder, to find wrong labels")
    parser.add_argument(
        "--output", metavar="FILE", help="CSV file (default: check.csv in the run folder, or in the current folder)"
    )
    parser.add_argument(
        "--min_side", metavar="PIXELS", type=int, default=32, help="an image with a smaller side is tiny (default: 32)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.config.recipes import FOLDER_RECIPE, resolve
    from longtail.reports.check import check

    trained = None
    folder, settings = split_folder(arguments.settings)
    if arguments.trained is None:
        recipe = arguments.config or FOLDER_RECIPE
        config = resolve(recipe, folder_settings(folder, recipe) if folder else {}, settings)
    elif arguments.config is None:
        settings += ["--data.root", folder] if folder else []
        trained, config = open_run(arguments.trained, settings, ("data", "evaluation"))
    else:
        raise InputError("--run keeps the settings of the run; it takes no --config")
    check(config, run=trained, output=arguments.output, min_side=arguments.min_side)

"""Train and evaluate a model, and write a run folder.

'longtail train photos/' trains on your own images, with one folder per class. It starts from a pretrained network, and
chooses image size, epochs, batch size and validation images for your images, this machine and the time.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli._shared import folder_settings, setting_names, split_folder
from longtail.utils.errors import InputError

if TYPE_CHECKING:
    from longtail.config.schema import Config

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.usage = "longtail train [FOLDER] [options] [settings]"
    parser.add_argument(
        "--time",
        metavar="TIME",
        help="with FOLDER: time for training and testing, such as 30m (default: 20m)",
    )
    parser.add_argument(
        "--config",
        "-c",
        "--cfg",
        "--recipe",
        metavar="RECIPE",
        help="recipe, YAML file, or settings file of RIDE or RIDE-Swin (default: folder with FOLDER, digits-lt-ride "
        "without)",
    )
    parser.add_argument(
        "--output",
        metavar="RUN",
        help="new run folder (default: runs/NAME, then runs/NAME-2, ...; NAME is that of FOLDER or of the recipe)",
    )
    parser.add_argument(
        "--resume", "-r", metavar="RUN", help="resume an interrupted run exactly from its last checkpoint"
    )
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and exit")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from rich.console import Console

    from longtail.config.recipes import settings_parser, to_yaml
    from longtail.utils.console import log_to_console

    if arguments.help:
        arguments.parser.print_help()
        print("\nsettings, each with its default:")
        print(settings_parser(usage=argparse.SUPPRESS, add_help=False).format_help())
        return
    folder, arguments.settings = split_folder(arguments.settings)
    if arguments.resume is not None:
        from longtail.runs.model_file import reject_original

        reject_original(arguments.resume)
        if arguments.settings or arguments.config or arguments.output or folder:
            raise InputError(
                "--resume keeps the settings of the run; it takes no FOLDER, --config, --output or settings"
            )
        from longtail import api

        api.resume(arguments.resume)
        return
    if arguments.print_config:  # standard output is YAML; notes go elsewhere
        log_to_console(Console(stderr=True))
    config = _config(arguments) if folder is None else _folder_config(folder, arguments)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from longtail import api

    api.train(config, arguments.output)


def _config(arguments: argparse.Namespace) -> "Config":
    from longtail.cli._original import resolve_config
    from longtail.config.recipes import DEFAULT_RECIPE

    if arguments.time is not None:
        raise InputError("--time is for your own images: longtail train FOLDER --time 30m; others have training.epochs")
    return resolve_config(arguments.config or DEFAULT_RECIPE, arguments.settings)


def _folder_config(folder: str, arguments: argparse.Namespace) -> "Config":
    """The settings for a folder; those of an earlier start, if the output holds a run."""
    from longtail.cli._original import translate_options
    from longtail.config.recipes import FOLDER_RECIPE, resolve

    settings, changes = translate_options(arguments.settings)
    if changes:
        raise InputError("--opts is for YAML files of RIDE-Swin; settings are --section.field value")
    started = arguments.output and Path(arguments.output, "config.yaml")
    recipe = str(started) if started and started.is_file() else arguments.config or FOLDER_RECIPE
    config = resolve(recipe, folder_settings(folder, recipe), settings)
    if started and started.is_file():
        return config
    if arguments.config is not None and arguments.time is None:
        return config
    from longtail.folder_settings import choose_settings, parse_duration

    limit = None if arguments.time is None else parse_duration(arguments.time)
    return choose_settings(config, fixed=setting_names(settings), time_limit=limit)

"""Train and evaluate a model, and write a run folder.

'longtail train photos/' trains on your own images, with one folder per class. It starts from a pretrained network, and
chooses image size, epochs, batch size and validation images for your images, this machine and the time.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from longtail.cli._shared import setting_names, split_folder
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
        metavar="RECIPE",
        help="recipe, YAML file, or settings file of RIDE or RIDE-Swin (default: folder with FOLDER, digits-lt-ride "
        "without)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="new run folder (default: runs/NAME)")
    parser.add_argument(
        "--resume", "-r", metavar="RUN", help="resume an interrupted run exactly from its last checkpoint"
    )
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and exit")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.config.recipes import settings_parser, to_yaml

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
    config = _config(arguments) if folder is None else _folder_config(folder, arguments)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from longtail import api

    api.train(config, arguments.output)


def _config(arguments: argparse.Namespace) -> "Config":
    from rich.console import Console

    from longtail.cli._original import resolve_config
    from longtail.config.recipes import DEFAULT_RECIPE
    from longtail.utils.console import log_to_console

    if arguments.print_config:  # standard output is YAML; notes go elsewhere
        log_to_console(Console(stderr=True))
    if arguments.time is not None:
        raise InputError("--time is for your own images: longtail train FOLDER --time 30m; others have training.epochs")
    return resolve_config(arguments.config or DEFAULT_RECIPE, arguments.settings)


def _folder_config(folder: str, arguments: argparse.Namespace) -> "Config":
    """The settings for a folder; those of an earlier start, if the output holds a run."""
    from longtail.config.recipes import FOLDER_RECIPE, resolve

    data = {"data": {"name": "folder", "root": folder}}
    started = arguments.output and Path(arguments.output, "config.yaml")
    if started and started.is_file():
        return resolve(str(started), data, arguments.settings)
    config = resolve(arguments.config or FOLDER_RECIPE, data, arguments.settings)
    if arguments.config is not None and arguments.time is None:
        return config
    from longtail.folder_settings import choose_settings, parse_duration

    limit = None if arguments.time is None else parse_duration(arguments.time)
    return choose_settings(config, fixed=setting_names(arguments.settings), time_limit=limit)

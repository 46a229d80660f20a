"""Train and evaluate a model, and write a run folder."""

import argparse

from longtail.utils.errors import InputError

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--config", metavar="RECIPE", help="recipe or YAML file (default: digits-lt-ride)")
    parser.add_argument("--output", metavar="FOLDER", help="new run folder (default: runs/NAME)")
    parser.add_argument("--resume", metavar="RUN", help="resume an interrupted run exactly from its last checkpoint")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    parser.add_argument("-h", "--help", action="store_true", help="show this help with all settings and exit")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.config.recipes import DEFAULT_RECIPE, resolve, settings_parser, to_yaml

    if arguments.help:
        arguments.parser.print_help()
        print("\nsettings, each with its default:")
        print(settings_parser(usage=argparse.SUPPRESS, add_help=False).format_help())
        return
    if arguments.resume is not None:
        if arguments.settings or arguments.config or arguments.output:
            raise InputError("--resume keeps the settings of the run; it takes no --config, --output or settings")
        from longtail import api

        api.resume(arguments.resume)
        return
    config = resolve(arguments.config or DEFAULT_RECIPE, arguments=arguments.settings)
    if arguments.print_config:
        print(to_yaml(config), end="")
        return
    from longtail import api

    api.train(config, arguments.output)

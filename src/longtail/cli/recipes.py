"""`longtail recipes`."""

import argparse

from longtail.cli._shared import Commands


def add_parser(commands: Commands) -> None:
    """Adds the parser."""
    parser = commands.add_parser(
        "recipes", help="list the recipes", description="Lists the recipes with their expected accuracy and time."
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from rich.padding import Padding
    from rich.text import Text

    from longtail.config.recipes import DEFAULT_RECIPE, about, list_recipes
    from longtail.utils.console import show

    for name in list_recipes():
        recipe = about(name)
        show(Text.assemble((name, "bold"), " (default)" if name == DEFAULT_RECIPE else ""))
        text = f"{recipe.description}\nExpected: {recipe.expected}.\nTime: {recipe.time}."
        show(Padding(Text(text), (0, 0, 1, 2), expand=False))
    show("longtail train --config NAME")

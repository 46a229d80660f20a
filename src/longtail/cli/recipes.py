"""List the recipes with their expected accuracy and time."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""


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

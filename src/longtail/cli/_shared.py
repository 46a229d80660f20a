"""What several commands share."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from longtail.utils.errors import InputError

if TYPE_CHECKING:
    from longtail.config.recipes import Settings
    from longtail.config.schema import Config
    from longtail.runs.run import Run

Number = TypeVar("Number", int, float)


def split_folder(settings: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the folder of images that is the first argument, if any, and the settings.

    The folder is not an argument of argparse, which would take the value of a setting for it.

    Raises:
        InputError: it is the name of a recipe or a run folder, or a setting is another folder.
    """
    from longtail.config.recipes import FOLDER_RECIPE, list_recipes

    if not settings or settings[0].startswith("-"):
        return None, list(settings)
    folder, *others = settings
    if folder in list_recipes() and folder != FOLDER_RECIPE and not Path(folder).exists():
        raise InputError(f"'{folder}' is a recipe and not a folder of images; use --config {folder}")
    if all(Path(folder, file).is_file() for file in ("config.yaml", "metrics.jsonl")):
        raise InputError(f"'{folder}' is a run folder and not a folder of images")
    if "data.root" in setting_names(others):
        raise InputError(f"'{folder}' and --data.root are two folders; leave out one of them")
    return folder, others


def folder_settings(folder: str, recipe: str) -> "Settings":
    """Returns the settings that make images in a folder the data of a recipe or of a YAML file.

    A run of a recipe of longtail has the name of the folder. A recipe that is made for another data set loses its long
    tail, and the colours of that data set.
    """
    from longtail.config.recipes import list_recipes
    from longtail.config.schema import DataConfig

    data = {"name": "folder", "root": folder}
    if recipe not in list_recipes():
        return {"data": data}
    others = {name: getattr(DataConfig, name) for name in ("imbalance", "val_spare", "mean", "std")}
    return {"name": Path(folder).resolve().name or recipe, "data": data | others}


def setting_names(arguments: Sequence[str]) -> set[str]:
    """Returns the names of the settings in arguments such as ``--data.root=photos`` or ``--data.root photos``."""
    return {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}


def add_threshold_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose the router's threshold."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--compute_budget",
        metavar="COST",
        help="choose the most accurate threshold with this mean cost per image on the validation images, such as 1.2 "
        "(times the cost of one expert) or 70M (multiply-accumulates)",
    )
    group.add_argument(
        "--max_accuracy_drop",
        metavar="POINTS",
        type=float,
        help="choose the cheapest threshold that loses at most this many percentage points of balanced accuracy on the "
        "validation images",
    )


def comma_separated(kind: Callable[[str], Number], example: str) -> Callable[[str], list[Number]]:
    """Returns a type for argparse: numbers separated by commas."""

    def parse(text: str) -> list[Number]:
        try:
            return [kind(number) for number in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"'{text}' must be numbers separated by commas, such as {example}"
            ) from None

    return parse


def open_run(folder: str, settings: Sequence[str], sections: Sequence[str]) -> "tuple[Run, Config]":
    """Opens a run, and returns it with its settings after changes.

    Args:
        folder: of the run.
        settings: changes, ``--section.field value``.
        sections: that may be changed, besides the device.

    Raises:
        InputError: a setting is wrong or of another section; or there is no such run.
    """
    from longtail.config.recipes import check_known, resolve
    from longtail.runs.pulled import open_run as open_any

    for name in sorted(setting_names(settings)):
        check_known(name)
        if name != "device" and name.partition(".")[0] not in sections:
            raise InputError(f"'{name}' cannot change here; device and settings of {', '.join(sections)} can")
    run = open_any(folder)
    return run, resolve(str(run.config_path), arguments=settings)

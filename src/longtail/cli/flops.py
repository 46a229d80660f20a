"""Count the multiply-accumulates (MACs) and FLOPs (2 per MAC) of a model for one image."""

import argparse
from pathlib import Path

from longtail.cli._shared import comma_separated
from longtail.utils.errors import InputError

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", metavar="MODEL", help="recipe, YAML file, run folder, model file, or hf://owner/name")
    parser.add_argument(
        "--experts_used",
        metavar="SHARES",
        type=comma_separated(float, "41,10,49"),
        help="also print the mean cost if these shares of the images use 1, 2, ... experts, such as 41,10,49",
    )
    parser.add_argument(
        "--num_classes", type=int, metavar="C", help="number of classes, if the recipe's data set has no fixed number"
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.config.recipes import list_recipes, resolve
    from longtail.reports.cost_table import cost_table, planned_model
    from longtail.runs.context import planned_architecture
    from longtail.runs.hub import is_hub_address
    from longtail.runs.model_file import load_model_file, model_path, reject_original
    from longtail.runs.run import Run
    from longtail.utils.console import show

    path = model_path(arguments.model) if is_hub_address(arguments.model) else Path(arguments.model)
    reject_original(path)
    if arguments.model not in list_recipes() and (path.is_dir() or path.suffix == ".safetensors"):
        if arguments.settings or arguments.num_classes is not None:
            option = arguments.settings[0] if arguments.settings else "--num_classes"
            raise InputError(f"'{path}' is a trained model, which {option} cannot change; settings are for recipes")
        model, metadata = Run.open(path).load_model() if path.is_dir() else load_model_file(path)
        architecture, image_size = metadata.architecture, metadata.image_size
    else:
        config = resolve(arguments.model, arguments=arguments.settings)
        architecture = planned_architecture(config, arguments.num_classes)
        model, image_size = planned_model(architecture), architecture["image_size"]
    show(cost_table(model, architecture, image_size, arguments.experts_used))

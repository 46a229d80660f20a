"""`longtail convert`."""

import argparse

from longtail.cli._shared import Commands


def add_parser(commands: Commands) -> None:
    """Adds the parser."""
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of the original RIDE or RIDE-Swin to a run",
        description="Makes a run folder from a checkpoint of the original RIDE or RIDE-Swin. Runs no code from it.",
    )
    parser.add_argument("file", metavar="FILE", help="checkpoint (.pth); a config.json in the same folder is read too")
    parser.add_argument("output", metavar="OUT", help="new run folder")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.interop.original.convert import convert
    from longtail.utils.format import pluralize

    converted = convert(arguments.file, arguments.output)
    model, metadata = converted.load_model()
    data, router = converted.config.data, " with a router" if model.router else ""
    print(
        f"{metadata.architecture['name']}, {pluralize(model.num_experts, 'expert')}{router}, "
        f"{len(metadata.class_names):,} classes, {model.num_parameters:,} parameters, epoch {metadata.epoch}: "
        f"{converted.folder}\nAssumed data set: {data.name} in '{data.root}'. Change it in {converted.config_path} "
        f"(data.name, data.root). Evaluate the model with: longtail evaluate {converted.folder}"
    )

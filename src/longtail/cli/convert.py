"""Convert a checkpoint of the original RIDE or RIDE-Swin to a run folder. Runs no code from the file."""

import argparse
import logging

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("file", metavar="FILE", help="checkpoint (.pth); a config.json in the same folder is read too")
    parser.add_argument("output", metavar="OUT", help="new run folder")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.interop.original.convert import convert
    from longtail.utils.format import pluralize

    converted = convert(arguments.file, arguments.output)
    model, metadata = converted.load_model()
    data, router = converted.config.data, " with a router" if model.router else ""
    logger.info(
        f"{metadata.architecture['name']}, {pluralize(model.num_experts, 'expert')}{router}, "
        f"{len(metadata.class_names):,} classes, {model.num_parameters:,} parameters, epoch {metadata.epoch}: "
        f"{converted.folder}\nAssumed data set: {data.name} in '{data.root}'. Change it in {converted.config_path} "
        f"(data.name, data.root). Evaluate the model with: longtail evaluate {converted.folder}"
    )

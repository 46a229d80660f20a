"""Upload a finished run to the Hugging Face Hub, with a model card.

Log in first with 'hf auth login', or set HF_TOKEN. Others use the model as hf://OWNER/NAME.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder")
    parser.add_argument("repository", metavar="OWNER/NAME", help="repository; it is made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the new repository private")
    parser.add_argument(
        "--license",
        metavar="NAME",
        help="licence of the weights for the card, such as mit or cc-by-4.0 (default: none)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.interop.hub import push

    print(push(arguments.folder, arguments.repository, private=arguments.private, license=arguments.license))

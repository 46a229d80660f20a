"""Evaluate a run, and write its results and report again.

Settings can name another location of the data (--data.root FOLDER) or change the evaluation, such as
--evaluation.many_above 99.
"""

import argparse

from longtail.cli._shared import add_threshold_options, open_run

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("folder", metavar="RUN", help="run folder, or hf://owner/name")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="split to print (default: test)")
    add_threshold_options(parser)
    parser.add_argument(
        "--prior",
        metavar="FILE",
        help="also evaluate with logits adjusted to these class shares: JSON or text with one number per class, or "
        "'uniform'",
    )
    parser.add_argument(
        "--label_shift",
        action="store_true",
        help="also evaluate on subsets with other class shares, from those of training to the opposite ones",
    )
    parser.add_argument(
        "--fit_temperature",
        action="store_true",
        help="choose the temperature of the probabilities again, on the validation images",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail import api

    trained, config = open_run(arguments.folder, arguments.settings, ("data", "evaluation"))
    api.evaluate(
        trained,
        arguments.split,
        config=config,
        compute_budget=arguments.compute_budget,
        max_accuracy_drop=arguments.max_accuracy_drop,
        prior=arguments.prior,
        label_shift=arguments.label_shift,
        fit_temperature=arguments.fit_temperature,
    )

"""Write the model of a run for other programs: as ONNX, or as a program of torch.export.

The file is compared with PyTorch before it is written. Settings can name another location of the data (--data.root
FOLDER), whose images are used for the comparison and for int8.
"""

import argparse

from longtail.cli._shared import open_run

TAKES_SETTINGS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", metavar="RUN", help="run folder, model file, or hf://owner/name")
    parser.add_argument("output", metavar="OUT", help="file to write, such as model.onnx; for onnx-parts, a new folder")
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx: one file, in which skipped experts are not computed; onnx-parts: a folder with a file for each "
        "expert; torch: a program of torch.export (.pt2), in which all experts always run (default: onnx)",
    )
    parser.add_argument(
        "--int8",
        action="store_true",
        help="8-bit integers, for onnx and onnx-parts. Validation images calibrate them, measure their accuracy and "
        "choose the router's threshold again",
    )
    parser.add_argument(
        "--tolerance",
        metavar="POINTS",
        type=float,
        default=1.0,
        help="percentage points of accuracy, overall or balanced, that int8 may lose on the validation images; if it "
        "loses more, nothing is written (default: 1)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from longtail.interop.export_run import export

    options = {"format": arguments.format, "int8": arguments.int8, "tolerance": arguments.tolerance}
    if arguments.settings:
        trained, config = open_run(arguments.model, arguments.settings, ("data",))
        export(trained, arguments.output, config=config, **options)
    else:
        export(arguments.model, arguments.output, **options)

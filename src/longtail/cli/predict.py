"""Classify images, and print CSV with one line per image: image, class, probability.

An exported ONNX model is run by onnxruntime, without PyTorch.
"""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from longtail.utils.choices import Precision, Views
from longtail.utils.errors import InputError

if TYPE_CHECKING:
    from longtail.inference import Predictor
    from longtail.interop.onnx.predictor import OnnxPredictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("model", metavar="RUN", help="run folder, model file, hf://owner/name, or exported ONNX model")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image, or folder that is searched for images")
    parser.add_argument(
        "--engine",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="what runs the model; auto: onnx for ONNX files and for folders of format onnx-parts (default: auto)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="precision of matrix products and convolutions; bf16 and fp16 are faster if the hardware supports them "
        "(default: float32)",
    )
    parser.add_argument("--top", metavar="K", type=int, default=1, help="classes per image (default: 1)")
    parser.add_argument(
        "--batch_size",
        metavar="B",
        type=int,
        help="images and views per step (default: 64, but fewer if a CPU classifies large images)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=0,
        help="threads that decode images; 0: one for each processor, at most 8 (default: 0)",
    )
    parser.add_argument(
        "--views",
        choices=get_args(Views),
        default="one",
        help="views of each image over which the outputs are averaged: the image and its mirror image, five crops, or "
        "these and their mirror images (default: one)",
    )
    parser.add_argument("--all_experts", action="store_true", help="use all experts instead of the router")


def _predictor(arguments: argparse.Namespace) -> "Predictor | OnnxPredictor":
    from longtail.data.image_io import is_image
    from longtail.interop.onnx.runtime import is_onnx

    if is_image(Path(arguments.model)):
        raise InputError(f"'{arguments.model}' is an image; the model comes first: longtail predict RUN IMAGE")
    if arguments.engine == "torch" or (arguments.engine == "auto" and not is_onnx(Path(arguments.model))):
        from longtail.inference import Predictor

        return Predictor(
            arguments.model,
            device=arguments.device,
            precision=arguments.precision,
            all_experts=arguments.all_experts,
            views=arguments.views,
        )
    from longtail.interop.onnx.predictor import OnnxPredictor

    for name, only in (("device", ("auto", "cpu")), ("precision", ("float32",)), ("views", ("one",))):
        if getattr(arguments, name) not in only:
            raise InputError(
                f"--{name} is {getattr(arguments, name)}, which an exported model has not; use the run folder, or "
                f"leave out --{name}"
            )
    return OnnxPredictor(arguments.model, all_experts=arguments.all_experts)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    from rich.console import Console

    from longtail.data.find_images import find_images
    from longtail.utils.console import log_to_console, printable, with_bar
    from longtail.utils.csv_lines import csv_line, path_cell

    log_to_console(Console(stderr=True))  # standard output is the table
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names can hold any bytes
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    predictor = _predictor(arguments)
    images = find_images(arguments.images)
    predictions = predictor.predict(
        images, batch_size=arguments.batch_size, top=arguments.top, workers=arguments.workers
    )
    is_seen = sys.stdout.isatty()  # a bar would be in the way
    bar = predictions if is_seen else with_bar(predictions, "classifying images", len(images))

    def write(cells: list[str]) -> None:
        sys.stdout.write(csv_line([printable(cell) for cell in cells] if is_seen else cells))

    for number, (path, class_name, probability, others) in enumerate(bar):
        if number == 0:
            ranks = [f"_{rank}" for rank in range(2, len(others) + 2)]
            write(["image", *(f"{column}{rank}" for rank in ["", *ranks] for column in ("class", "probability"))])
        choices = [(class_name, probability), *others]
        write([path_cell(str(path)), *(cell for name, value in choices for cell in (name, f"{value:.6g}"))])

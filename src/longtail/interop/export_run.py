"""The export of a run's model, with the images of the run."""

import logging
import time
from pathlib import Path

import numpy as np

from longtail.config.recipes import checked_types
from longtail.config.schema import Config
from longtail.interop.export import Images
from longtail.interop.export_model import BATCHES, check_target, export_model
from longtail.runs.context import open_context
from longtail.runs.model_file import ModelMetadata, load_model_file, model_path
from longtail.runs.pulled import as_run
from longtail.runs.run import Run
from longtail.utils.console import without_notes
from longtail.utils.errors import InputError
from longtail.utils.format import duration, pluralize

logger = logging.getLogger(__name__)

MAX_CALIBRATION = 2000
"""Most validation images for the choice and the accuracy of 8-bit integers"""


def export(
    run: Run | str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    tolerance: float = 1.0,
    config: Config | None = None,
) -> Path:
    """Writes the model of a run in a format for other programs.

    The file is compared with PyTorch first, on images of the run or, if they are not there, on random ones. Nothing is
    written if it computes something else.

    Args:
        run: a run, its folder, a model file, or ``hf://owner/name``.
        output: file to write, such as ``model.onnx``. An earlier file is replaced; a folder must be new.
        format: ``onnx``, one file in which experts that the router skips are not computed; ``onnx-parts``, a folder
            with a file for each expert; ``torch``, a program of `torch.export` (``.pt2``) with all experts.
        int8: write an ONNX format with 8-bit integers. The validation images calibrate it, measure its accuracy, and
            choose the router's threshold again.
        tolerance: percentage points of accuracy, overall or balanced, that 8-bit integers may lose.
        config: settings that say where the data are; those of the run by default.

    Returns:
        The path of the output.

    Raises:
        InputError: there is no such model or format; the output cannot be written; a package of the extra ``onnx`` is
            missing; the network cannot be exported, or not correctly; or for 8-bit integers there are no validation
            images, or too much accuracy would be lost.
    """
    path = Path(output)
    info = check_target(path, format)
    if not 0 <= tolerance <= 100:
        raise InputError(f"tolerance is {tolerance:g}; it must be from 0 to 100 percentage points")
    if int8 and not info.has_int8:
        raise InputError(f"format '{format}' has no int8; use onnx or onnx-parts")
    model, metadata = load_model_file(model_path(run.folder if isinstance(run, Run) else run))
    images = _images(run, config, metadata, needs_validation=int8)
    start = time.perf_counter()
    exported, comparison = export_model(
        model,
        metadata,
        path,
        format,
        pixels=None if images is None else images.pixels,
        calibration=images if int8 else None,
        tolerance=tolerance,
    )
    for note in exported.notes:
        logger.info(note)
    if comparison is not None:
        logger.info(
            f"Compared with PyTorch on {pluralize(comparison.images, 'random image' if images is None else 'image')}: "
            f"largest difference of a logit {comparison.difference:.2g}, of logits up to {comparison.largest:.3g}"
        )
    size = exported.num_bytes / 2**20
    logger.info(f"Exported to {path} ({format}, {size:.1f} MiB) in {duration(time.perf_counter() - start)}")
    return path


def _images(
    run: Run | str | Path, config: Config | None, metadata: ModelMetadata, needs_validation: bool
) -> Images | None:
    """Returns validation images or, if only a comparison needs them, test images; None if there are none here."""
    try:
        # A comparison alone does not download a run from the Hub.
        opened = as_run(run) if needs_validation or isinstance(run, Run) else Run.open(run)
        with without_notes():  # training said them
            context = open_context(opened, checked_types(config or opened.config))
        dataset, data = context.dataset, context.config.data
        if dataset.class_names != metadata.class_names:
            raise InputError(f"data set '{data.name}' has other classes than the model")
        if needs_validation and dataset.val is None:
            raise InputError(f"data set '{data.name}' has no validation split here")
        split = dataset.test if dataset.val is None else dataset.val
        number = min(len(split), MAX_CALIBRATION if needs_validation else BATCHES[-1])
        # Of all classes, as splits may be in their order.
        chosen = np.linspace(0, len(split) - 1, number).astype(np.int64)
        return Images(*context.eval_pixels(split.take(chosen)))
    except InputError as error:
        if needs_validation:
            raise InputError(f"int8 needs the validation images of the run: {error}") from error
        logger.info("The run's images cannot be used for the comparison with PyTorch, random ones can: %s", error)
        return None

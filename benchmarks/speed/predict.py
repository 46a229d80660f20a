"""Speed of classifying JPEG files, compared with the network alone on decoded and normalised images.

    python benchmarks/speed/predict.py                      # on the CPU
    python benchmarks/speed/predict.py --device cuda --images 4096

The network is that of `longtail train FOLDER` for 100 classes, with random weights, at 192 pixels. The files have 500 x
375 pixels and are made as in jpeg.py. All variants take turns in one process, after a warm-up round, and each is
compared with the network alone in the same round. On a CPU, network and decoding share the processors: "bound" is the
ratio if nothing but their processor time counted.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jpeg import write_set

from longtail.config.recipes import load_recipe
from longtail.data.image_io import decode
from longtail.data.predictions import pick_batch_size
from longtail.inference import Predictor
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, save_model
from longtail.runtime.process import num_processors

sys.path.insert(0, str(Path(__file__).parents[1]))
from result import report

NUM_CLASSES, IMAGE_SIZE, RESIZE = 100, 192, 220
MEAN, STD = (0.5,) * 3, (0.5,) * 3


def save_untrained(path: Path) -> None:
    model = load_recipe("folder").model
    architecture = {
        "name": model.backbone,
        "num_classes": NUM_CLASSES,
        "num_experts": model.num_experts,
        "width": model.width,
        "experts_from": model.experts_from,
    }
    names, counts = tuple(map(str, range(NUM_CLASSES))), (1,) * NUM_CLASSES
    metadata = ModelMetadata(architecture, names, counts, IMAGE_SIZE, RESIZE, MEAN, STD)
    torch.manual_seed(0)
    save_model(path, create_model(**architecture).eval(), metadata)


def times(work: Callable[[], object]) -> tuple[float, float]:
    """Returns wall-clock and processor seconds."""
    start, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - processor


def table(options: argparse.Namespace) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        save_untrained(model := Path(folder, "model.safetensors"))
        paths = list(write_set(Path(folder, "images"), False, options.images).paths)
        predictor = Predictor(model, device=options.device)
        pixels = [predictor._pixels(decode(path)) for path in paths]

        def network_alone(batch_size: int) -> Callable[[], None]:
            starts = range(0, len(pixels), batch_size)
            batches = [torch.from_numpy(np.stack(pixels[start : start + batch_size])) for start in starts]
            inputs = [predictor._normalise(each.to(options.device).permute(0, 3, 1, 2)) for each in batches]

            def run() -> None:
                with torch.inference_mode():
                    for batch in inputs:
                        predictor._network.predict_logits(batch).argmax(dim=1).tolist()

            return run

        is_on_cpu = torch.device(options.device).type == "cpu"
        best = pick_batch_size(None, IMAGE_SIZE, num_processors() if is_on_cpu else None)
        variants = {
            f"network alone, batches of {best}": network_alone(best),
            "network alone, batches of 64": network_alone(64),
            "predict": lambda: list(predictor.predict(paths)),
            "predict, batches of 64": lambda: list(predictor.predict(paths, batch_size=64)),
            "predict, one thread that decodes": lambda: list(predictor.predict(paths, workers=1)),
            "decoding alone, one thread": lambda: [predictor._pixels(decode(path)) for path in paths],
        }
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
        for _ in range(options.rounds + 1):  # the first round warms up
            for name, work in variants.items():
                measured[name].append(times(work))
        first, *_, last = measured.values()
        alone = first[1:]
        for name, rounds in measured.items():
            wall, processor = zip(*rounds[1:], strict=True)
            ratios = [reference[0] / own for reference, own in zip(alone, wall, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            yield (
                f"{name:40} {len(paths) / statistics.median(wall):6.1f} images/s, ratio {spread:>20}, "
                f"{1000 * statistics.median(processor) / len(paths):5.2f} ms of processor time for one image"
            )
        network, decoding = (statistics.median(processor for _, processor in rounds[1:]) for rounds in (first, last))
        yield f"bound: {network / (network + decoding):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    report(table(options), f"speed-predict-{torch.device(options.device).type}.txt", "Medians over rounds.")


if __name__ == "__main__":
    main()

"""Exported ONNX models compared with PyTorch: outputs, size, seconds, speed, predictions from files, 8-bit integers.

    python benchmarks/export.py backbones|speed|int8
    python benchmarks/export.py files --root CIFAR_ROOT

Weights are random but for the digits run of the last two parts, which is trained here. CIFAR_ROOT holds
cifar-100-python or its archive; its test images become PNG and JPEG files of several sizes.

Times are CPU times of one thread, relative to each other: medians over rounds in which all variants run in turn.
Writes benchmarks/results/export-PART.txt.
"""

import argparse
import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from result import report

import longtail
from longtail.config.schema import DataConfig
from longtail.data.build import load_data
from longtail.data.find_images import find_images
from longtail.interop.export import REGISTRY, Source
from longtail.interop.export_model import compare, describe, random_pixels
from longtail.interop.onnx.runtime import OnnxFile, OnnxParts
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runs.model_file import ModelMetadata, save_model

BACKBONES = {
    "resnet32": 32,
    "resnet50": 224,
    "resnext50_32x4d": 224,
    "swin_tiny_patch4_window7_224": 224,
    "convnext_tiny": 224,
    "vit_small_patch16_224": 224,
    "tf_efficientnet_lite0": 160,
}
"""Name -> height and width of the images"""

VARIANTS = [(1, False), (3, False), (3, True)]
"""Number of experts, and whether there is a router"""

CLASSES, NUM_IMAGES, ROUNDS = 100, 8, 9


def source(name: str, experts: int, routed: bool, average: str = "logits", size: int | None = None) -> Source:
    """A model with random weights, whose router sends images to 1, 2 and 3 experts."""
    torch.manual_seed(0)
    size = size or BACKBONES[name]
    width = "narrow" if name.startswith(("resn", "swin", "convnext")) else "full"
    architecture: dict[str, Any] = {
        "name": name, "num_classes": CLASSES, "num_experts": experts, "width": width, "image_size": size
    }  # fmt: skip
    router = {"router": {}} if routed else {}
    model = create_model(**architecture, **router, average=average).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    metadata = ModelMetadata(
        architecture, tuple(map(str, range(CLASSES))), (), size, size, (0.48, 0.46, 0.41), (0.23, 0.22, 0.23)
    )
    if model.router is not None:
        with torch.no_grad():
            scores = model.router(*model(inputs(random_pixels(size, NUM_IMAGES), metadata))[:2]).sigmoid()
        first = float(scores[:, 0].sort().values[NUM_IMAGES // 2 - 1 :][:2].mean())
        second = scores[scores[:, 0] > first, 1].sort().values
        model.router.threshold = [first, float(second[len(second) // 2 - 1 : len(second) // 2 + 1].mean())]
    return Source(model, metadata, describe(model, metadata))


def inputs(pixels: NDArray[np.uint8], metadata: ModelMetadata) -> torch.Tensor:
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (metadata.mean, metadata.std))
    images = (torch.from_numpy(pixels).float() / 255 - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


def backbones(names: Sequence[str]) -> Iterator[str]:
    yield "backbone                     experts router average       difference  experts used    export s    MiB"
    for name in names:
        for experts, routed in VARIANTS:
            average = "probabilities" if routed and name in ("resnet32", "convnext_tiny") else "logits"
            what = source(name, experts, routed, average)
            start = time.process_time()
            exported = REGISTRY["onnx"].build(what)
            seconds = time.process_time() - start
            pixels = random_pixels(BACKBONES[name], NUM_IMAGES)
            try:
                result = compare(exported, what, pixels)
                difference = f"{result.difference:10.1e}"
            except longtail.InputError as error:
                difference = f"differs: {error}"
            used = np.bincount(exported.run(pixels, None).experts_used, minlength=experts + 1)[1:].tolist()
            with torch.no_grad():
                expected = what.model.route(inputs(pixels, what.metadata)).experts_used if routed else None
            same = (
                "equal"
                if expected is None or np.bincount(expected, minlength=experts + 1)[1:].tolist() == used
                else "no"
            )
            shares = "/".join(map(str, used)) if routed else "all"
            yield (
                f"{name:29} {experts:7} {'yes' if routed else 'no':6} {average:13} {difference}  {shares:8} {same} "
                f"{seconds:10.1f} {exported.num_bytes / 2**20:6.1f}"
            )
            del what, exported
            gc.collect()


def ratios(variants: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU time of each variant, relative to the first."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:  # the first round is a warm-up
                times[name].append(time.process_time() - start)
    first = times[next(iter(times))]
    return {
        name: statistics.median(own / base for own, base in zip(values, first, strict=True))
        for name, values in times.items()
    }


def one_thread(what: Source) -> OnnxFile:
    content = REGISTRY["onnx"].build(what).content
    assert isinstance(content, bytes)
    return OnnxFile(content, 1)


def speed() -> Iterator[str]:
    yield "CPU time relative to a flat graph of all experts (no If), in parentheses MACs relative to all experts"
    yield "backbone                  batch  one expert   routed       all    parts, all  PyTorch: one  routed  all"
    for name, size, batches in (
        ("resnet32", 32, (1, 64)),
        ("resnet50", 128, (1, 64)),
        ("tf_efficientnet_lite0", 160, (1, 64)),
    ):
        what = source(name, 3, True, size=size)
        flat_model = MultiExpert(
            what.model.trunk, list(what.model.branches), list(what.model.heads), what.model.neck
        ).eval()
        flat_source = Source(flat_model, what.metadata, describe(flat_model, what.metadata))
        files = {
            "routed": one_thread(what),
            "flat": one_thread(flat_source),
        }
        contents = REGISTRY["onnx-parts"].build(what).content
        assert isinstance(contents, dict)
        parts = OnnxParts(contents, 1)
        fused = fuse_batch_norms(what.model, size).to(memory_format=torch.channels_last)
        macs = what.properties.macs
        for batch in batches:
            pixels = random_pixels(size, batch)
            images = inputs(pixels, what.metadata)

            def torch_run(threshold: float | None, images: torch.Tensor = images, fused: Any = fused) -> Any:
                with torch.inference_mode():
                    return fused.route(images, threshold)

            def own(threshold: float | None, pixels: Any = pixels, files: Any = files) -> Any:
                return files["routed"].run(pixels, threshold)

            variants: dict[str, Callable[[], Any]] = {
                "flat": lambda pixels=pixels, files=files: files["flat"].run(pixels),
                "one": lambda own=own: own(2.0),
                "routed": lambda own=own: own(None),
                "all": lambda own=own: own(-1.0),
                "parts": lambda parts=parts, pixels=pixels: parts.run(pixels, -1.0),
                **{f"torch {t}": lambda t=t, run=torch_run: run(t) for t in (2.0, None, -1.0)},
            }
            measured = ratios(variants, ROUNDS if batch == 1 else 5)
            used = own(None).experts_used
            routed_macs = np.mean([macs[number - 1] for number in used]) / macs[-1]
            yield (
                f"{name:24} {batch:6} {measured['one']:6.2f} ({macs[0] / macs[-1]:.2f}) {measured['routed']:5.2f} "
                f"({routed_macs:.2f}) {measured['all']:8.2f} {measured['parts']:11.2f} {measured['torch 2.0']:12.2f} "
                f"{measured['torch None']:7.2f} {measured['torch -1.0']:6.2f}"
            )


def write_images(root: str, number: int, folder: Path) -> None:
    """CIFAR-100 test images as PNG and JPEG files of several sizes, some turned."""
    pixels = load_data(DataConfig(name="cifar100", root=root)).test.pixels
    assert pixels is not None
    random = np.random.default_rng(0)
    for k in range(number):
        width, height = (int(side) for side in random.integers(40, 400, 2))
        image = Image.fromarray(pixels[k]).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = int(random.integers(1, 9))
        if k % 2:
            image.save(folder / f"{k:05}.jpg", quality=int(random.integers(60, 96)), exif=exif)
        else:
            image.save(folder / f"{k:05}.png", exif=exif)


def files(root: str, number: int, digits: longtail.Run) -> Iterator[str]:
    yield f"From {number:,} image files to predictions: class and probability compared with longtail predict"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        write_images(root, number, images)
        paths = find_images(images)
        lite0 = source("tf_efficientnet_lite0", 3, True)
        save_model(folder / "lite0.safetensors", lite0.model, lite0.metadata)
        resnet = source("resnet32", 3, True, "probabilities")
        save_model(folder / "resnet32.safetensors", resnet.model, resnet.metadata)
        models = {
            "digits (trained), 28 pixels": digits.model_path,
            "resnet32, random, 32 pixels": folder / "resnet32.safetensors",
            "tf_efficientnet_lite0, random, 160 pixels": folder / "lite0.safetensors",
        }
        for title, model in models.items():
            longtail.export(model, folder / "model.onnx")
            predictors = longtail.Predictor(model, device="cpu"), longtail.OnnxPredictor(folder / "model.onnx")
            (theirs, torch_seconds), (ours, onnx_seconds) = (timed(each, paths) for each in predictors)
            same = sum(a.class_name == b.class_name for a, b in zip(ours, theirs, strict=True))
            largest = max(abs(a.probability - b.probability) for a, b in zip(ours, theirs, strict=True))
            different = len({prediction.class_name for prediction in theirs})
            yield (
                f"{title:42} same class {same} of {len(ours)} ({different} classes), largest difference of a "
                f"probability {largest:.1e}, time {onnx_seconds / torch_seconds:.2f} of PyTorch's"
            )


def timed(predictor: Any, paths: list[Path]) -> tuple[list[Any], float]:
    start = time.process_time()
    predictions = list(predictor.predict(paths))
    return predictions, time.process_time() - start


def int8(run: longtail.Run) -> Iterator[str]:
    yield "8-bit integers, digits run"
    with tempfile.TemporaryDirectory() as folder:
        for tolerance in (0.0, 1.0, 100.0):
            try:
                text = " | ".join(
                    _noted(partial(longtail.export, run, Path(folder) / "model.onnx", int8=True, tolerance=tolerance))
                )
            except longtail.InputError as error:
                text = f"refused: {error}"
            yield f"tolerance {tolerance:g}: {text}"


def _noted(action: Callable[[], Any]) -> list[str]:
    """The log lines of an export."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("longtail.interop.export_run")
    logger.addHandler(handler)
    level, logger.level = logger.level, logging.INFO
    try:
        action()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return [record for record in records if record.startswith("int8")]


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.part == "backbones":
        yield from backbones(arguments.backbone or list(BACKBONES))
    elif arguments.part == "speed":
        yield from speed()
    else:
        with tempfile.TemporaryDirectory() as folder:
            run = longtail.train(longtail.load_recipe("digits-lt-ride", {"device": "cpu"}), Path(folder) / "digits")
            yield from int8(run) if arguments.part == "int8" else files(arguments.root, arguments.images, run)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("backbones", "speed", "files", "int8"))
    parser.add_argument("--backbone", nargs="*", choices=BACKBONES)
    parser.add_argument("--root", help="folder of CIFAR-100, for files")
    parser.add_argument("--images", type=int, default=1000)
    torch.set_num_threads(1)
    parsed = parser.parse_args()
    report(lines(parsed), f"export-{parsed.part}.txt")

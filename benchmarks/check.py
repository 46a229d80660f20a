"""Precision and recall of `longtail check` for faults that are planted in a folder of CIFAR-100 pictures.

    python benchmarks/check.py CIFAR_ROOT [--weights lite0.pth --features FILE]

CIFAR-100-LT (factor 0.01) and 2,000 test images are written as PNG and JPEG files, with planted faults. "False alarms"
are findings of a kind that were not planted; CIFAR-100 has copies and wrong labels of its own, which count as such.
Wrong labels: 5 % of the training images exchange their labels with each other, or get random labels. They are found by
features of EfficientNet-Lite0 at 128 pixels, whose weights are the given file, in the order of timm's
tf_efficientnet_lite0. FILE keeps the features.

Below: times for 100,000 images. Writes benchmarks/results/check.txt.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from result import report

from longtail.config.schema import DataConfig
from longtail.data.build import load_data
from longtail.data.check.findings import Finding, ImageChecks
from longtail.data.check.near_copies import near_copies
from longtail.data.check.reading import read_images
from longtail.data.copies import AllImages, find_first_copies
from longtail.data.imbalance import SHOTS, shot_groups
from longtail.data.splits import DataSplits, ImageSplit
from longtail.evaluation.label_errors import label_doubts, leave_one_out_logits, most_doubtful

NUM_TEST, PLANTED, MANY = 2000, 200, 100_000


def jpeg(image: Image.Image, quality: int = 75) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


CHANGES = {
    "same bytes": lambda image: image,
    "PNG again": lambda image: image,
    "JPEG 75": jpeg,
    "JPEG 40": lambda image: jpeg(image, 40),
    "64 pixels": lambda image: image.resize((64, 64), Image.Resampling.BICUBIC),
    "24 pixels": lambda image: image.resize((24, 24), Image.Resampling.BILINEAR),
    "crop 30 of 32": lambda image: image.crop((1, 1, 31, 31)),
    "crop 30 at corner": lambda image: image.crop((0, 0, 30, 30)),
    "crop 28 of 32": lambda image: image.crop((2, 2, 30, 30)),
}
"""Planted copies: name and change. Half of them are in the test split, half in training with another label"""


def plant(dataset: DataSplits, folder: Path) -> Iterator[str]:
    """Writes the files, checks them, and compares the findings with what was planted."""
    random = np.random.default_rng(0)
    images: dict[str, list[tuple[str, int, Image.Image | None]]] = {"train": [], "test": []}
    test = random.permutation(len(dataset.test))[:NUM_TEST]
    for name, split in (("train", dataset.train), ("test", dataset.test.take(test))):
        assert split.pixels is not None
        for number, (pixels, label) in enumerate(zip(split.pixels, split.labels.tolist(), strict=True)):
            images[name].append((f"{number:05}", label, Image.fromarray(pixels)))
    originals = list(images["train"])
    chosen = iter(random.permutation(len(originals)).tolist())
    planted: dict[str, set[str]] = {}
    for kind, change in CHANGES.items():
        for k in range(PLANTED):
            source, label, image = originals[next(chosen)]
            assert image is not None
            split, other = ("test", label) if k % 2 else ("train", (label + 1 + k % 99) % 100)
            name = f"{kind} {k} of {source}"
            images[split].append((name, other, change(image)))
            planted.setdefault(f"{kind}: {'two splits' if k % 2 else 'two labels'}", set()).add(name)
    for k in range(PLANTED):
        grey = random.integers(0, 256, 3)
        pixels = np.clip(grey + random.normal(0, 2, (32, 32, 3)), 0, 255).astype(np.uint8)
        images["train" if k % 2 else "test"].append((f"blank {k}", k % 100, Image.fromarray(pixels)))
        planted.setdefault("blank", set()).add(f"blank {k}")
        images["train" if k % 2 else "test"].append((f"truncated {k}", k % 100, None))
        planted.setdefault("unreadable", set()).add(f"truncated {k}")
    splits = {name: write(folder / name, entries) for name, entries in images.items()}
    data = AllImages(DataSplits(splits["train"], None, splits["test"], dataset.class_names), folder)
    start = time.perf_counter()
    facts = read_images(data)
    seconds = time.perf_counter() - start
    findings = list(ImageChecks(data, facts, 20).findings())
    yield f"{len(data.labels):,} files: read in {seconds:.1f} s, in all {time.perf_counter() - start:.1f} s"
    yield "planted                          images  found  recall"
    for kind, names in planted.items():
        change, _, relation = kind.partition(": ")
        start_of_kind = f"copy, {relation}" if relation else kind
        found = names & {stem(f.image) for f in findings if start_of_kind in f.kind and matches(f, bool(relation))}
        yield f"{kind:32} {len(names):6} {len(found):6}  {len(found) / len(names):6.3f}"
    everything = set().union(*planted.values())
    groups = shot_groups(dataset.class_counts)
    shot_of = {
        name: shot for shot in SHOTS for name, member in zip(dataset.class_names, groups[shot], strict=True) if member
    }
    yield "kind                      findings  planted  precision  false alarms: many  medium  few (test and training)"
    for kind in ("unreadable", "blank", "tiny", *(f"{near}copy{r}" for near in ("", "near ") for r in RELATIONS)):
        found_of_kind = [f for f in findings if f.kind == kind]
        false = [f for f in found_of_kind if not {stem(f.image), stem(f.original)} & everything]
        alarms = [sum(shot_of[f.class_name] == shot for f in false) for shot in SHOTS]
        right = len(found_of_kind) - len(false)
        share = right / max(len(found_of_kind), 1)
        yield f"{kind:24} {len(found_of_kind):9} {right:8} {share:10.3f} {alarms[0]:19} {alarms[1]:7} {alarms[2]:4}"


RELATIONS = (", two splits", ", two labels", "")


def stem(image: str) -> str:
    return Path(image).stem


def matches(finding: Finding, is_copy: bool) -> bool:
    """Whether a copy was matched with its original, or with another copy of it."""
    source = stem(finding.image).rpartition(" of ")[2]
    return not is_copy or stem(finding.original).rpartition(" of ")[2] == source


def write(folder: Path, entries: Sequence[tuple[str, int, Image.Image | None]]) -> ImageSplit:
    """Writes images: those without changes as PNG, the others in their own formats; truncates those that are None."""
    paths = []
    for name, label, image in entries:
        is_jpeg = image is not None and image.format == "JPEG"
        path = folder / str(label) / f"{name}.{'jpg' if is_jpeg else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if image is None:
            noise = np.random.default_rng(label).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[:-900])
        elif is_jpeg:
            path.write_bytes(image.fp.getvalue())  # type: ignore[union-attr]
        else:
            image.save(path, compress_level=1 if name.startswith("PNG again") else 6)
        paths.append(path)
    labels = np.array([label for _, label, _ in entries], dtype=np.int64)
    return ImageSplit(labels, paths=np.array(paths, dtype=object))


@torch.inference_mode()
def lite0_features(split: ImageSplit, weights: str) -> NDArray[np.float32]:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    stored = torch.load(weights, weights_only=True, map_location="cpu")
    values = iter(value for name, value in stored.items() if "num_batches" not in name)
    names = [name for name in model.state_dict() if "num_batches" not in name]
    model.load_state_dict({name: next(values) for name in names}, strict=False)
    model = model.to(memory_format=torch.channels_last)
    assert split.pixels is not None
    features = []
    for batch in torch.from_numpy(split.pixels).permute(0, 3, 1, 2).split(128):
        large = torch.nn.functional.interpolate(batch.float() / 255, size=128, mode="bicubic", antialias=True)
        inputs = (2 * large.clamp(0, 1) - 1).contiguous(memory_format=torch.channels_last)
        features.append(model.forward_head(model.forward_features(inputs), pre_logits=True).numpy())
    return np.concatenate(features)


def wrong_labels(dataset: DataSplits, features: torch.Tensor) -> Iterator[str]:
    groups = shot_groups(dataset.class_counts)
    yield "wrong labels  shot    images  wrong  reported  precision  recall  false alarms (% of the right ones)"
    for noise in ("exchanged", "random", "none"):
        random, true = np.random.default_rng(0), dataset.train.labels
        labels, changed = true.copy(), random.choice(len(true), len(true) // 20, replace=False)
        if noise == "exchanged":  # each class keeps its size
            labels[changed] = true[random.permutation(changed)]
        elif noise == "random":
            labels[changed] = random.integers(0, dataset.num_classes, len(changed))
        given = torch.from_numpy(labels)
        doubts = label_doubts(leave_one_out_logits(features[:, None], given, dataset.num_classes), given)
        reported = np.zeros(len(true), dtype=bool)
        reported[most_doubtful(doubts.log_odds.numpy(), labels)] = True
        wrong = labels != true
        for shot, mask in {"all": np.ones(dataset.num_classes, dtype=bool), **groups}.items():
            own = mask[labels]
            hits, false = (reported & wrong & own).sum(), (reported & ~wrong & own).sum()
            precision, recall = hits / max(hits + false, 1), hits / max((wrong & own).sum(), 1)
            numbers = f"{own.sum():6} {(wrong & own).sum():6} {hits + false:9} {precision:10.3f} {recall:7.3f}"
            yield f"{noise:13} {shot:7} {numbers} {100 * false / max((~wrong & own).sum(), 1):13.1f}"


def costs(dataset: DataSplits, folder: Path) -> Iterator[str]:
    """Time for 100,000 images: the search for copies before training, and the search for near copies."""
    splits = [split.pixels for split in (dataset.train, dataset.test) if split.pixels is not None]
    pixels = np.concatenate([*splits, splits[0][: MANY - sum(map(len, splits)), :, ::-1]])  # the last ones mirrored
    thumbnails = pixels.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).astype(np.uint8)

    def search() -> int:
        return sum(len(tile.first) for tile in near_copies(thumbnails))

    yield f"near copies among {len(pixels):,} CIFAR images: {timed(search)}"
    labels, paths = np.zeros(MANY, dtype=np.int64), []
    random = np.random.default_rng(0)
    for number in range(MANY):
        path = folder / str(number % 100) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.bytes(int(random.integers(5_000, 15_000))))  # about ten files of each size
        paths.append(path)
    decoded = ImageSplit(np.zeros(len(pixels), dtype=np.int64), pixels)
    for name, split in (
        ("decoded CIFAR images", decoded),
        ("files of 10 kB", ImageSplit(labels, paths=np.array(paths, dtype=object))),
    ):
        images = AllImages(DataSplits(split, None, split.take(np.arange(10)), ("a", "b")), folder)

        def copies(images: AllImages = images) -> int:
            first = find_first_copies(images)
            return int((first != np.arange(len(first))).sum())

        yield f"copies among {len(split):,} {name}: {timed(copies)}"


def timed(search: Callable[[], int]) -> str:
    """Processor time, which does not depend on other processes of the machine, and wall time."""
    wall, processor = time.perf_counter(), time.process_time()
    found = search()
    return f"{time.process_time() - processor:.1f} s of a core, {time.perf_counter() - wall:.1f} s ({found:,} found)"


def lines(arguments: argparse.Namespace) -> Iterator[str]:
    settings = DataConfig(name="cifar100", root=arguments.root, imbalance="exponential", imbalance_factor=0.01)
    dataset = load_data(settings)
    with tempfile.TemporaryDirectory() as folder:
        yield from plant(dataset, Path(folder))
    yield ""
    if arguments.weights:
        file = Path(arguments.features)
        if not file.is_file():
            np.save(file, lite0_features(dataset.train, arguments.weights))
        yield from wrong_labels(dataset, torch.from_numpy(np.load(file)))
        yield ""
    with tempfile.TemporaryDirectory() as folder:
        yield from costs(load_data(DataConfig(name="cifar100", root=arguments.root)), Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--weights")
    parser.add_argument("--features", default="features.npy")
    report(lines(parser.parse_args()), "check.txt")

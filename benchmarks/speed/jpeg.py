"""Images per second and core of the training pipeline for JPEG files, against torchvision's usual one.

    python benchmarks/speed/jpeg.py

Both draw a random resized crop of 224 pixels, mirror every other one, and change brightness, contrast and saturation by
up to 0.4. torchvision's way: PIL decodes the full picture, then RandomResizedCrop, RandomHorizontalFlip, ColorJitter,
ToTensor, Normalize. Ours is what `FileLoader` does in its workers, and then on the device: shown without the latter,
as a core is used beside a GPU, and with the same core as the device. All on one core, in batches, each variant taking
its turn in each round.

The pictures are made here, because no data set comes with the package: parts of three photographs that come with
scikit-learn and matplotlib, at their own size for the set like ImageNet, and for the large set mosaics of such parts,
which have finer detail than most photographs of that size. JPEG quality is 95, which gives files of ImageNet's size.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, features
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from longtail.data.color_jitter import change_colours, draw_changes
from longtail.data.fast_crop import FileCrop
from longtail.data.image_io import decode
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import Normalise
from longtail.data.partial_decode import Box, decode_part, reduction
from longtail.data.splits import ImageSplit, as_paths
from longtail.data.transforms import ImageAugmentation, train_transform
from longtail.runtime.seed import seeded

sys.path.insert(0, str(Path(__file__).parents[1]))
from result import report

SIZE, BATCH_SIZE = 224, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, JITTER, NO_JITTER = (0.08, 1.0), (0.4, 0.4, 0.4, 0.0), (0.0,) * 4
CPU = torch.device("cpu")
SETS = {"500 x 375": (1, 48), "1000 to 2000 pixels": (4, 24)}
"""SplitModel of photographs in a picture, at most, on each side; number of pictures."""


# ---- pictures ----


def photographs() -> list[Image.Image]:
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return [*map(Image.fromarray, load_sample_images().images), Image.open(hopper).convert("RGB")]


def part(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """500 x 375 pixels of it, mirrored or not."""
    left, top = (int(rng.integers(0, side - wanted + 1)) for side, wanted in zip(photo.size, (500, 375), strict=True))
    cut = photo.crop((left, top, left + 500, top + 375))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut


def mosaic(photos: list[Image.Image], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", size)
    for top in range(0, size[1], 375):
        for left in range(0, size[0], 500):
            picture.paste(part(photos[int(rng.integers(len(photos)))], rng), (left, top))
    return picture


def write_set(folder: Path, most: int, num: int) -> ImageSplit:
    rng, photos, paths = np.random.default_rng(0), photographs(), []
    folder.mkdir()
    for number in range(num):
        longer = 500 if most == 1 else int(rng.integers(1000, 2001))
        size = (longer, longer * 3 // 4) if number % 4 or most == 1 else (longer * 3 // 4, longer)
        picture = mosaic(photos, size, rng)
        paths.append(folder / f"{number}.jpg")
        # Every other one with colours at half the size, as cameras save them.
        picture.save(paths[-1], quality=95, subsampling=(0, 2)[number % 2])
    return ImageSplit(np.zeros(num, dtype=np.int64), paths=as_paths(paths))


# ---- whole pipelines ----


class Usual(Dataset):
    """What torchvision's ImageFolder does."""

    def __init__(self, split: ImageSplit):
        self.paths = split.paths
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(SIZE, scale=SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(*JITTER),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.paths[position]) as image:
            return self.transform(image.convert("RGB")), 0


def augmentation(jitter: tuple[float, ...]) -> ImageAugmentation:
    return ImageAugmentation("resized", scale=SCALE, flip=True, color_jitter=jitter)


def fast(jitter: tuple[float, ...]) -> FileCrop:
    return FileCrop(SIZE, augmentation(jitter))


def full(jitter: tuple[float, ...], interpolation: str = "bilinear") -> Callable[[Image.Image], torch.Tensor]:
    return train_transform(SIZE, augmentation(jitter), None, interpolation)


def loader(split: ImageSplit, transform) -> FileLoader:
    return FileLoader(split, transform, BATCH_SIZE, device=CPU, normalise=Normalise(MEAN, STD, CPU), shuffle=True)


def in_workers(loader: FileLoader) -> Callable[[int], Iterator]:
    """What its workers would do for an epoch, done in this process."""

    def epoch(number: int) -> Iterator:
        loader._order.epoch = number
        return iter(loader._batches)

    return epoch


def pipelines(split: ImageSplit) -> dict[str, Callable[[int], Iterator]]:
    usual = DataLoader(Usual(split), BATCH_SIZE, shuffle=True)
    return {
        "torchvision, PIL": lambda epoch: iter(usual),
        "fast_crops false, in workers": in_workers(loader(split, full(JITTER))),
        "  and normalised on this core": loader(split, full(JITTER)).epoch,
        "fast_crops true, in workers": in_workers(loader(split, fast(JITTER))),
        "  and coloured, normalised on this core": loader(split, fast(JITTER)).epoch,
    }


def speeds(split: ImageSplit, rounds: int) -> Iterator[str]:
    variants = pipelines(split)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):  # the first one warms up
        for name, epoch in variants.items():
            start = time.process_time()
            for _ in epoch(number):
                pass
            taken[name].append((time.process_time() - start) / len(split))
    usual = next(iter(taken.values()))[1:]
    for name, times in taken.items():
        ratios = [before / after for before, after in zip(usual, times[1:], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"  {name:42} {1 / statistics.median(times[1:]):6.0f} images/s  {spread:>22} times as many"


# ---- stages ----


def stages(split: ImageSplit, rounds: int) -> Iterator[str]:
    crop, jitter = v2.RandomResizedCrop(SIZE, scale=SCALE), v2.ColorJitter(*JITTER)
    to_network = Normalise(MEAN, STD, CPU)
    usual = {
        "decode": lambda path: Image.open(path).convert("RGB"),
        "crop, resize": transforms.RandomResizedCrop(SIZE, scale=SCALE),
        "mirror": transforms.RandomHorizontalFlip(),
        "colours": transforms.ColorJitter(*JITTER),
        "to a tensor": transforms.ToTensor(),
        "normalise": transforms.Normalize(MEAN, STD),
    }

    def box(width: int, height: int) -> Box:
        drawn = crop.make_params([torch.empty(1).expand(1, height, width)])
        left, top = drawn["left"], drawn["top"]
        return Box(left, top, left + drawn["width"], top + drawn["height"])

    ours = {
        "draw, decode, crop": lambda path: decode_part(path, box, SIZE),
        "to a tensor": functional.pil_to_tensor,
        "resize": lambda image: functional.resize(image, [SIZE, SIZE], antialias=True),
        "mirror": lambda image: image.flip(-1) if torch.rand(1) < 0.5 else image,
        "draw of colours": lambda image: (image, draw_changes(jitter)),
        "device: colours": lambda drawn: change_colours(drawn[0][None], drawn[1][None]),
        "device: normalise": to_network,
    }
    for title, steps in (("torchvision, PIL", usual), ("fast_crops true", ours)):
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for path in split.paths:
                value = path
                for name, step in steps.items():
                    start = time.process_time()
                    value = step(value)
                    taken[name].append(time.process_time() - start)
        means = {name: 1000 * statistics.mean(sorted(times)[: -len(times) // 10]) for name, times in taken.items()}
        yield f"  {title}: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())


# ---- differences ----


def differences(split: ImageSplit, rounds: int) -> Iterator[str]:
    """Between pictures of the same random numbers, 0 to 255."""
    groups: dict[str, list[tuple[float, float]]] = {}
    shares: Counter[int] = Counter()
    kinds = {"bicubic": full(NO_JITTER, "bicubic"), "bilinear": full(NO_JITTER), "coloured": full(JITTER)}
    for number in range(rounds):
        for position, path in enumerate(split.paths):

            def same(transform, source, numbers=(number, 1 + position)):
                with seeded(*numbers):
                    return transform(source)

            whole = decode(path)
            fulls = {name: same(transform, whole).double() for name, transform in kinds.items()}
            image, _ = same(fast(NO_JITTER), path)
            coloured, changes = same(fast(JITTER), path)
            drawn = same(lambda _: v2.RandomResizedCrop(SIZE, scale=SCALE).make_params([whole]), path)  # noqa: B023
            factor = reduction(Box(0, 0, drawn["width"], drawn["height"]), SIZE)
            shares[factor] += 1
            at = f"crops decoded at 1/{factor}"
            coloured = change_colours(coloured[None], changes[None])[0]
            for name, one, other in (
                (at, image, fulls["bilinear"]),
                ("all crops", image, fulls["bilinear"]),
                ("all crops, with colours", coloured, fulls["coloured"]),
                ("for comparison: bicubic instead of bilinear, both by PIL", fulls["bicubic"], fulls["bilinear"]),
            ):
                error = one.double() - other
                groups.setdefault(name, []).append((float(error.abs().mean()), float(error.square().mean())))
    total = sum(shares.values())
    yield "  crops decoded at: " + ", ".join(f"1/{factor} {shares[factor] / total:.0%}" for factor in sorted(shares))
    for name in sorted(groups, key=lambda name: (len(name), name)):
        mean, square = (statistics.mean(column) for column in zip(*groups[name], strict=True))
        psnr = 10 * np.log10(255**2 / square)
        yield f"  {name:57} {mean:5.2f} levels on average, PSNR {psnr:.1f} dB"


def lines(rounds: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, (most, num) in SETS.items():
            split = write_set(Path(folder) / name, most, num)
            kilobytes = statistics.mean(path.stat().st_size for path in split.paths) / 1000
            yield f"{name}: {num} pictures of {kilobytes:.0f} kB on average"
            yield from speeds(split, rounds)
            yield "  milliseconds of each stage:"
            yield from stages(split, max(1, rounds // 3))
            yield "  difference to pictures decoded in full, same crops:"
            yield from differences(split, 2)
            yield ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    note = (
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}\n"
        "Processor time of one process, medians of rounds in which all take turns; others kept the machine busy.\n"
        "Pictures made of three photographs, see the file that makes this one."
    )
    report(lines(rounds), "jpeg.txt", note)


if __name__ == "__main__":
    main()

"""Speed of the training pipeline for JPEG files on one core, compared with torchvision's.

    python benchmarks/speed/jpeg.py

Both pipelines draw a random resized crop of 224 pixels, flip half of the images, and change brightness, contrast and
saturation by up to 0.4. torchvision's pipeline decodes the full image with PIL and applies RandomResizedCrop,
RandomHorizontalFlip, ColorJitter, ToTensor and Normalize. Ours is the work of `ImageLoader` in its workers and then on
the device. It is measured without the work of the device, as for a core beside a GPU, and with it on the same core. All
variants run on one core, in batches, and take turns in each round.

The package contains no data set, so the images are made here: crops of three photographs that scikit-learn and
matplotlib contain. The set like ImageNet has single crops in their original size. The set of large images has mosaics
of such crops, which have finer detail than most photographs of that size. JPEG quality is 95, with which files have the
size of ImageNet's files.
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
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder, Normalise
from longtail.data.partial_decode import Box, decode_part, reduction
from longtail.data.splits import ImageSplit
from longtail.data.transforms import ImageAugmentation, Transform, train_transform
from longtail.runtime.seed import seeded
from longtail.utils.choices import Interpolation

sys.path.insert(0, str(Path(__file__).parents[1]))
from result import report

SIZE, BATCH_SIZE = 224, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, JITTER, NO_JITTER = (0.08, 1.0), (0.4, 0.4, 0.4, 0.0), (0.0,) * 4
CPU = torch.device("cpu")
SETS = {"500 x 375": (False, 48), "1000 to 2000 pixels": (True, 24)}
"""Whether images are mosaics, and the number of images"""


# ---- images ----


def photographs() -> list[Image.Image]:
    hopper = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return [*map(Image.fromarray, load_sample_images().images), Image.open(hopper).convert("RGB")]


def random_crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns 500 x 375 pixels of a photograph, flipped or not."""
    left, top = (int(rng.integers(0, side - length + 1)) for side, length in zip(photo.size, (500, 375), strict=True))
    crop = photo.crop((left, top, left + 500, top + 375))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def mosaic(photos: list[Image.Image], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", size)
    for top in range(0, size[1], 375):
        for left in range(0, size[0], 500):
            image.paste(random_crop(photos[int(rng.integers(len(photos)))], rng), (left, top))
    return image


def write_set(folder: Path, mosaics: bool, num_images: int) -> ImageSplit:
    rng, photos, paths = np.random.default_rng(0), photographs(), []
    folder.mkdir()
    for number in range(num_images):
        longer = int(rng.integers(1000, 2001)) if mosaics else 500
        is_upright = mosaics and number % 4 == 0
        size = (longer * 3 // 4, longer) if is_upright else (longer, longer * 3 // 4)
        image = mosaic(photos, size, rng)
        paths.append(folder / f"{number}.jpg")
        # Every second one with colours at half the resolution, as cameras save them.
        image.save(paths[-1], quality=95, subsampling=(0, 2)[number % 2])
    return ImageSplit(np.zeros(num_images, dtype=np.int64), paths=np.array(paths, dtype=object))


# ---- full pipelines ----


class TorchvisionImages(Dataset):
    """Decodes and transforms images as torchvision's ImageFolder does."""

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


def fast_crop(jitter: tuple[float, ...]) -> FileCrop:
    return FileCrop(SIZE, augmentation(jitter))


def pil_transform(jitter: tuple[float, ...], interpolation: Interpolation = "bilinear") -> Transform:
    return train_transform(SIZE, augmentation(jitter), None, interpolation)


def loader(split: ImageSplit, transform: Transform | FileCrop) -> ImageLoader:
    order = EpochOrder(len(split), BATCH_SIZE, shuffle=True)
    return ImageLoader(split, transform, order, device=CPU, normalise=Normalise(MEAN, STD, CPU))


def worker_epoch(loader: ImageLoader) -> Callable[[int], Iterator]:
    """Returns a function that does the work of the loader's workers for an epoch, in this process."""

    def epoch(number: int) -> Iterator:
        loader._keys.epoch = number
        return iter(loader._batches)

    return epoch


def pipelines(split: ImageSplit) -> dict[str, Callable[[int], Iterator]]:
    torchvision_loader = DataLoader(TorchvisionImages(split), BATCH_SIZE, shuffle=True)
    return {
        "torchvision, PIL": lambda epoch: iter(torchvision_loader),
        "fast_crops false, in workers": worker_epoch(loader(split, pil_transform(JITTER))),
        "  and normalised on this core": loader(split, pil_transform(JITTER)).epoch,
        "fast_crops true, in workers": worker_epoch(loader(split, fast_crop(JITTER))),
        "  and colours, normalised on this core": loader(split, fast_crop(JITTER)).epoch,
    }


def speeds(split: ImageSplit, rounds: int) -> Iterator[str]:
    variants = pipelines(split)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):  # the first round warms up
        for name, epoch in variants.items():
            start = time.process_time()
            for _ in epoch(number):
                pass
            seconds[name].append((time.process_time() - start) / len(split))
    baseline = next(iter(seconds.values()))[1:]
    for name, times in seconds.items():
        ratios = [before / after for before, after in zip(baseline, times[1:], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"  {name:42} {1 / statistics.median(times[1:]):6.0f} images/s, ratio {spread:>22}"


# ---- stages ----


def stages(split: ImageSplit, rounds: int) -> Iterator[str]:
    crop, jitter = v2.RandomResizedCrop(SIZE, scale=SCALE), v2.ColorJitter(*JITTER)
    baseline = {
        "decode": lambda path: Image.open(path).convert("RGB"),
        "crop, resize": transforms.RandomResizedCrop(SIZE, scale=SCALE),
        "flip": transforms.RandomHorizontalFlip(),
        "colours": transforms.ColorJitter(*JITTER),
        "to a tensor": transforms.ToTensor(),
        "normalise": transforms.Normalize(MEAN, STD),
    }

    def draw_box(width: int, height: int) -> Box:
        drawn = crop.make_params([torch.empty(1).expand(1, height, width)])
        left, top = drawn["left"], drawn["top"]
        return left, top, left + drawn["width"], top + drawn["height"]

    ours = {
        "draw, decode, crop": lambda path: decode_part(path, draw_box, SIZE),
        "to a tensor": functional.pil_to_tensor,
        "resize": lambda image: functional.resize(image, [SIZE, SIZE], antialias=True),
        "flip": lambda image: image.flip(-1) if torch.rand(1) < 0.5 else image,
        "draw colours": lambda image: (image, draw_changes(jitter)),
        "device: colours": lambda drawn: change_colours(drawn[0][None], drawn[1][None]),
        "device: normalise": Normalise(MEAN, STD, CPU),
    }
    for title, steps in (("torchvision, PIL", baseline), ("fast_crops true", ours)):
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for path in split.paths:
                value = path
                for name, step in steps.items():
                    start = time.process_time()
                    value = step(value)
                    seconds[name].append(time.process_time() - start)
        # Without the slowest tenth, in which other work interrupted.
        means = {name: 1000 * statistics.mean(sorted(times)[: -len(times) // 10]) for name, times in seconds.items()}
        yield f"  {title}: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())


# ---- differences ----


def differences(split: ImageSplit, rounds: int) -> Iterator[str]:
    """Compares images of the same random numbers; values are from 0 to 255."""
    errors: dict[str, list[tuple[float, float]]] = {}
    reductions: Counter[int] = Counter()
    transforms_of_pil = {
        "bicubic": pil_transform(NO_JITTER, "bicubic"),
        "bilinear": pil_transform(NO_JITTER),
        "colours": pil_transform(JITTER),
    }
    for number in range(rounds):
        for position, path in enumerate(split.paths):

            def seeded_call(transform, source, numbers=(number, 1 + position)):
                with seeded(*numbers):
                    return transform(source)

            decoded = decode(path)
            pil = {name: seeded_call(step, decoded).double() for name, step in transforms_of_pil.items()}
            image, _ = seeded_call(fast_crop(NO_JITTER), path)
            jittered, changes = seeded_call(fast_crop(JITTER), path)
            jittered = change_colours(jittered[None], changes[None])[0]
            crop = seeded_call(v2.RandomResizedCrop(SIZE, scale=SCALE).make_params, [decoded])
            factor = reduction((0, 0, crop["width"], crop["height"]), SIZE)
            reductions[factor] += 1
            for name, first, second in (
                (f"crops decoded at 1/{factor}", image, pil["bilinear"]),
                ("all crops", image, pil["bilinear"]),
                ("all crops, with colours", jittered, pil["colours"]),
                ("for comparison: bicubic instead of bilinear, both by PIL", pil["bicubic"], pil["bilinear"]),
            ):
                error = first.double() - second
                errors.setdefault(name, []).append((float(error.abs().mean()), float(error.square().mean())))
    total = sum(reductions.values())
    shares = (f"1/{factor} {reductions[factor] / total:.0%}" for factor in sorted(reductions))
    yield "  crops decoded at: " + ", ".join(shares)
    for name in sorted(errors, key=lambda name: (len(name), name)):
        mean, square = (statistics.mean(column) for column in zip(*errors[name], strict=True))
        psnr = 10 * np.log10(255**2 / square)
        yield f"  {name:57} {mean:5.2f} levels on average, PSNR {psnr:.1f} dB"


def table(rounds: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, (mosaics, num_images) in SETS.items():
            split = write_set(Path(folder) / name, mosaics, num_images)
            kilobytes = statistics.mean(path.stat().st_size for path in split.paths) / 1000
            yield f"{name}: {num_images} images of {kilobytes:.0f} kB on average"
            yield from speeds(split, rounds)
            yield "  milliseconds of each stage:"
            yield from stages(split, max(1, rounds // 3))
            yield "  difference to images decoded in full, with the same crops:"
            yield from differences(split, 2)
            yield ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    note = (
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}, "
        f"libjpeg-turbo {features.version('libjpeg_turbo')}\n"
        "Processor time of one process; medians of rounds in which all variants take turns. The machine was busy.\n"
        "Images were made from three photographs, see benchmarks/speed/jpeg.py."
    )
    report(table(rounds), "jpeg.txt", note)


if __name__ == "__main__":
    main()

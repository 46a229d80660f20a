"""Crops of image files, compared with torchvision's transforms of fully decoded images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import layouts
from helpers.loaders import CPU, NORMALISE, images_and_labels
from PIL import ExifTags, Image
from torchvision import transforms as first_version
from torchvision.transforms import InterpolationMode, v2

from longtail.config.recipes import load_recipe
from longtail.data.build import LoaderFactory, load_data, preprocessing
from longtail.data.color_jitter import change_colours
from longtail.data.fast_crop import FileCrop
from longtail.data.image_io import decode
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder
from longtail.data.splits import ImageSplit
from longtail.data.transforms import ImageAugmentation, train_transform
from longtail.runtime.device import Runtime
from longtail.runtime.seed import seeded

JITTER = (0.4, 0.4, 0.4, 0.0)
PLAIN = ImageAugmentation("resized", flip=True)


def photo(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height // 48 + 2, width // 48 + 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def saved(path, width, height, seed=0, orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo(width, height, seed).save(path, quality=90, exif=exif)
    return path


def fast(image_size, interpolation="bilinear", **changes):
    return FileCrop(image_size, replace(PLAIN, **changes), interpolation)


def slow(image_size, interpolation="bilinear", **changes):
    transform = train_transform(image_size, replace(PLAIN, **changes), None, interpolation)
    return lambda path: transform(decode(path))


# ---- boxes ----


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (200, 9)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_boxes_equal_those_of_torchvision(tmp_path, monkeypatch, size, scale):
    path = saved(tmp_path / "a.jpg", *size)
    boxes = []
    crop = Image.Image.crop

    def recorded(self, box=None):
        boxes.append(tuple(box))
        return crop(self, box)

    monkeypatch.setattr(Image.Image, "crop", recorded)
    transform = fast(64, scale=scale, flip=False)  # larger than all parts, so none is reduced
    torch.manual_seed(0)
    for _ in range(30):
        transform(path)
    torch.manual_seed(0)
    expected = []
    for _ in range(30):
        top, left, height, width = first_version.RandomResizedCrop.get_params(photo(*size), list(scale), [3 / 4, 4 / 3])
        expected.append((left, top, left + width, top + height))
    assert boxes == expected


# ---- pixels ----


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pixels_without_reduction_equal_the_crop_of_the_image(tmp_path, name, interpolation, orientation):
    """Exactly if torch resizes it, up to rounding if PIL does."""
    path = saved(tmp_path / name, 61, 43, orientation=orientation)
    crop = v2.RandomResizedCrop(48, interpolation=InterpolationMode(interpolation), antialias=True)
    by_hand = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])
    ours, theirs = fast(48, interpolation), slow(48, interpolation)
    for number in range(20):
        results = []
        for transform in (lambda path: ours(path)[0], lambda path: by_hand(decode(path)), theirs):
            with seeded(1, number):
                results.append(transform(path))
        result, exact, by_pil = results
        assert (result.dtype, result.shape) == (torch.uint8, (3, 48, 48))
        assert torch.equal(result, exact)
        assert (result.int() - by_pil.int()).abs().max() <= (2 if interpolation == "bicubic" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pixels_resemble_the_crop_of_the_image(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", 403, 301, orientation=orientation)
    for number in range(8):
        results = []
        for transform in (lambda path: fast(32, scale=(0.2, 1.0))(path)[0], slow(32, scale=(0.2, 1.0))):
            with seeded(2, number):
                results.append(transform(path).float())
        # Edges are rounded, and mirrored images are shifted by less than a pixel of the smaller image. The standard
        # deviation of the image is about 60 levels.
        assert (results[0] - results[1]).abs().mean() < 15


@pytest.mark.parametrize(
    "others",
    [
        {"rotation": 30.0},
        {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
        {"rotation": 10.0, "color_jitter": JITTER, "rand_augment": "rand-m9-mstd0.5-inc1"},
    ],
)
def test_changes_by_pil_are_the_same(tmp_path, others):
    """Crops of a full square image are not resized, so that only the later changes remain."""
    path = saved(tmp_path / "a.jpg", 32, 32)
    ours, theirs = (crop(32, "bicubic", scale=(1.0, 1.0), **others) for crop in (fast, slow))
    for number in range(10):
        with seeded(3, number):
            image, changes = ours(path)
        with seeded(3, number):
            expected = theirs(path)
        assert torch.equal(image, expected)
        assert changes.shape == (0, 3)


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-mstd0.5-inc1"])
def test_only_rand_augment_uses_other_generators(tmp_path, rand_augment):
    path = saved(tmp_path / "a.jpg", 60, 40)
    transform = fast(16, color_jitter=JITTER, rotation=5.0, rand_augment=rand_augment)
    assert transform.draws_only_from_torch == (rand_augment is None)
    state = np.random.get_state()[1].copy()
    for _ in range(5):
        transform(path)
    assert np.array_equal(np.random.get_state()[1], state) or rand_augment is not None


# ---- batches ----

NUM, SIZE = 8, 32


@pytest.fixture
def split(tmp_path):
    """Small and large images, JPEG and other formats."""
    sizes = [(60, 40), (300, 200), (33, 70), (150, 401), (32, 32), (64, 64), (500, 90), (90, 90)]
    names = ["jpg", "jpg", "png", "jpg", "webp", "jpg", "jpg", "jpg"]
    paths = [saved(tmp_path / f"{i}.{names[i]}", *size, seed=i) for i, size in enumerate(sizes)]
    return ImageSplit(np.arange(NUM, dtype=np.int64), paths=np.array(paths, dtype=object))


def batches(split, batch_size=3, transform=None, *, workers=0, shuffle=True, epoch=1):
    """The images of an epoch, normalised: (N, 3, S, S)."""
    order = EpochOrder(len(split), batch_size, 4, shuffle)
    transform = transform or fast(SIZE, color_jitter=JITTER)
    loader = ImageLoader(split, transform, order, device=CPU, normalise=NORMALISE, workers=workers)
    return images_and_labels(loader.epoch(epoch))[0]


def test_images_do_not_depend_on_workers_and_batches(split):
    first = batches(split)
    assert first.shape == (NUM, 3, SIZE, SIZE)
    assert torch.equal(batches(split, workers=2), first)
    assert torch.equal(batches(split, batch_size=2), first)
    assert not torch.equal(batches(split, epoch=2), first)


def test_global_generators_are_not_used(split):
    torch.manual_seed(1)
    first = batches(split)
    torch.manual_seed(2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(batches(split), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_colours_are_changed_and_normalised(split):
    transform = fast(SIZE, color_jitter=JITTER)
    for position, result in enumerate(batches(split, transform=transform, shuffle=False)):
        with seeded(4, 1, 1 + position):
            image, changes = transform(split.paths[position])
        expected = NORMALISE(change_colours(image[None], changes[None]))
        torch.testing.assert_close(result, expected[0])


def test_batches_resemble_those_of_torchvision(split):
    """The crops, flips and colours are the same: with other random numbers, images would differ by tens of levels."""
    theirs = train_transform(SIZE, replace(PLAIN, color_jitter=JITTER))
    difference = (batches(split) - batches(split, transform=theirs)).abs() * NORMALISE.std
    assert difference.mean((1, 2, 3)).max() < 12


@pytest.mark.parametrize("fast_crops", [True, False])
def test_setting_chooses_fast_crops(tmp_path, fast_crops):
    layouts.write_folder(tmp_path, size=90)
    config = load_recipe(
        "folder-from-scratch",
        {
            "data.root": str(tmp_path),
            "data.workers": 0,
            "data.image_size": SIZE,
            "augmentation.crop": "resized",
            "augmentation.color_jitter": list(JITTER),
            "augmentation.rotation": 0.0,
            "augmentation.fast_crops": fast_crops,
            "seed": 4,
        },
    )
    dataset = load_data(config.data)
    form = preprocessing(config.data, config.model.backbone, dataset)
    form = form._replace(mean=(0.5,) * 3, std=(0.25,) * 3)
    factory = LoaderFactory(dataset, config.data, config.augmentation, form, Runtime(), config.seed)
    images, _ = images_and_labels(factory.train(config.training).epoch(1))
    augmentation = replace(PLAIN, color_jitter=JITTER)
    if fast_crops:
        transform = FileCrop(SIZE, augmentation, form.interpolation)
    else:
        transform = train_transform(SIZE, augmentation, None, form.interpolation)
    expected = batches(dataset.train, config.training.batch_size, transform)
    assert torch.equal(images, expected[: len(images)])

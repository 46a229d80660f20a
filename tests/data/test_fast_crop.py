"""Crops straight from files against torchvision's transforms of pictures that were decoded in full."""

import numpy as np
import pytest
import torch
from helpers import layouts
from PIL import ExifTags, Image
from torchvision import transforms as first_version
from torchvision.transforms import InterpolationMode, v2

from longtail.config.recipes import load_recipe
from longtail.data import build as data_build
from longtail.data.color_jitter import change_colours
from longtail.data.fast_crop import FileCrop
from longtail.data.image_io import decode
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import Normalise
from longtail.data.splits import ImageSplit, as_paths
from longtail.data.transforms import train_transform
from longtail.runtime.device import Runtime
from longtail.runtime.seed import seeded
from longtail.utils.errors import InputError

JITTER = (0.4, 0.4, 0.4, 0.0)
PLAIN = {"scale": (0.08, 1.0), "flip": True, "rotation": 0.0, "color_jitter": (0.0,) * 4}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 48 + 2, width // 48 + 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def saved(path, width: int, height: int, seed: int = 0, **options):
    photo(width, height, seed).save(path, **{"quality": 90, **options})
    return path


def fast(image_size: int, **changes) -> FileCrop:
    return FileCrop(image_size, **{**PLAIN, **changes})


def slow(image_size: int, **changes):
    transform = train_transform(image_size, "resized", 0, resize=None, **{**PLAIN, **changes})
    return lambda path: transform(decode(path))


# ---- boxes ----


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (200, 9)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.7), (1.0, 1.0)])
def test_boxes_are_torchvisions(tmp_path, monkeypatch, size, scale):
    path = saved(tmp_path / "a.jpg", *size)
    boxes = []
    crop = Image.Image.crop

    def watched(self, box=None):
        boxes.append(tuple(box))
        return crop(self, box)

    monkeypatch.setattr(Image.Image, "crop", watched)
    transform = fast(64, scale=scale, flip=False)  # larger than any part: none is reduced
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
def test_at_full_size_pixels_are_those_of_the_whole_picture(tmp_path, name, interpolation, orientation):
    """Exactly, when torch resizes them; to within rounding, when PIL does."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(tmp_path / name, 61, 43, exif=exif)
    crop = v2.RandomResizedCrop(48, interpolation=InterpolationMode(interpolation), antialias=True)
    by_hand = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip()])
    ours, theirs = fast(48, interpolation=interpolation), slow(48, interpolation=interpolation)
    for number in range(20):
        results = []
        for transform in (lambda path: ours(path)[0], lambda path: by_hand(decode(path)), theirs):
            with seeded(1, number):
                results.append(transform(path))
        mine, exact, of_pil = results
        assert (mine.dtype, mine.shape) == (torch.uint8, (3, 48, 48))
        assert torch.equal(mine, exact)
        assert (mine.int() - of_pil.int()).abs().max() <= (2 if interpolation == "bicubic" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_pixels_are_nearly_those_of_the_whole_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = saved(tmp_path / "a.jpg", 403, 301, exif=exif)
    for number in range(8):
        results = []
        for transform in (lambda path: fast(32, scale=(0.2, 1.0))(path)[0], slow(32, scale=(0.2, 1.0))):
            with seeded(2, number):
                results.append(transform(path).float())
        # Edges are moved by up to half a pixel; the picture's own spread is some 60 levels.
        assert (results[0] - results[1]).abs().mean() < 12


@pytest.mark.parametrize(
    "others",
    [
        {"rotation": 30.0},
        {"color_jitter": (0.4, 0.4, 0.4, 0.1)},
        {"rotation": 10.0, "color_jitter": JITTER, "rand_augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"},
    ],
)
def test_what_pil_does_later_is_as_it_was(tmp_path, others):
    """The whole of a square picture, which is not resized, so that nothing but the later changes is left."""
    path = saved(tmp_path / "a.jpg", 32, 32)
    ours, theirs = fast(32, scale=(1.0, 1.0), **others), slow(32, scale=(1.0, 1.0), **others)
    for number in range(10):
        with seeded(3, number):
            image, changes = ours(path)
        with seeded(3, number):
            expected = theirs(path)
        assert torch.equal(image, expected)
        assert changes.shape == (0, 3)


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-mstd0.5-inc1"])
def test_it_knows_which_generators_it_draws_from(tmp_path, rand_augment):
    path = saved(tmp_path / "a.jpg", 60, 40)
    transform = fast(16, color_jitter=JITTER, rotation=5.0, rand_augment=rand_augment)
    assert transform.draws_only_from_torch == (rand_augment is None)
    state = np.random.get_state()[1].copy()
    for _ in range(5):
        transform(path)
    assert np.array_equal(np.random.get_state()[1], state) or rand_augment is not None


# ---- batches ----

NUM, SIZE = 8, 32
CPU = torch.device("cpu")


@pytest.fixture
def split(tmp_path):
    """Small pictures and large ones, JPEGs and others."""
    sizes = [(60, 40), (300, 200), (33, 70), (150, 401), (32, 32), (64, 64), (500, 90), (90, 90)]
    names = ["jpg", "jpg", "png", "jpg", "webp", "jpg", "jpg", "jpg"]
    paths = [saved(tmp_path / f"{i}.{names[i]}", *size, seed=i) for i, size in enumerate(sizes)]
    return ImageSplit(np.arange(NUM, dtype=np.int64), paths=as_paths(paths))


def loader(split, batch_size=3, transform=None, **options) -> FileLoader:
    given = {"device": CPU, "normalise": Normalise((0.5, 0.4, 0.3), (0.2, 0.25, 0.5), CPU), "seed": 4, "shuffle": True}
    transform = transform or fast(SIZE, color_jitter=JITTER)
    return FileLoader(split, transform, batch_size, **{**given, **options})


def gathered(loader, epoch=1) -> torch.Tensor:
    return torch.cat([images for images, _ in loader.epoch(epoch)])


def test_workers_and_batches_change_nothing(split):
    first = gathered(loader(split))
    assert first.shape == (NUM, 3, SIZE, SIZE)
    assert torch.equal(gathered(loader(split, workers=2)), first)
    assert torch.equal(gathered(loader(split, batch_size=2)), first)
    assert not torch.equal(gathered(loader(split), epoch=2), first)


def test_global_generators_are_neither_used_nor_moved(split):
    torch.manual_seed(1)
    first = gathered(loader(split))
    torch.manual_seed(2)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert torch.equal(gathered(loader(split)), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])


def test_batches_are_changed_and_normalised(split):
    """Each image by itself, with the changes that its own seed gives."""
    transform = fast(SIZE, color_jitter=JITTER)
    batches = loader(split, shuffle=False, transform=transform)
    for position, result in enumerate(gathered(batches)):
        with seeded(4, 1, 1 + position):
            image, changes = transform(split.paths[position])
        expected = Normalise((0.5, 0.4, 0.3), (0.2, 0.25, 0.5), CPU)(change_colours(image[None], changes[None]))
        torch.testing.assert_close(result, expected[0])
    images, _ = next(iter(batches.epoch(1)))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_nearly_those_of_torchvision(split):
    """The same crops, mirror images and colours: with any other draw they would differ by tens of levels."""
    levels = 255 * torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    theirs = train_transform(SIZE, "resized", 0, resize=None, **{**PLAIN, "color_jitter": JITTER})
    difference = (gathered(loader(split)) - gathered(loader(split, transform=theirs))).abs() * levels
    assert difference.mean((1, 2, 3)).max() < 12


@pytest.mark.parametrize("workers", [0, 2])
def test_picture_that_does_not_decode_is_named_in_one_line(split, workers):
    content = split.paths[3].read_bytes()
    split.paths[3].write_bytes(content[: len(content) // 2])
    batches = loader(split, shuffle=False, workers=workers).epoch(0)
    next(batches)
    with pytest.raises(InputError) as refused:
        next(batches)
    message = str(refused.value)
    assert message.startswith(f"{split.paths[3]}: does not decode (image file is truncated")
    assert message.endswith("mend or remove the file")
    assert "\n" not in message


# ---- the setting ----


@pytest.mark.parametrize("on", [True, False])
def test_the_setting_chooses_the_way(tmp_path, on):
    layouts.write_folder(tmp_path, size=90)
    settings = {"data.root": str(tmp_path), "data.workers": 0, "augmentation.crop": "resized", "seed": 4}
    jitter = {"augmentation.color_jitter": list(JITTER), "augmentation.rotation": 0.0}
    config = load_recipe("folder", {**settings, **jitter, "data.image_size": SIZE, "augmentation.fast_crops": on})
    dataset = data_build.load_data(config)
    form = data_build.preprocessing(config, dataset)
    options = {**PLAIN, "color_jitter": JITTER, "interpolation": form.interpolation}
    way = FileCrop(SIZE, **options) if on else train_transform(SIZE, "resized", 0, resize=None, **options)
    expected = loader(dataset.train, 64, way, normalise=Normalise(form.mean, form.std, CPU))
    assert torch.equal(gathered(data_build.train_loader(config, dataset, Runtime())), gathered(expected))

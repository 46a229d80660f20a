"""Transforms of single images, compared with PIL and NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from longtail.data import transforms
from longtail.data.batch_augment import AugmentParams, apply_augment
from longtail.data.transforms import ImageAugmentation
from longtail.runtime.seed import seeded
from longtail.utils.errors import InputError

CROPS = ("none", "padded", "resized")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height))


def train_transform(image_size: int, crop: str, resize: int | None = None, **changes):
    return transforms.train_transform(image_size, ImageAugmentation(crop, **changes), resize)


def framed(image: Image.Image, image_size: int, shorter_side: int) -> np.ndarray:
    """Resizes and crops with PIL, with sizes computed here: (S, S, 3)."""
    width, height = image.size
    factor = shorter_side / min(width, height)
    image = image.resize((int(width * factor), int(height * factor)), Image.Resampling.BILINEAR)
    left, top = (round((side - image_size) / 2) for side in image.size)
    return np.array(image.crop((left, top, left + image_size, top + image_size)))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


def draws(transform, image: Image.Image, num: int = 40) -> list[np.ndarray]:
    torch.manual_seed(0)
    return [as_array(transform(image)) for _ in range(num)]


# ---- test images ----


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (9, 200), (300, 250)])
def test_test_images_are_central_crops(size):
    image = noise(*size)
    for image_size, resize, shorter_side in ((28, None, 32), (28, 28, 28), (20, 31, 31), (8, None, 9), (20, None, 23)):
        result = transforms.eval_transform(image_size, resize)(image)
        assert (result.dtype, result.shape) == (torch.uint8, (3, image_size, image_size))
        np.testing.assert_array_equal(as_array(result), framed(image, image_size, shorter_side))


def test_resizing_averages_pixels():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, axis=2))
    result = transforms.eval_transform(8, 8)(stripes)
    assert (result.float() - 127.5).abs().max() < 30


def test_crop_larger_than_the_image_is_refused():
    for make in (transforms.eval_transform, lambda size, resize: train_transform(size, "none", resize)):
        with pytest.raises(InputError, match=r"data\.resize is 27; it must be at least data\.image_size, 28"):
            make(28, 27)


# ---- training images ----


@pytest.mark.parametrize("crop", CROPS)
def test_training_images_have_the_size(crop):
    transform = train_transform(16, crop, padding=3, flip=True, rotation=20.0, color_jitter=(0.4, 0.4, 0.4, 0.1))
    for size in ((30, 50), (16, 16), (5, 7)):
        result = transform(noise(*size))
        assert (result.dtype, result.shape) == (torch.uint8, (3, 16, 16))


@pytest.mark.parametrize("crop", ["none", "padded"])
def test_training_images_without_changes_equal_test_images(crop):
    for resize in (None, 16, 23):
        image = noise(30, 50)
        expected = transforms.eval_transform(16, resize)(image)
        assert torch.equal(train_transform(16, crop, resize)(image), expected)


def test_padded_crop_shifts_in_all_directions_and_fills_with_black():
    image = noise(30, 50)
    padded = np.pad(as_array(transforms.eval_transform(16, None)(image)), ((1, 1), (1, 1), (0, 0)))
    shifts = {padded[i : i + 16, j : j + 16].tobytes() for i in range(3) for j in range(3)}
    assert {result.tobytes() for result in draws(train_transform(16, "padded", padding=1), image, 100)} == shifts


def test_half_of_the_images_are_flipped():
    image = noise(30, 50)
    upright = as_array(transforms.eval_transform(16, None)(image))
    mirrored = [
        np.array_equal(result, upright[:, ::-1]) for result in draws(train_transform(16, "none", flip=True), image)
    ]
    same = [np.array_equal(result, upright) for result in draws(train_transform(16, "none", flip=True), image)]
    assert np.logical_xor(mirrored, same).all()
    assert 10 < sum(mirrored) < 30


def test_rotation_equals_that_of_batches(monkeypatch):
    """PIL rotates an image like `apply_augment`, by the angle that torchvision draws."""
    angles = []
    rotate = Image.Image.rotate

    def recorded(self, angle, *args, **options):
        angles.append(angle)
        return rotate(self, angle, *args, **options)

    monkeypatch.setattr(Image.Image, "rotate", recorded)
    image = noise(30, 50)
    upright = transforms.eval_transform(16, None)(image).permute(1, 2, 0)[None].contiguous()
    turned = draws(train_transform(16, "none", rotation=25.0), image)
    params = AugmentParams(
        torch.zeros(40, 2, dtype=torch.long), torch.zeros(40, dtype=torch.bool), torch.tensor(angles)
    )
    expected = apply_augment(upright, torch.zeros(40, dtype=torch.long), params, padding=0).numpy()
    # PIL computes in fixed point, so a position between two pixels can be rounded to the other one.
    assert (np.array(turned) == expected).mean() > 0.999
    assert -25 <= min(angles) < -15
    assert 15 < max(angles) <= 25


def test_resized_crops_have_the_area():
    # The colour of a pixel is its position: red horizontally, green vertically.
    size = 64
    columns, rows = np.meshgrid(np.arange(size) * 4, np.arange(size) * 4)
    image = Image.fromarray(np.stack([columns, rows, 0 * columns], axis=2).astype(np.uint8))
    for scale in ((0.08, 1.0), (0.25, 0.25)):
        areas = []
        for result in draws(train_transform(16, "resized", scale=scale), image):
            # The outer pixels of 16 are half a pixel inside the crop, so their distance is 15/16 of its side.
            width, height = (np.ptp(result[..., channel].astype(float)) / 4 * 16 / 15 for channel in (0, 1))
            areas.append(width * height / size**2)
        assert scale[0] * 0.8 < min(areas) <= max(areas) < scale[1] * 1.2
        assert scale[0] == scale[1] or max(areas) > 4 * min(areas)


def test_color_jitter():
    grey = Image.new("RGB", (20, 20), (120, 120, 120))
    brightness = [result[0, 0] for result in draws(train_transform(16, "resized", color_jitter=(0.4, 0, 0, 0)), grey)]
    assert all(len(set(pixel)) == 1 for pixel in brightness)
    assert 120 * 0.6 - 1 <= min(pixel[0] for pixel in brightness) < 90
    assert 150 < max(pixel[0] for pixel in brightness) <= 120 * 1.4 + 1
    red = Image.new("RGB", (20, 20), (200, 40, 40))
    for jitter in ((0, 0, 0.4, 0), (0, 0, 0, 0.5)):
        results = draws(train_transform(16, "resized", color_jitter=jitter), red)
        assert len({tuple(result[0, 0]) for result in results}) > 20
    assert {tuple(result[0, 0]) for result in draws(train_transform(16, "resized"), red)} == {(200, 40, 40)}


@pytest.mark.parametrize("crop", CROPS)
def test_changes_depend_on_the_seed_of_torch(crop):
    image = noise(30, 50)
    transform = train_transform(16, crop, padding=2, flip=True, rotation=15.0, color_jitter=(0.4, 0.4, 0.4, 0))
    np.testing.assert_array_equal(draws(transform, image, 5), draws(transform, image, 5))


# ---- RandAugment and interpolation ----


def test_rand_augment_equals_timms():
    """With the same random numbers, and timm's settings for training."""
    image = noise(40, 30)
    settings = {"translate_const": 7, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", settings)
    augmentation = ImageAugmentation(rand_augment="rand-m9-mstd0.5-inc1")
    ours = transforms.train_transform(16, augmentation, None, "bicubic", (0.485, 0.456, 0.406))
    before = Image.fromarray(as_array(transforms.eval_transform(16, None, "bicubic")(image)))
    changed = 0
    for number in range(20):
        with seeded(3, number):
            mine = as_array(ours(image))
        with seeded(3, number):
            other = np.asarray(theirs(before))
        np.testing.assert_array_equal(mine, other)
        changed += not np.array_equal(mine, np.asarray(before))
    assert changed > 10


@pytest.mark.parametrize("notation", ["m9", "rand-q9", "auto"])
def test_unknown_rand_augment_is_refused(notation):
    with pytest.raises(InputError, match=r"augmentation\.rand_augment is .*rand-m9-mstd0\.5-inc1"):
        train_transform(16, "none", rand_augment=notation)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_interpolation(name):
    image = noise(40, 40)
    small = image.resize((16, 16), Image.Resampling[name.upper()])
    result = as_array(transforms.eval_transform(16, 16, name)(image))
    assert np.abs(result.astype(int) - np.asarray(small)).max() <= 1

"""AutoAugment and Cutout by batch, compared with torchvision's transforms of single PIL images."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, v2
from torchvision.transforms.v2 import functional as F

from longtail.data import image_ops
from longtail.data.auto_augment import NONE, OPERATIONS, StrongAugmentation, _describe, draw_strong_params
from longtail.data.transforms import Cutout

CPU = torch.device("cpu")
LEVEL = 1e-3
"""Without fixed seeds, one test in a thousand would fail by chance"""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num: int = 40, height: int = 32, width: int = 32) -> torch.Tensor:
    """Noise, smooth images, images of few levels, and images of one color: (N, H, W, 3)."""
    noise = torch.randint(0, 256, (num, height, width, 3), generator=generator(9), dtype=torch.uint8)
    coarse = torch.rand(num // 4, 3, 4, 4, generator=generator(8)) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    noise[: num // 4] = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    noise[num // 4 : num // 4 + 5] //= 100
    noise[num // 4 + 5] = 77
    noise[num // 4 + 6, 1, 0] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    noise[num // 4 + 7, :, :, 1] = 255
    return noise


def with_torchvision(batch: torch.Tensor, function, *values) -> torch.Tensor:
    """Applies a function to PIL images one by one, each with its values."""
    results = []
    for image, *of_image in zip(batch, *values, strict=True):
        result = function(Image.fromarray(image.numpy()), *(value.tolist() for value in of_image))
        results.append(torch.from_numpy(np.array(result)))
    return torch.stack(results)


SIZES = [(32, 32), (20, 33), (7, 5), (2, 2)]
AFFINE = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}


# ---- operations ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["Brightness", "Color", "Contrast"])
def test_blend(name, size):
    batch = images(60, *size)
    factors = torch.linspace(0.1, 1.9, 60)
    flags = {"Brightness": (0, 0), "Color": (1, 0), "Contrast": (0, 1)}[name]
    weights = torch.cat([factors[:, None], torch.tensor(flags).expand(60, 2)], dim=1)
    function = {"Brightness": F.adjust_brightness, "Color": F.adjust_saturation, "Contrast": F.adjust_contrast}[name]
    assert torch.equal(image_ops.blend_with_grey(batch, weights), with_torchvision(batch, function, factors))


@pytest.mark.parametrize("size", SIZES)
def test_sharpen(size):
    batch, factors = images(60, *size), torch.linspace(0, 2, 60)
    assert torch.equal(image_ops.sharpen(batch, factors), with_torchvision(batch, F.adjust_sharpness, factors))


@pytest.mark.parametrize("size", SIZES)
def test_posterize(size):
    batch, bits = images(40, *size), torch.arange(40) % 8 + 1
    masks = 256 - 2 ** (8 - bits)
    assert torch.equal(image_ops.posterize(batch, masks), with_torchvision(batch, F.posterize, bits))


@pytest.mark.parametrize("size", SIZES)
def test_solarize(size):
    batch, thresholds = images(52, *size), torch.arange(0, 256, 5)
    batch = batch[: len(thresholds)]
    assert torch.equal(image_ops.solarize(batch, thresholds), with_torchvision(batch, F.solarize, thresholds))
    assert torch.equal(image_ops.solarize(batch, 0 * thresholds), with_torchvision(batch, F.invert))


@pytest.mark.parametrize("size", SIZES)
def test_equalize(size):
    batch = images(60, *size)
    assert torch.equal(image_ops.equalize(batch), with_torchvision(batch, F.equalize))


@pytest.mark.parametrize("size", SIZES)
def test_stretch_contrast(size):
    """Up to rounding: Pillow's errors make integers one level lower."""
    batch = images(200, *size)
    ours, theirs = image_ops.stretch_contrast(batch), with_torchvision(batch, F.autocontrast)
    difference = ours.int() - theirs.int()
    assert ((difference == 0) | (difference == 1)).all()
    assert (difference == 0).float().mean() > 0.95


@pytest.mark.parametrize("length", [1, 7, 16, 100])
def test_cut_out(length):
    batch = images(60, 20, 33)
    centres = torch.stack([torch.randint(0, side, (60,), generator=generator()) for side in (20, 33)], dim=1)
    result = image_ops.cut_out(batch, centres, length)
    for before, after, (row, column) in zip(batch.numpy(), result.numpy(), centres.tolist(), strict=True):
        expected = before.copy()
        for i in range(row - length // 2, row - length // 2 + length):
            for j in range(column - length // 2, column - length // 2 + length):
                if 0 <= i < 20 and 0 <= j < 33:
                    expected[i, j] = 0
        np.testing.assert_array_equal(after, expected)


# ---- the operations of the policies ----

MAGNITUDES = {
    **{f"Shear{axis}": torch.linspace(0, 0.3, 10) for axis in "XY"},
    **{f"Translate{axis}": torch.linspace(0, 150 / 331 * 32, 10) for axis in "XY"},
    "Rotate": torch.linspace(0, 30, 10),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), torch.linspace(0, 0.9, 10)),
}
"""Of the operations with a sign, for images of 32 x 32 pixels"""


def outcomes(monkeypatch, name: str, level: int | None, sign: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images after an operation, ours and torchvision's."""
    batch = images(32)
    monkeypatch.setattr(AutoAugment, "_get_policies", lambda *_: [((name, 1.0, level), ("Invert", 0.0, None))])
    monkeypatch.setattr(
        AutoAugment, "get_params", staticmethod(lambda _: (0, torch.full((2,), 0.5), torch.full((2,), int(sign > 0))))
    )
    theirs = with_torchvision(batch, AutoAugment(AutoAugmentPolicy.CIFAR10))
    operation, values = _describe(name, level, sign, 32, 32)
    numbers = torch.zeros(32, 6)
    numbers[:, : len(values)] = torch.tensor(values)
    return OPERATIONS[operation](batch, numbers), theirs


@pytest.mark.parametrize("name", [*MAGNITUDES, "Posterize", "Solarize", "Invert", "Equalize", "AutoContrast"])
def test_operations_equal_those_of_torchvision(name, monkeypatch):
    has_level = name not in ("Invert", "Equalize", "AutoContrast")
    for level in range(10) if has_level else [None]:
        for sign in (1, -1) if name in MAGNITUDES else [1]:
            with monkeypatch.context() as patch:
                ours, theirs = outcomes(patch, name, level, sign)
            difference = (ours.int() - theirs.int()).abs()
            assert difference.max() <= (name == "AutoContrast"), (level, sign)


def strong(batch: torch.Tensor, policy="cifar10", cutout=0, seed=0, chunk=64) -> torch.Tensor:
    """Augments all images of a batch, in chunks."""
    params = draw_strong_params(len(batch), policy, tuple(batch.shape[1:3]), generator(seed))
    chunks = [slice(start, min(start + chunk, len(batch))) for start in range(0, len(batch), chunk)]
    augment = StrongAugmentation(params, cutout, CPU, chunks)
    return torch.cat([augment(batch[part].clone(), part) for part in chunks])


# ---- distributions ----


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_outcomes_have_the_distribution_of_torchvision(policy):
    """Augments one image often. Each pair of operations, with its signs, is another outcome."""
    image = images(40, 12, 12)[2]
    draws = 5000
    ours = Counter(part.numpy().tobytes() for part in strong(image.expand(draws, -1, -1, -1), policy, chunk=2500))
    torch.manual_seed(0)
    transform, pil = AutoAugment(AutoAugmentPolicy(policy)), Image.fromarray(image.numpy())
    theirs = Counter(np.array(transform(pil)).tobytes() for _ in range(draws))
    own = [*ours]
    arrays = np.stack([np.frombuffer(result, np.uint8) for result in own]).astype(np.int16)
    pairs: Counter[bytes] = Counter()
    for result, number in theirs.items():  # as our outcome, from which it may differ by a level
        distances = np.abs(arrays - np.frombuffer(result, np.uint8)).max(axis=1)
        pairs[own[distances.argmin()] if distances.min() <= 1 else result] += number
    keys = [key for key in ours | pairs if ours[key] + pairs[key] >= 10]
    counts = np.array([[part[key] for key in keys] for part in (ours, pairs)])
    assert len(keys) > 25
    assert counts.sum() > 0.95 * 2 * draws
    assert stats.chi2_contingency(counts).pvalue > LEVEL


def test_centres_are_uniform():
    centres = draw_strong_params(20_000, "none", (5, 9), generator()).centres
    counts = np.bincount(centres[:, 0] * 9 + centres[:, 1], minlength=45)
    assert len(counts) == 45
    assert stats.chisquare(counts).pvalue > LEVEL


def test_without_a_policy_only_squares_change():
    batch = images()
    assert (draw_strong_params(9, "none", (8, 8), generator()).operations == NONE).all()
    assert torch.equal(strong(batch, "none"), batch)
    changed = strong(batch, "none", cutout=5) != batch
    assert 0 < changed.any(dim=3).sum((1, 2)).max() <= 25


def test_cutout_of_pil_images():
    """The same squares as by batch, for the same centres."""
    batch = images(30, 20, 33)
    torch.manual_seed(3)
    theirs = with_torchvision(batch, Cutout(9))
    torch.manual_seed(3)
    centres = torch.tensor([[int(torch.randint(side, ())) for side in (33, 20)] for _ in batch]).flip(1)
    assert torch.equal(image_ops.cut_out(batch, centres, 9), theirs)


# ---- chunks ----


def test_images_do_not_depend_on_the_chunks():
    batch = images(100)
    whole = strong(batch, cutout=16, chunk=100)
    for chunk in (1, 7, 64):
        assert torch.equal(strong(batch, cutout=16, chunk=chunk), whole)
    assert not torch.equal(strong(batch, cutout=16, seed=1), whole)


def test_most_images_change_in_both_ways():
    batch = images(400)[40:]
    changed = (strong(batch) != batch).flatten(1).any(1).float().mean()
    pil = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    torch.manual_seed(0)
    theirs = (with_torchvision(batch, pil) != batch).flatten(1).any(1).float().mean()
    assert abs(changed - theirs) < 0.1
    assert 0.6 < changed < 1

"""Color changes, compared with torchvision's ColorJitter on PIL images and with the formulas in NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from longtail.data.color_jitter import NONE, change_colours, draw_changes

STRENGTHS = [(0.4, 0.4, 0.4), (0.4, 0, 0), (0, 0.4, 0), (0, 0, 0.4)]


def photo(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((40, 30), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return v2.functional.pil_to_tensor(image)


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_colours_resemble_those_of_torchvision(strengths):
    """With the same random numbers. PIL rounds down after each change, and the next one amplifies this."""
    jitter = v2.ColorJitter(*strengths)
    for seed in range(30):
        image = photo(seed)
        torch.manual_seed(seed)
        theirs = np.array(jitter(image), dtype=float)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        changes = draw_changes(jitter)
        assert torch.equal(torch.get_rng_state(), state)
        ours = change_colours(as_tensor(image)[None], changes[None])[0].permute(1, 2, 0).numpy()
        difference = np.abs(ours - theirs)
        assert difference.max() <= 6
        assert difference.mean() < 2


def test_changes_are_applied_in_order():
    image = as_tensor(photo())[None]
    changes = torch.tensor([[1.4, 0, 0], [0.6, 0, 0.4], [1.3, -0.3, 0]])
    results = [change_colours(image, changes[list(order)][None]) for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0))]
    assert (results[0] - results[1]).abs().max() > 5
    assert (results[0] - results[2]).abs().max() > 5


def test_changes_equal_the_formulas():
    image = as_tensor(photo())
    values = image.permute(1, 2, 0).double().numpy()
    weights = [0.299, 0.587, 0.114]
    factors = {"brightness": 1.35, "saturation": 0.7, "contrast": 1.2}
    values = np.clip(values * factors["brightness"], 0, 255)
    grey = values @ weights
    values = np.clip(factors["saturation"] * values + (1 - factors["saturation"]) * grey[..., None], 0, 255)
    grey = values @ weights
    values = np.clip(factors["contrast"] * values + (1 - factors["contrast"]) * grey.mean(), 0, 255)
    changes = torch.tensor([[1.35, 0, 0], [0.7, 0.3, 0], [1.2, 0, -0.2]])
    result = change_colours(image[None], changes[None])[0].permute(1, 2, 0)
    np.testing.assert_allclose(result.numpy(), values, atol=1e-3)


def test_images_of_a_batch_have_different_changes():
    images = torch.stack([as_tensor(photo(seed)) for seed in range(4)])
    before = images.clone()
    jitter = v2.ColorJitter(0.4, 0.4, 0.4)
    changes = torch.stack([draw_changes(jitter) for _ in images])
    together = change_colours(images, changes)
    assert together.dtype == torch.float32
    for image, change, result in zip(images, changes, together, strict=True):
        torch.testing.assert_close(change_colours(image[None], change[None])[0], result, atol=1e-3, rtol=0)
    assert torch.equal(images, before)
    floats = images.float()
    torch.testing.assert_close(change_colours(floats, changes), together)
    assert torch.equal(floats, before.float())


def test_images_without_changes_are_returned():
    images = as_tensor(photo())[None]
    assert change_colours(images, NONE[None]) is images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu():
    images = torch.stack([as_tensor(photo(seed)) for seed in range(4)])
    changes = torch.stack([draw_changes(v2.ColorJitter(0.4, 0.4, 0.4)) for _ in images])
    on_gpu = change_colours(images.cuda(), changes.cuda())
    torch.testing.assert_close(on_gpu.cpu(), change_colours(images, changes), atol=1e-2, rtol=0)

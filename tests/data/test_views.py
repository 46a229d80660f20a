"""Test-time views: the crops and mirror images themselves."""

import numpy as np
import pytest
import torch
from helpers import layouts
from helpers.loaders import loader, small_split

from longtail.config.recipes import load_recipe
from longtail.data.build import load_data
from longtail.data.views import NUM_VIEWS, ViewsLoader, make_views, num_views, source_size
from longtail.runs.context import RunContext
from longtail.runtime.device import Runtime
from longtail.utils.errors import InputError


def slow_views(image, views, size):
    """All views of one image (3, H, H), as a set of bytes."""
    height = image.shape[1]
    middle, end = (height - size) // 2, height - size
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)] if "crop" in views else [(0, 0)]
    crops = [image[:, y : y + size, x : x + size] for y, x in corners]
    if views in ("flip", "ten-crop"):
        crops += [crop[:, :, ::-1] for crop in crops]
    return sorted(np.ascontiguousarray(crop).tobytes() for crop in crops)


@pytest.mark.parametrize("views", NUM_VIEWS)
def test_views_of_a_batch(views):
    images = torch.randn(3, 3, 10, 10).contiguous(memory_format=torch.channels_last)
    size = 6 if "crop" in views else 10
    made = make_views(images, views, size)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert made.shape == (NUM_VIEWS[views] * 3, 3, size, size)
    for number, image in enumerate(images.numpy()):
        own = sorted(np.ascontiguousarray(view).tobytes() for view in made.numpy()[number::3])
        assert own == slow_views(image, views, size)


def test_views_are_made_of_larger_images():
    assert source_size("flip", 224, 256) == 224
    assert source_size("ten-crop", 224, 256) == 256
    with pytest.raises(InputError, match=r"five-crop.*32"):
        source_size("five-crop", 32, 32)


def test_a_loader_of_views_has_the_labels_of_the_images():
    images = loader(small_split(num=20), 8)
    views = ViewsLoader(images, "flip", 8)
    assert (len(views), views.num_images, views.batch_size) == (3, 20, 8)
    assert (num_views(views), num_views(images)) == (2, 1)
    for batch, plain in zip(views.epoch(0, 1), images.epoch(0, 1), strict=True):
        assert torch.equal(batch.labels, plain.labels)
        assert torch.equal(batch.inputs, torch.cat([plain.inputs, plain.inputs.flip(3)]))


@pytest.mark.parametrize("cache_gib", [0.0, 1.0])
def test_crops_of_image_files(tmp_path, cache_gib):
    """From files, and from decoded images in memory."""
    layouts.write_folder(tmp_path)
    changes = {"data.root": str(tmp_path), "data.image_size": 16, "data.resize": 20, "evaluation.batch_size": 30}
    changes |= {"data.cache_gib": cache_gib, "data.workers": 0, "augmentation.crop": "padded"}
    larger = {**changes, "data.image_size": 20}
    contexts = []
    for settings in (changes, larger):
        config = load_recipe("folder", settings)
        contexts.append(RunContext(None, config, load_data(config.data), Runtime()))
    split = contexts[0].dataset.test
    images = torch.cat([batch.inputs for batch in contexts[1].eval_loader(split).epoch(0)])
    batches = [batch.inputs for batch in contexts[0].eval_loader(split, "ten-crop").epoch(0)]
    assert [len(batch) for batch in batches[:-1]] == [30] * (len(batches) - 1)  # 3 images
    found = torch.cat([batch.unflatten(0, (10, -1)) for batch in batches], dim=1).numpy()
    for number, image in enumerate(images.numpy()):
        own = sorted(np.ascontiguousarray(view).tobytes() for view in found[:, number])
        assert own == slow_views(image, "ten-crop", 16)

"""Settings -> preprocessing and loaders."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import layouts

from longtail.config.recipes import load_recipe
from longtail.config.schema import AugmentationConfig, DataConfig
from longtail.data.build import LoaderFactory, Preprocessing, load_data, preprocessing
from longtail.data.splits import DataSplits, ImageSplit
from longtail.runs.context import RunContext
from longtail.runtime.device import Runtime


def test_settings_override_the_input_format_of_the_backbone(tmp_path):
    layouts.write_folder(tmp_path)
    changes = {"data.root": str(tmp_path), "model.backbone": "vit_tiny_patch16_224", "model.width": "full"}
    config = load_recipe("folder", changes)
    dataset = load_data(config.data)
    form = preprocessing(replace(config.data, image_size=None), config.model.backbone, dataset)
    assert form == (224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    changes |= {"data.image_size": 96, "data.mean": [0.1, 0.2, 0.3], "data.interpolation": "bilinear"}
    config = load_recipe("folder", changes)
    form = preprocessing(config.data, config.model.backbone, dataset)
    assert form == (96, 110, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    metadata = RunContext(None, config, dataset, Runtime()).new_metadata()
    assert (metadata.image_size, metadata.resize, metadata.interpolation) == form[:3]
    assert (metadata.mean, metadata.std) == form[3:]


@pytest.mark.parametrize(
    ("num_images", "size", "gib", "fit"), [(2**20, 32, 3.0, True), (2**20 + 1, 32, 3.0, False), (1, 8, 0.0, False)]
)
def test_image_files_are_decoded_once_if_their_pixels_fit_into_memory(num_images, size, gib, fit):
    split = ImageSplit(np.zeros(num_images, dtype=np.int64), paths=np.empty(num_images, dtype=object))
    dataset = DataSplits(split, None, split.take(np.arange(0)), ("a", "b"))
    form = Preprocessing(size, size, "bilinear", (0.5,) * 3, (0.5,) * 3)
    factory = LoaderFactory(dataset, DataConfig(cache_gib=gib), AugmentationConfig(), form, Runtime(), seed=0)
    assert factory.decodes_repeatedly != fit

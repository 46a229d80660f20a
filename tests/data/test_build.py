"""Settings -> preprocessing: the input format of the backbone, unless the settings give another one."""

from dataclasses import replace

from helpers import layouts

from longtail.config.recipes import load_recipe
from longtail.data.build import load_data, preprocessing
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

"""The registry of data sources."""

import numpy as np
import pytest

from longtail.config.schema import DataConfig
from longtail.data import sources
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError

NAMES = ["cifar10", "cifar100", "digits", "folder", "imagenet-lt", "inaturalist2018", "list", "places-lt"]


def test_shipped_sources_are_listed():
    assert sources.list_sources() == NAMES


@pytest.mark.parametrize(
    ("name", "num_classes", "image_size"),
    [("digits", 10, 8), ("cifar100", 100, 32), ("inaturalist2018", 8142, None), ("folder", None, None)],
)
def test_source_info(name, num_classes, image_size):
    info = sources.source_info(name)
    assert (info.num_classes, info.image_size) == (num_classes, image_size)


def test_digits_are_as_registered():
    data, info = sources.load_source(DataConfig(name="digits")), sources.source_info("digits")
    assert data.num_classes == info.num_classes
    assert data.train.pixels.shape == (1140, info.image_size, info.image_size, 3)
    assert data.class_counts == [114] * 10
    assert np.bincount(data.test.labels).tolist() == [60] * 10
    assert sources.load_source(DataConfig(subset_seed=1)).test.labels.tolist() != data.test.labels.tolist()


def test_unknown_source_names_all_and_the_nearest():
    with pytest.raises(InputError) as error:
        sources.source_info("cifar1000")
    for name in (*NAMES, "'cifar1000'", "did you mean 'cifar100'"):
        assert name in str(error.value)


def test_function_registers_itself(monkeypatch):
    monkeypatch.setattr(sources.REGISTRY, "added", dict(sources.REGISTRY.added))
    split = ImageSplit(np.array([0, 1]), np.zeros((2, 4, 4, 3), np.uint8))

    @sources.register("mine", num_classes=2, image_size=4)
    def load(settings):
        assert settings.root == "here"
        return DataSplits(split, None, split, ("a", "b"))

    assert sources.load_source(DataConfig(name="mine", root="here")).train is split
    assert sources.list_sources() == sorted([*NAMES, "mine"])
    assert sources.source_info("mine")[1:] == (2, 4)

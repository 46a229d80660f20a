"""Training that starts from a run, a model file or a checkpoint of the original code."""

from dataclasses import replace

import pytest
import timm
import torch
from helpers.golden.networks import load
from helpers.runs import EXPERTS_ONLY, digits

import longtail
from longtail.interop.original.architecture import load_original
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, save_model
from longtail.training.initial_weights import InitialModel, load_initial, start_from
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

CLASSES = ("a", "b", "c", "d")


def network(seed, name="resnet20", classes=4, experts=3, **options):
    torch.manual_seed(seed)
    return create_model(name, classes, experts, **options).eval()


def metadata(names, **architecture):
    return ModelMetadata(architecture, tuple(names), (9, 5, 3, 1), 32, 32, (0.5,) * 3, (0.5,) * 3)


def started(model, other, names=CLASSES, other_names=CLASSES):
    start_from(model, InitialModel(other, metadata(other_names)), "other", names)
    return model


def equal(model, name, other, other_name):
    first, second = (m.get_submodule(part).state_dict() for m, part in ((model, name), (other, other_name)))
    return first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_same_network():
    other = network(1)
    model = started(network(2), other)
    assert all(equal(model, part, other, part) for part in ("trunk", "branches", "heads"))


def test_a_converted_run_whose_class_names_are_unknown():
    """It has no class counts; its names are numbers that stand in."""
    other, model = network(1), network(2)
    unknown = replace(metadata("0123"), class_counts=())
    start_from(model, InitialModel(other, unknown), "other", CLASSES)
    assert equal(model, "heads", other, "heads")


def test_more_experts_and_other_classes(caplog):
    """The other model's experts in turn; heads for other classes are new."""
    other = network(1, experts=2)
    with caplog.at_level("INFO", "longtail"):
        model = started(network(2), other, ("a", "b", "d", "c"))
    assert equal(model, "trunk", other, "trunk")
    assert [equal(model, f"branches.{e}", other, f"branches.{e % 2}") for e in range(3)] == [True] * 3
    assert not any(equal(model, f"heads.{e}", other, f"heads.{e % 2}") for e in range(3))
    assert "of 3 of 3 experts and 0 of their heads: from other" in caplog.text
    fewer = started(network(2, classes=3), other, CLASSES[:3])
    assert equal(fewer, "branches.2", other, "branches.0")


def test_other_widths_of_the_branches():
    """Only the trunk is copied."""
    other, model = network(1, width="full"), network(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started(model, other)
    assert equal(model, "trunk", other, "trunk")
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert {name for name in before if not name.startswith("trunk.")} <= kept


@pytest.mark.slow
def test_other_depths_of_the_branches():
    """The first blocks of a deeper network are not those of a shallower one."""
    other, model = (network(seed, name, width="full") for seed, name in ((1, "resnet101"), (2, "resnet50")))
    started(model, other)
    assert equal(model, "trunk", other, "trunk")
    name = "branches.0.layer3.0.conv1"
    assert not equal(model, name, other, name)


@pytest.mark.parametrize(("stages", "other_stages"), [(1, 2), (2, 1)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {}),
        ("vit_tiny_patch16_224", {"image_size": 32}),
        pytest.param("swin_tiny_patch4_window7_224", {"image_size": 32}, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_experts_that_start_at_another_stage(name, options, stages, other_stages):
    """The network of an expert is the same, wherever the trunk ends."""
    options = options | {"experts": 1, "width": "full"}
    other, images = network(1, name, expert_stages=other_stages, **options), torch.randn(2, 3, 32, 32)
    model = started(network(2, name, expert_stages=stages, **options), other)
    assert torch.equal(model(images).logits, other(images).logits)


def test_trunks_that_differ():
    for name, other_name in (("resnet20", "resnet32"), ("resnet32", "resnet20")):
        with pytest.raises(InputError, match=r"'other': its trunk .* trunk\.layer1"):
            started(network(2, name), network(1, other_name))


def test_a_checkpoint_of_the_original(tmp_path):
    original = load("cifar_resnet32_e3_rd1_un1").original
    torch.save({"state_dict": original, "epoch": 200}, tmp_path / "original.pth")
    model = network(0, "resnet32", classes=100)
    start_from(model, load_initial(str(tmp_path / "original.pth")), "original", [str(label) for label in range(100)])
    expected = load_original(original)[0]
    assert all(equal(model, part, expected, part) for part in ("trunk", "branches", "heads"))


def test_files_of_a_network_are_left_to_timm(tmp_path):
    for name, options in (("a.pth", {}), ("b.pth", {"num_classes": 0})):
        torch.save(timm.create_model("resnet18", **options).state_dict(), tmp_path / name)
        assert load_initial(str(tmp_path / name)) is None
    assert load_initial(str(tmp_path / "missing.safetensors")) is None
    with pytest.raises(InputError, match="not a run folder"):
        load_initial(str(tmp_path))


def test_a_run_that_starts_from_another(experts_run, tmp_path):
    changes = EXPERTS_ONLY | {"training.epochs": 1, "training.learning_rate": 0.01, "model.num_experts": 4}
    for number, source in enumerate((experts_run.folder, experts_run.model_path)):
        run = longtail.train(digits(changes | {"model.pretrained": str(source)}), tmp_path / str(number))
        # With four experts instead of three.
        assert run.history()[0]["loss"] / 4 < 0.6 * experts_run.history()[0]["loss"] / 3


def test_a_model_file_without_its_run(tmp_path):
    other, path = network(1), tmp_path / "m.safetensors"
    save_model(path, other, metadata(CLASSES, name="resnet20", num_classes=4, num_experts=3))
    model = network(2)
    start_from(model, load_initial(str(path)), "m", CLASSES)
    assert equal(model, "trunk", other, "trunk")

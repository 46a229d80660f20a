"""`longtail convert`: from a checkpoint of the original code to a run."""

import json
import re
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from helpers import golden
from helpers.golden.networks import Case, distance, load
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.sources.cifar import CLASS_NAMES
from longtail.data.splits import DataSplits, ImageSplit
from longtail.interop.original.convert import _config, convert
from longtail.models.build import architecture
from longtail.runs.run import Run
from longtail.utils.errors import InputError

CASE = "cifar_resnet32_e3_rd1_un1"
SETTINGS = {
    "name": "original",
    "arch": {"type": "ResNet32Model", "args": {"num_classes": 100}},
    "data_loader": {"args": {"data_dir": "somewhere", "batch_size": 64, "imb_type": "step", "imb_factor": 0.1}},
    "optimizer": {"type": "SGD", "args": {"lr": 0.2, "weight_decay": 2e-4, "momentum": 0.8}},
    "add_extra_info": True,
    "loss": {"type": "RIDELoss", "args": {"additional_diversity_factor": -0.3, "reweight_epoch": 80}},
    "lr_scheduler": {"type": "CustomLR", "args": {"step1": 60, "step2": 80, "gamma": 0.1, "warmup_epoch": 5}},
    "trainer": {"epochs": 100},
}


@pytest.fixture
def file(tmp_path):
    """A checkpoint with the golden weights, without settings."""
    path = tmp_path / "original.pth"
    torch.save({"state_dict": load(CASE).original, "epoch": 200, "arch": "ResNet32Model"}, path)
    return path


def change(path, edit):
    content = torch.load(path)
    content["state_dict"] = edit(content["state_dict"])
    torch.save(content, path)


@torch.no_grad()
def error_against(case, model, array):
    logits = model(case.images).logits.transpose(0, 1).numpy()
    return distance(logits, case.outputs[array])


def test_golden_checkpoint(tmp_path, capsys):
    original = golden.path("ckpt/imbalance_cifar100_ride3.pth")
    assert main(["convert", str(original), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "resnet32, 3 experts, 100 classes, 783,856 parameters, epoch 200" in out
    assert "router" not in out
    model = longtail.load_model(tmp_path / "run")
    assert error_against(load(CASE), model, "eval_expert_logits") < 1e-5
    run = Run.open(tmp_path / "run")
    assert run.config.name == "Imbalance_CIFAR100_LT_RIDE"
    assert (run.config.data.name, run.config.loss.reweight_after) == ("cifar100", 160)
    assert sum(run.load_model()[1].class_counts) == 10_847


@torch.no_grad()
def test_golden_checkpoint_with_router(tmp_path, capsys):
    original = golden.path("ckpt/ea/imbalance_cifar100_ride3_ea.pth")
    assert main(["convert", str(original), str(tmp_path / "run")]) == 0
    assert "resnet32, 3 experts with a router, 100 classes" in capsys.readouterr().out
    folder = "models/cifar_resnet32ea_e3"
    case = Case(golden.table(f"{folder}/keys.json"), golden.arrays(f"{folder}/outputs.npz"), original={})
    run = Run.open(tmp_path / "run")
    assert {path.name for path in run.folder.glob("*.safetensors")} == {run.model_path.name}
    assert run.progress().is_routed
    model, metadata = run.load_model()
    assert "router" not in metadata.architecture  # the model holds it
    assert model.router.options | {"threshold": 0} == {"top_choices": 30, "hidden": 16, "shared": True, "threshold": 0}
    assert model.num_parameters == case.keys["num_params"]
    routed = model.route(case.images)
    assert np.array_equal(routed.experts_used[:, None].numpy(), case.outputs["eval_num_experts"])
    assert distance(routed.logits.numpy(), case.outputs["eval_logits"]) < 1e-5
    assert error_against(case, model, "forceall_expert_logits") < 1e-5
    # config.json is about the training of the router for five epochs, and is not used.
    assert run.config.training.epochs == longtail.Config().training.epochs


@pytest.mark.parametrize("name", ["cifar_resnet32ea_e3_noshare", "cifar_resnet32ea_e4"])
@torch.no_grad()
def test_routing_equals_the_original(name, tmp_path):
    case = load(name)
    torch.save({"state_dict": case.original}, tmp_path / "original.pth")
    model, _ = convert(tmp_path / "original.pth", tmp_path / "run").load_model()
    routed = model.route(case.images)
    assert np.array_equal(routed.experts_used[:, None].numpy(), case.outputs["eval_num_experts"])
    assert distance(routed.logits.numpy(), case.outputs["eval_logits"]) < 1e-5


def test_logits_without_settings(file, tmp_path):
    run = convert(file, tmp_path / "run")
    assert error_against(load(CASE), longtail.load_model(run.folder), "eval_expert_logits") < 1e-5
    _, metadata = run.load_model()
    assert metadata.class_names == CLASS_NAMES["cifar100"]
    assert metadata.epoch == 200
    assert metadata.architecture == {
        "name": "resnet32", "num_classes": 100, "num_experts": 3, "width": "narrow", "head": "cosine", "scale": 30.0,
        "expert_stages": 2, "image_size": 32,
    }  # fmt: skip
    assert run.config.name == "original"
    assert run.environment()["converted_from"] == str(file)


def test_prefix_of_data_parallel(file, tmp_path):
    plain = convert(file, tmp_path / "plain")
    change(file, lambda weights: {f"module.{name}": value for name, value in weights.items()})
    parallel = convert(file, tmp_path / "parallel")
    assert plain.model_path.read_bytes() == parallel.model_path.read_bytes()


def test_settings_in_the_same_folder(file, tmp_path):
    file.with_name("config.json").write_text(json.dumps(SETTINGS))
    config = convert(file, tmp_path / "run").config
    assert (config.name, config.data.root, config.data.imbalance) == ("original", "somewhere", "step")
    assert (config.data.imbalance_factor, config.loss.diversity_factor, config.loss.reweight_after) == (0.1, -0.3, 80)
    training = config.training
    assert (training.epochs, training.batch_size, training.learning_rate, training.decay) == (100, 64, 0.2, 0.1)
    assert (training.milestones, training.momentum, training.nesterov, training.warmup) == ([60, 80], 0.8, False, 5)
    counts = Run.open(tmp_path / "run").load_model()[1].class_counts
    assert counts == (500,) * 50 + (50,) * 50


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ("{", "config.json: .*JSON"),
        ("[]", "config.json: .*settings"),
        (json.dumps({"arch": {"args": {"num_classes": 10}}}), "10 classes"),
        (json.dumps({"trainer": {"epochs": "many"}}), "config.json"),
        (json.dumps({"optimizer": {"args": {"lr": -1}}}), "training.learning_rate is -1"),
    ],
)
def test_wrong_settings(file, tmp_path, settings, fact):
    file.with_name("config.json").write_text(settings)
    with pytest.raises(InputError, match=fact):
        convert(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_settings_in_the_checkpoint_name_the_checkpoint(file, tmp_path):
    settings = OrderedDict()  # as PyTorch's unpickler restores an object: its attributes in those of an ordered dict
    settings._config = {"optimizer": {"args": {"lr": -1}}}
    torch.save(torch.load(file) | {"config": settings}, file)
    with pytest.raises(InputError, match=rf"{file.name}: .*training\.learning_rate is -1"):
        convert(file, tmp_path / "run")


def test_existing_run_is_not_overwritten(file, tmp_path, capsys):
    convert(file, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert main(["convert", str(file), str(tmp_path / "run")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_names_in_a_checkpoint_cannot_control_the_terminal(file, tmp_path, capsys):
    settings = SETTINGS | {"data_loader": {"args": {"data_dir": "data\x1b[2J"}}}
    (file.parent / "config.json").write_text(json.dumps(settings))
    assert main(["convert", str(file), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert r"data\x1b[2J" in out
    assert "\x1b" not in out


def test_unknown_weights_are_named(file, tmp_path, capsys):
    def edit(weights):
        renamed = {name.replace("layer3s.1.4.", "layer3s.1.five."): value for name, value in weights.items()}
        return renamed | {"fc.weight": torch.zeros(3, 3)}

    change(file, edit)
    assert main(["convert", str(file), str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "fc.weight" in err
    assert not (tmp_path / "run").exists()


def test_wrong_shapes_are_named(file, tmp_path):
    change(file, lambda weights: weights | {"backbone.linears.1.weight": torch.zeros(47, 100)})
    with pytest.raises(InputError, match=r"heads.1.weight.*\(100, 47\).*\(100, 48\)"):
        convert(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def few_images(num_classes, names):
    labels = np.arange(2 * num_classes) % num_classes
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    split = ImageSplit(labels, pixels)
    return DataSplits(split, None, split, tuple(names))


@pytest.mark.slow
def test_evaluation_with_known_classes(file, tmp_path, monkeypatch, no_plots):
    run = convert(file, tmp_path / "run")
    monkeypatch.setattr("longtail.runs.context.load_data", lambda *arguments: few_images(100, CLASS_NAMES["cifar100"]))
    config = replace(run.config, device="cpu")
    with pytest.raises(
        InputError, match=r"class_counts.*'apple': 2 instead of 500.* and 97 more"
    ):  # CIFAR-100-LT has more than two images of each class
        longtail.evaluate(run, config=config)
    metadata = run.load_model()[1]
    monkeypatch.setattr("longtail.data.splits.DataSplits.class_counts", list(metadata.class_counts))
    assert longtail.evaluate(run, config=config).num_images == 200
    assert run.results_path.is_file()


def test_evaluation_with_the_classes_of_the_data(file, tmp_path, no_plots):
    """The first evaluation takes names and counts of the classes from the data if the checkpoint does not have them."""

    def seven(weights):
        return {name: value[:, :7] if "linears" in name else value for name, value in weights.items()}

    change(file, seven)
    run = convert(file, tmp_path / "run")
    assert run.config.data.name == "folder"
    assert run.load_model()[1].class_counts == ()
    names = [f"bird {label}" for label in range(8)]
    for label, name in enumerate(names):
        root = tmp_path / ("seven" if label < 7 else "eight") / name
        root.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), (30 * label, number, 0)).save(root / f"{number}.png")
    changes = {"data.root": str(tmp_path / "seven"), "data.workers": 0, "device": "cpu"}
    config = longtail.load_recipe(run.config_path, changes)
    longtail.evaluate(run, config=config)
    results = json.loads((run.folder / "results.json").read_text())
    assert (results["class_names"], results["class_counts"]) == (names[:7], [2] * 7)
    (tmp_path / "eight" / names[7]).rename(tmp_path / "seven" / names[7])
    with pytest.raises(InputError, match="other classes"):
        longtail.evaluate(run, config=config)


def seven_classes(case, folder):
    """Makes a run of an original checkpoint with heads for seven classes, and a folder of images of these classes."""
    path = folder / "original.pth"
    torch.save({"state_dict": load(case).original, "epoch": 200}, path)

    def seven(weights):
        linear = {name: value[:7] for name, value in weights.items() if "backbone.linear." in name}
        return weights | linear | {name: value[:, :7] for name, value in weights.items() if "linears" in name}

    change(path, seven)
    draw = np.random.default_rng(0)
    for label in range(7):
        (folder / "images" / f"bird {label}").mkdir(parents=True)
        for number in range(3):
            pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"bird {label}" / f"{number}.png")
    return convert(path, folder / "run"), ["--device", "cpu", "--data.root", str(folder / "images")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "possible"),
    [(CASE, ("retrain", "nearest-mean")), ("cifar_resnet32_e1_rd0_un0", ("retrain", "scale", "tau", "nearest-mean"))],
)
def test_retrained_classifiers(case, possible, tmp_path, capsys, no_plots):
    """Each method starts from the experts' classifiers, which "none" restores. Others are errors of one line."""
    run, where = seven_classes(case, tmp_path)
    before = run.load_model()[0].state_dict()
    quick = ["--classifier.epochs", "1", "--classifier.views", "1", "--data.workers", "0"]
    for method in ("retrain", "scale", "tau", "nearest-mean"):
        options = ["--classifier.method", method, *where, *quick]
        options += ["--classifier.tau", "1"] if method == "tau" else []
        assert main(["classifier", str(run.folder), *options]) == (0 if method in possible else 2), capsys.readouterr()
        err = capsys.readouterr().err
        if method not in possible:
            assert "model.head" in err
            assert len(err.splitlines()) == 1
            continue
        model, metadata = Run.open(run.folder).load_model()
        assert (metadata.classifier, metadata.class_names[0]) == (method, "bird 0")
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith("heads.") for name in changed)
    assert main(["evaluate", str(run.folder), *where, "--data.workers", "0"]) == 0
    assert main(["classifier", str(run.folder), "--classifier.method", "none", *where, "--data.workers", "0"]) == 0
    after = Run.open(run.folder).load_model()[0].state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def test_settings_of_networks_without_a_file():
    """The augmentation, the router's input and the loss that the originals used."""

    def config(backbone, num_classes, experts=3, head="cosine"):
        network = {"name": backbone, "num_classes": num_classes, "num_experts": experts, "width": "full", "head": head}
        return _config("name", None, network | {"scale": 30.0, "expert_stages": 2})

    small = config("resnet32", 100)
    augmentation = small.augmentation
    assert (augmentation.crop, augmentation.padding, augmentation.rotation) == ("padded", 4, 15)
    large = [config("resnet50", number) for number in (1000, 8142, 7)]
    assert {(found.augmentation.crop, found.augmentation.rotation) for found in large} == {("resized", 0)}
    assert [found.augmentation.color_jitter[0] for found in large] == [0.4, 0, 0.4]
    assert [(found.loss.diversity_factor, found.training.epochs) for found in large] == [(-0.2, 100)] * 3
    assert [found.router.top_choices for found in (small, config("resnet10", 1000), *large)] == [30, 30, 50, 50, 50]
    assert config("swin_tiny_patch4_window7_224", 1000).augmentation.rand_augment == "rand-m9-mstd0.5-inc1"
    assert config("resnet32", 100, 1).loss.name == "ldam"
    linear = config("resnet32", 100, 1, "linear").loss
    assert (linear.name, linear.reweight_after) == ("cross_entropy", None)


def test_what_has_no_counterpart_is_named(file, tmp_path, caplog):
    changed = SETTINGS | {"loss": {"type": "MyLoss"}}
    file.with_name("config.json").write_text(json.dumps(changed))
    convert(file, tmp_path / "run")
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{file.with_name('config.json')}: ignored, because longtail has nothing like it: loss.type"
    ]


def test_scale_in_the_settings(file, tmp_path):
    arguments = {"num_classes": 100, "use_norm": True, "s": 20}
    changed = SETTINGS | {"arch": {"type": "ResNet32Model", "args": arguments}}
    file.with_name("config.json").write_text(json.dumps(changed))
    assert convert(file, tmp_path / "run").load_model()[1].architecture["scale"] == 20


@pytest.mark.slow
@torch.no_grad()
def test_swin_with_an_absolute_position_embedding(tmp_path):
    """Compared with timm's network, with the embedding added between its parts; settings in the checkpoint as YACS."""
    network = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    positions = torch.randn(1, 56 * 56, 96, generator=torch.Generator().manual_seed(0))
    original = {"absolute_pos_embed": positions, "head.weight": torch.randn(768, 5)}
    for name, value in network.state_dict().items():
        # timm downsamples at the start of a stage, the original at the end of the one before.
        moved = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        original[moved] = value
    settings = OrderedDict(MODEL=OrderedDict(USE_NORMED_LINEAR=True), TRAIN=OrderedDict(LOSS_TYPE="CE"), LOCAL_RANK=0)
    torch.save({"model": original, "epoch": 7, "config": settings}, tmp_path / "original.pth")
    run = convert(tmp_path / "original.pth", tmp_path / "run")
    model, metadata = run.load_model()
    assert (metadata.epoch, metadata.image_size, run.config.loss.name) == (8, 224, "cross_entropy")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    patches = network.patch_embed(images) + positions.unflatten(1, (56, 56))
    features = network.norm(network.layers(patches)).mean(dim=(1, 2))
    assert distance(model(images).features[:, 0].numpy(), features.numpy()) < 1e-5
    assert "trunk.patch_embed.absolute_pos_embed" in dict(model.named_parameters())


@pytest.mark.slow
@torch.no_grad()
def test_swin_with_other_depths_and_windows(tmp_path):
    """Compared with timm's network; the size of the images follows from the masks of the shifted windows."""
    options = {"depths": [1, 2, 1, 1], "window_size": 4}
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=64, num_classes=5, **options).eval()
    original = {"layers.1.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    for name, value in network.state_dict().items():
        renamed = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        original[renamed.replace("head.fc", "head")] = value
    torch.save({"model": original, "epoch": 7}, tmp_path / "original.pth")
    run = convert(tmp_path / "original.pth", tmp_path / "run")
    assert vars(run.config.model).items() >= options.items()
    model, metadata = run.load_model()
    assert (metadata.image_size, metadata.architecture["depths"]) == (64, options["depths"])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert distance(model(images).ensemble.numpy(), network(images).numpy()) < 1e-6
    # The settings of the run make the same network.
    new = longtail.create_model(**architecture(run.config.model, 5, 64)).state_dict()
    assert {name: value.shape for name, value in new.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_class_names_of_cifar():
    for name, number in (("cifar10", 10), ("cifar100", 100)):
        names = CLASS_NAMES[name]
        assert len(set(names)) == number
        assert list(names) == sorted(names)

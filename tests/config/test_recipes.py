import dataclasses
import inspect
import logging
from importlib import resources

import pytest
import yaml

import longtail
from longtail.config import recipes
from longtail.config.recipes import (
    RENAMED,
    about,
    checked_types,
    config_fingerprint,
    diff_configs,
    list_recipes,
    load_recipe,
    resolve,
    same_fingerprint,
    to_yaml,
)
from longtail.config.schema import AugmentationConfig, Config, DataConfig, EvaluationConfig, TrainingConfig

SECTIONS = [field.type for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type)]


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_is_valid_and_described_and_survives_yaml(name, tmp_path):
    config = load_recipe(name)
    assert config.name == name
    assert all(dataclasses.astuple(about(name)))
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_recipe(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_holds_only_differences(name):
    settings = yaml.safe_load((resources.files("longtail.config") / "recipes" / f"{name}.yaml").read_text())
    base = load_recipe(settings["base"]) if "base" in settings else Config()
    inherited = yaml.safe_load(to_yaml(base))
    assert inherited["teacher"] != settings.pop("teacher", "")
    for section in set(settings) - {"about", "base", "name"}:
        for field, value in settings[section].items():
            assert inherited[section][field] != value, f"{section}.{field} is {value} without this recipe"


def test_later_settings_win():
    overrides = {"training": {"epochs": 7, "batch_size": 16}}
    config = resolve("cifar100-lt-ldam-drw", overrides, ["--training.epochs", "9"])
    assert (config.training.epochs, config.training.batch_size) == (9, 16)
    assert config.loss.name == "ldam"
    assert config.data.imbalance == "exponential"  # from the base recipe
    assert config.data.subset_seed == 0  # from the defaults


def test_overrides_are_converted_as_in_files():
    config = longtail.load_recipe("digits-lt-ce", {"model.width": [40, 96], "training.learning_rate": "5e-4"})
    assert config.model.width == [40, 96]
    assert config.training.learning_rate == 5e-4


@pytest.mark.parametrize(
    ("changes", "border"),
    [
        ({"training.epochs": "3"}, "blocks.5.2"),
        ({"model.backbone": "tf_efficientnet_lite0"}, "blocks.5.2"),
        ({"model.backbone": "resnet18", "training.epochs": "3"}, None),
        ({"training.epochs": "3", "model.backbone": "resnet18"}, None),
        ({"model.backbone": "resnet18", "model.experts_from": "layer4.1"}, "layer4.1"),
    ],
)
def test_another_backbone_has_another_border(changes, border, tmp_path):
    """That of the recipe is the name of a module."""
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"base": "folder", **recipes.nested(changes)}))
    words = [word for name, value in changes.items() for word in (f"--{name}", value)]
    for config in (
        load_recipe("folder", changes),
        load_recipe(tmp_path / "mine.yaml"),
        resolve("folder", {}, words),
        resolve("folder", {}, [f"--{name}={value}" for name, value in changes.items()]),
    ):
        assert config.model.experts_from == border


def test_published_recipes_have_the_published_settings():
    ride, ldam = load_recipe("cifar100-lt-ride"), load_recipe("cifar100-lt-ldam-drw")
    for config in (ride, ldam, load_recipe("cifar100-lt-ce")):
        training = config.training
        assert (training.epochs, training.batch_size, training.learning_rate) == (200, 128, 0.1)
        assert [round(m * 200) for m in training.milestones] == [160, 180]
        assert (training.decay, round(training.warmup * 200), training.momentum) == (0.01, 5, 0.9)
        assert (config.augmentation.crop, config.augmentation.padding) == ("padded", 4)
        assert (config.augmentation.flip, config.augmentation.rotation) == (True, 15)
        assert config.data.mean == (0.4914, 0.4822, 0.4465)
        assert config.data.std == (0.2023, 0.1994, 0.2010)
    assert (ride.training.weight_decay, ride.training.nesterov) == (5e-4, True)
    assert (ldam.training.weight_decay, ldam.training.nesterov) == (2e-4, False)
    assert (ride.loss.diversity_factor, ride.loss.temperature_spread, ride.model.scale) == (-0.45, 0.05, 30)
    assert round(ride.loss.reweight_after * 200) == round(ldam.loss.reweight_after * 200) == 160
    assert (ldam.model.num_experts, ldam.model.width, ldam.model.head) == (1, "full", "cosine")


@pytest.mark.parametrize("section", [Config, *SECTIONS], ids=lambda section: section.__name__)
def test_every_field_is_documented(section):
    source = inspect.getsource(section)
    for field in dataclasses.fields(section):
        if field.type not in SECTIONS:
            after = source.split(f"\n    {field.name}: ")[1].split("\n    def ")[0]
            assert after.split('\n    """')[1:], f"{field.name} has no docstring"


WRONG = {
    "unknown section": (["--modle.num_experts", "3"], ["modle.num_experts", "model.num_experts"]),
    "unknown field": (["--model.num_expert=3"], ["model.num_expert'", "model.num_experts"]),
    "misspelt field without section": (["--epohcs", "3"], ["'epohcs'", "training.epochs"]),
    "section without field": (["--training", "x"], ["training", "section"]),
    "argument without dashes": (["epochs"], ["epochs"]),
    "option without value": (["--training.epochs"], ["training.epochs"]),
    "text for a whole number": (["--training.epochs", "many"], ["training.epochs", "'many'", "whole number"]),
    "fraction for a whole number": (["--training.epochs", "1.5"], ["training.epochs", "1.5", "whole number"]),
    "text for an optional number": (["--training.clip_gradient", "x"], ["training.clip_gradient", "'x'", "or null"]),
    "number for a switch": (["--training.nesterov", "7"], ["training.nesterov", "7", "true or false"]),
    "two numbers for three": (["--data.mean", "[1, 2]"], ["data.mean", "3 numbers"]),
    "unknown choice": (["--training.schedule", "cosin"], ["'cosin'", "step or cosine", "did you mean 'cosine'"]),
    "unknown choice or list": (["--model.width", "wide"], ["model.width", "wide", "narrow"]),
    "below the minimum": (["--training.epochs", "0"], ["training.epochs", "0", "at least 1"]),
    "negative": (["--training.learning_rate", "-1"], ["training.learning_rate", "-1", "above 0"]),
    "not a number": (["--training.learning_rate", "nan"], ["training.learning_rate", "nan"]),
    "infinite": (["--loss.diversity_factor", ".inf"], ["loss.diversity_factor", "inf", "finite"]),
    "at the exclusive bound": (["--data.val_fraction", "1"], ["data.val_fraction", "below 1"]),
    "one of several": (["--data.std", "[1, 0, 1]"], ["data.std", "above 0, or null"]),
    "negative seed": (["--seed", "-1"], ["seed", "-1"]),
    "large seed": (["--data.subset_seed", "5000000000"], ["data.subset_seed", "4294967295"]),
    "large image": (["--data.image_size", "1000000"], ["data.image_size", "4096"]),
    "imbalance for its inverse": (["--data.imbalance_factor", "100"], ["data.imbalance_factor", "100", "0.01"]),
    "descending": (["--training.milestones", "[0.9, 0.8]"], ["training.milestones", "ascending"]),
    "descending in epochs": (["--training.milestones", "[0.5, 10]"], ["training.milestones", "ascending"]),
    "late milestones": (["--training.milestones", "[160, 180]"], ["training.milestones", "training.epochs, 60"]),
    "long warm-up": (["--training.warmup", "500"], ["training.warmup", "500", "60"]),
    "late weights": (["--loss.reweight_after", "160"], ["loss.reweight_after", "160", "60"]),
    "jitter without crop": (["--augmentation.color_jitter", "[1, 1, 1, 0]"], ["augmentation.color_jitter", "resized"]),
    "shot thresholds": (["--evaluation.few_below", "200"], ["evaluation.few_below", "200", "101"]),
    "list without files": (["--data.name", "list"], ["data.train_list"]),
    "Nesterov without momentum": (["--training.momentum", "0"], ["training.nesterov"]),
    "small resize": (["--data.image_size", "64", "--data.resize", "32"], ["data.resize", "64"]),
    "router for one expert": (["--model.num_experts", "1"], ["router.train"]),
    "two budgets": (["--router.compute_budget", "1.2"], ["router.max_accuracy_drop", "router.compute_budget"]),
    "exponents": (
        ["--loss.name", "logit_adjustment", "--loss.prior_exponents", "[1, 2]"],
        ["loss.prior_exponents", "[1.0, 2.0]", "3"],
    ),
}


def is_refused(load, words):
    with pytest.raises(longtail.InputError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named_in_one_line(case):
    arguments, words = WRONG[case]
    is_refused(lambda: resolve("digits-lt-ride", arguments=arguments), words)


WRONG_FILES = [
    ("training: {epoch: 3}", ["training.epoch", "training.epochs", "mine.yaml"]),
    ("training: 3", ["training", "section"]),
    ("- 1", ["settings", "list"]),
    ("training:\n  epochs: [", [":2", "YAML"]),
    ("base: cifar10-lt-rid", ["cifar10-lt-rid", "cifar10-lt-ride"]),
    ("base: {file}", ["base"]),
    ("base: 3", ["3"]),
    ("about: none", ["about"]),
    ("training: {epochs: null}", ["training.epochs", "null"]),
    ("data: {root: ~}", ["data.root", "null"]),
    ("data: &a {x: *a}", ["aliases"]),
    ("training: {epochs: 1}\ntraining: {batch_size: 32}", [":2", "'training'"]),
    ("training: {epochs: 1, epochs: 2}", ["'epochs'"]),
    ("3: 4", ["3"]),
    ("!!python/object/apply:os.system ['touch {marker}']", ["YAML"]),
]


@pytest.mark.parametrize(("text", "words"), WRONG_FILES, ids=[text for text, _ in WRONG_FILES])
def test_a_wrong_file_is_named_in_one_line(text, words, tmp_path):
    file, marker = tmp_path / "mine.yaml", tmp_path / "executed"
    file.write_text(text.replace("{file}", str(file)).replace("{marker}", str(marker)))
    is_refused(lambda: load_recipe(file), words)
    assert not marker.exists()


def test_a_binary_file_and_a_circle_of_bases(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    is_refused(lambda: load_recipe(tmp_path / "binary.yaml"), ["binary.yaml", "UTF-8", "byte 0"])
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"base: {second}")
    second.write_text(f"base: {first}")
    is_refused(lambda: load_recipe(first), ["base", "first.yaml"])


def test_a_base_may_be_left_empty(tmp_path):
    (tmp_path / "mine.yaml").write_text("base:\ntraining: {epochs: 7}\n")
    assert load_recipe(tmp_path / "mine.yaml").training.epochs == 7


def test_a_base_is_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("training: {epochs: 7}")
    (tmp_path / "mine.yaml").write_text("base: base.yaml")
    monkeypatch.chdir("/")
    assert load_recipe(tmp_path / "mine.yaml").training.epochs == 7


def test_constructors_check_ranges():
    for make in (
        lambda: DataConfig(imbalance_factor=0),
        lambda: AugmentationConfig(rotation=-1),
        lambda: TrainingConfig(warmup=-1),
        lambda: EvaluationConfig(calibration_bins=0),
        lambda: Config(training=TrainingConfig(weight_decay=float("nan"))),
        lambda: Config(seed=None),
        lambda: dataclasses.replace(Config(), name="a\0"),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def test_types_of_a_config_made_in_python_are_checked():
    assert checked_types(Config()) == Config()
    is_refused(lambda: checked_types(Config(training=TrainingConfig(epochs=1.5))), ["training.epochs", "1.5"])


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3


# ---- settings of earlier versions ----


@pytest.fixture
def warnings(caplog):
    recipes._warn_renamed.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def test_old_names_work_everywhere_with_one_warning(tmp_path, warnings):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {on_bad_image: skip, max_bad_images: 0.5, imbalance: step}")
    for config in (
        load_recipe(file),
        load_recipe("digits-lt-ride", {"data.on_bad_image": "skip", "data.max_bad_images": 0.5}),
        resolve("digits-lt-ride", arguments=["--data.on_bad_image=skip", "--data.max_bad_images", "0.5"]),
    ):
        assert (config.data.on_corrupt_image, config.data.max_corrupt_images) == ("skip", 0.5)
    assert load_recipe(file).data.imbalance == "step"
    assert [record.getMessage().count(" is now ") for record in warnings.records] == [2, 2, 1, 1]
    assert str(file) in warnings.records[0].getMessage()
    for old, new in RENAMED.items():
        assert f"{old} is now {new}" in warnings.records[0].getMessage()


def test_fingerprints_of_another_version_are_the_same():
    config = load_recipe("cifar100-lt-ride")
    current = config_fingerprint(config)
    earlier = yaml.safe_load(current)
    for old, new in RENAMED.items():
        earlier["data"][old.removeprefix("data.")] = earlier["data"].pop(new.removeprefix("data."))
    del earlier["evaluation"]["calibration_bins"]  # as if it had been added since
    earlier["training"]["checkpoint_every"] = 7.0  # does not change what is trained
    assert same_fingerprint(yaml.safe_dump(earlier), current)
    for section, field, value in (
        ("training", "epochs", 3),
        ("training", "unknown", 1),
        ("data", "on_bad_image", "skip"),
    ):
        changed = earlier | {section: earlier[section] | {field: value}}
        assert not same_fingerprint(yaml.safe_dump(changed), current)
    assert not same_fingerprint("[", current)


def test_incidental_settings_do_not_change_the_fingerprint():
    config = load_recipe("cifar100-lt-ride")
    moved = load_recipe("cifar100-lt-ride", {"device": "cpu", "data.root": "x", "data.workers": 0})
    assert config_fingerprint(moved) == config_fingerprint(config)
    assert diff_configs(moved, config) == []
    changed = load_recipe("cifar100-lt-ride", {"training.epochs": 3, "data.mean": [0.5, 0.5, 0.5]})
    assert diff_configs(changed, config) == [
        ("data.mean", [0.5, 0.5, 0.5], [0.4914, 0.4822, 0.4465]),
        ("training.epochs", 3, 200),
    ]

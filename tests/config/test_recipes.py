import dataclasses
from importlib import resources

import pytest
import yaml

import longtail
from longtail.config.recipes import about, list_recipes, load_recipe, make_config, resolve, to_yaml
from longtail.config.schema import AugmentationConfig, Config, DataConfig, EvaluationConfig, TrainingConfig

SECTIONS = [getattr(Config(), field.name) for field in dataclasses.fields(Config)]
SECTIONS = [section for section in SECTIONS if dataclasses.is_dataclass(section)]


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_is_valid_described_and_survives_yaml(name, tmp_path):
    config = load_recipe(name)
    assert config.name == name
    described = about(name)
    assert described.description
    assert described.expected
    assert described.time
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_recipe(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_hold_differences_only(name):
    """No setting of a recipe repeats the value it would have without it."""
    text = (resources.files("longtail") / "recipes" / f"{name}.yaml").read_text()
    settings = yaml.safe_load(text)
    base = load_recipe(settings["base"]) if "base" in settings else Config()
    plain = yaml.safe_load(to_yaml(base))
    assert plain["teacher"] != settings.pop("teacher", "")
    for section in set(settings) - {"about", "base", "name"}:
        for field, value in settings[section].items():
            assert plain[section][field] != value, f"{section}.{field} is {value} anyway"


def test_later_settings_win():
    config = resolve("cifar100-lt-ldam-drw", {"training": {"epochs": 7, "batch_size": 16}}, ["--training.epochs", "9"])
    assert (config.training.epochs, config.training.batch_size) == (9, 16)
    assert config.loss.name == "ldam"
    assert config.data.imbalance_factor == 0.01  # from the base recipe
    assert config.data.subset_seed == 0  # from the defaults


def test_python_overrides_have_the_same_types():
    config = longtail.load_recipe("digits-lt-ce", {"model.width": [40, 96], "training.learning_rate": "5e-4"})
    assert config.model.width == [40, 96]
    assert config.training.learning_rate == 5e-4


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


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: type(section).__name__)
def test_every_field_is_documented(section):
    source = __import__("inspect").getsource(type(section))
    for field in dataclasses.fields(section):
        after = source.split(f"\n    {field.name}: ")[1]
        assert after.split("\n    def ")[0].count('"""') >= 2, f"{field.name} has no docstring"


WRONG = [
    (["--modle.num_experts", "3"], ["modle.num_experts", "model.num_experts"]),
    (["--model.num_expert=3"], ["model.num_expert'", "model.num_experts"]),
    (["--training.epochs", "many"], ["training.epochs", "'many'", "int"]),
    (["--training.epochs", "0"], ["training.epochs", "0", "at least 1"]),
    (["--training.epochs"], ["training.epochs"]),
    (["--training.learning_rate", "nan"], ["training.learning_rate", "nan"]),
    (["--training.learning_rate", "-1"], ["training.learning_rate", "-1"]),
    (["--loss.diversity_factor", ".inf"], ["loss.diversity_factor", "inf", "finite"]),
    (["--training.milestones", "[0.9, 0.8]"], ["training.milestones", "ascending"]),
    (["--data.name", "cifar1000"], ["data.name", "cifar1000", "cifar100"]),
    (["--data.imbalance_factor", "100"], ["data.imbalance_factor", "100", "0.01"]),
    (["--data.mean", "[1, 2]"], ["data.mean", "3"]),
    (["--data.val_fraction", "1"], ["data.val_fraction", "below 1"]),
    (["--model.width", "wide"], ["model.width", "wide", "narrow"]),
    (["--augmentation.color_jitter", "[1, 1, 1, 0]"], ["augmentation.color_jitter", "resized"]),
    (["--evaluation.few_below", "200"], ["evaluation.few_below", "200", "101"]),
    (["--data.name", "list"], ["data.train_list"]),
    (["--training.momentum", "0"], ["training.nesterov"]),
    (["--training", "x"], ["training", "section"]),
    (["epochs"], ["epochs"]),
    (["--seed", "-1"], ["seed", "-1"]),
    (["--seed", "99999999999999999999999"], ["seed", "2^32"]),
    (["--data.subset_seed", "-1"], ["data.subset_seed", "-1"]),
    (["--data.subset_seed", "5000000000"], ["data.subset_seed", "2^32"]),
    (["--training.warmup", "500"], ["training.warmup", "500", "60"]),
    (["--training.milestones", "[0.5, 10]"], ["training.milestones", "ascending"]),
    (["--training.milestones", "[160, 180]"], ["training.milestones", "at most training.epochs, 60"]),
    (["--loss.reweight_after", "160"], ["loss.reweight_after", "160", "60"]),
    (["--data.image_size", "1000000"], ["data.image_size", "4096"]),
    (["--data.image_size", "64", "--data.resize", "32"], ["data.resize", "64"]),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_settings_are_named_in_one_line(arguments, named):
    with pytest.raises(longtail.InputError) as caught:
        resolve("digits-lt-ride", {}, arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message


WRONG_FILES = [
    ("training: {epoch: 3}", ["training.epoch", "training.epochs"]),
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
    ("training: {epochs: 1}\ntraining: {batch_size: 32}", [":2", "'training' stands twice"]),
    ("training: {epochs: 1, epochs: 2}", ["'epochs' stands twice"]),
    ("3: 4", ["3"]),
    ("!!python/object/apply:os.system ['touch {marker}']", ["YAML"]),
]


@pytest.mark.parametrize(("text", "named"), WRONG_FILES, ids=[text for text, _ in WRONG_FILES])
def test_wrong_files_are_named_in_one_line(text, named, tmp_path):
    file, marker = tmp_path / "mine.yaml", tmp_path / "executed"
    file.write_text(text.replace("{file}", str(file)).replace("{marker}", str(marker)))
    with pytest.raises(longtail.InputError) as caught:
        load_recipe(file)
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message
    assert not marker.exists()


def test_binary_file_and_circle_of_bases(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(longtail.InputError, match=r"binary\.yaml"):
        load_recipe(tmp_path / "binary.yaml")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"base: {two}")
    two.write_text(f"base: {one}")
    with pytest.raises(longtail.InputError, match="base"):
        load_recipe(one)


def test_base_is_looked_for_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "base.yaml").write_text("training: {epochs: 7}")
    (tmp_path / "mine.yaml").write_text("base: base.yaml")
    monkeypatch.chdir("/")
    assert load_recipe(tmp_path / "mine.yaml").training.epochs == 7


def test_constructors_check_too():
    for make in (
        lambda: DataConfig(imbalance_factor=0),
        lambda: AugmentationConfig(rotation=-1),
        lambda: TrainingConfig(warmup=-1),
        lambda: EvaluationConfig(calibration_bins=0),
        lambda: Config(training=TrainingConfig(weight_decay=float("nan"))),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_config_is_frozen_and_complete():
    config = make_config(dataclasses.asdict(Config()))
    assert config == Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3

"""Translated settings of the originals, compared epoch by epoch with the rules of the original code."""

import math

import pytest

from longtail.config.recipes import resolve
from longtail.interop.original.settings import is_original, read_settings, translate
from longtail.losses.build import build_criterion
from longtail.training.optim import learning_rate
from longtail.utils.errors import InputError

NET = {
    "type": "ResNet32Model",
    "args": {"num_classes": 100, "reduce_dimension": True, "use_norm": True, "num_experts": 3},
}
SGD = {"type": "SGD", "args": {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True}}
STEPS = {"type": "CustomLR", "args": {"step1": 160, "step2": 180, "gamma": 0.01, "warmup_epoch": 5}}
RIDE = {"type": "RIDELoss", "args": {"additional_diversity_factor": -0.45, "reweight": True, "reweight_epoch": 160}}


def config_json(**changes):
    return {
        "arch": NET,
        "data_loader": {"type": "ImbalanceCIFAR100DataLoader", "args": {"data_dir": "data", "batch_size": 128}},
        "optimizer": SGD,
        "add_extra_info": True,
        "loss": RIDE,
        "lr_scheduler": STEPS,
        "trainer": {"epochs": 200},
    } | changes


def large(loss, rate=0.1, batch=256):
    """ImageNet-LT and iNaturalist: their files do not name the diversity factor."""
    return config_json(
        arch={"type": "ResNet50Model", "args": NET["args"] | {"num_classes": 1000}},
        data_loader={"type": "ImageNetLTDataLoader", "args": {"batch_size": batch}},
        optimizer={"type": "SGD", "args": SGD["args"] | {"lr": rate, "weight_decay": 2e-4}},
        loss={"type": "RIDELoss", "args": {"reweight": True, "reweight_epoch": 80} | loss},
        lr_scheduler={"type": "CustomLR", "args": {"step1": 60, "step2": 80, "gamma": 0.1, "warmup_epoch": 5}},
        trainer={"epochs": 100},
    )


PUBLISHED = {
    "cifar": config_json(),
    "teacher": config_json(arch={"type": "ResNet32Model", "args": NET["args"] | {"num_experts": 6}}),
    "distilled": config_json(
        distill=True,
        distill_checkpoint="teacher.pth",
        loss={"type": "RIDELossWithDistill", "args": RIDE["args"] | {"distill_temperature": 1.5}},
        lr_scheduler={"type": "CustomLR", "args": STEPS["args"] | {"warmup_epoch": 20}},
    ),
    "ldam": config_json(
        arch={"type": "ResNet32Model", "args": {"num_classes": 100, "use_norm": True, "num_experts": 1}},
        optimizer={"type": "SGD", "args": {"lr": 0.1, "weight_decay": 2e-4, "momentum": 0.9}},
        add_extra_info=False,
        loss={"type": "LDAMLoss", "args": {"reweight_epoch": 160}},
    ),
    "imagenet": large({"reweight_factor": 0.02}),
    "inaturalist": large({"reweight_factor": 0.015}, rate=0.2, batch=512),
    "never reweighted": config_json(loss={"type": "LDAMLoss"}, add_extra_info=False),
    "reweighted at once": config_json(
        loss={"type": "CrossEntropyLoss", "args": {"reweight_CE": True}}, add_extra_info=False
    ),
    "constant rate": config_json(lr_scheduler={}),
    "default gamma": config_json(
        lr_scheduler={"type": "CustomLR", "args": {"step1": 1, "step2": 2, "warmup_epoch": 0}},
    ),
    "shorter than its steps": config_json(trainer={"epochs": 100}),
}


def original_rate(original, epoch):
    """The rate of an epoch, counted from 1, in train.py of RIDE."""
    epoch, base = epoch - 1, original["optimizer"]["args"]["lr"]
    if "type" not in original["lr_scheduler"]:
        return base
    arguments = original["lr_scheduler"]["args"]
    gamma = arguments.get("gamma", 0.1)
    factor = gamma**2 if epoch >= arguments["step2"] else gamma if epoch >= arguments["step1"] else 1
    warmup = arguments["warmup_epoch"]
    return base * factor * ((epoch + 1) / warmup if epoch < warmup else 1)


def original_is_reweighted(original, epoch):
    """Whether an epoch, counted from 1, has class weights in model/loss.py of RIDE."""
    arguments = original["loss"].get("args", {})
    if original["loss"]["type"] == "CrossEntropyLoss":
        return arguments.get("reweight_CE", False)
    after = arguments.get("reweight_epoch", -1)
    return after != -1 and epoch > after


def translated(original, arguments=()):
    translation = translate(original)
    assert translation.ignored == []
    return resolve(translation.base, translation.settings, arguments)


@pytest.mark.parametrize("name", PUBLISHED)
def test_rates_and_class_weights_of_every_epoch(name):
    original = PUBLISHED[name]
    config = translated(original)
    assert config.training.epochs == original["trainer"]["epochs"]
    rates, share = learning_rate(config.training), 3 if config.loss.collaborative else 1
    criterion = build_criterion(config.loss, [500, 50, 5], config.training.epochs, config.model.scale)
    for epoch in range(1, config.training.epochs + 1):
        assert math.isclose(share * rates(epoch - 1), original_rate(original, epoch)), epoch
        assert criterion.is_reweighted(epoch) == original_is_reweighted(original, epoch), epoch


def test_losses():
    for name, factor, spread in (("cifar", -0.45, 0.05), ("imagenet", -0.2, 0.02), ("inaturalist", -0.2, 0.015)):
        loss = translated(PUBLISHED[name]).loss
        assert (loss.name, loss.diversity_factor, loss.temperature_spread) == ("ride", factor, spread), name
        assert (loss.diversity_mean, loss.collaborative) == (False, False)
    assert translated(PUBLISHED["ldam"]).loss.name == "ldam"
    focal = translated(config_json(loss={"type": "FocalLoss"}, add_extra_info=False)).loss
    assert (focal.name, focal.focal_gamma, focal.reweight_after) == ("focal", 0, None)
    joint = translated(
        config_json(loss={"type": "RIDELoss", "args": RIDE["args"] | {"additional_diversity_factor": 0}})
    )
    assert (joint.loss.name, joint.loss.collaborative) == ("ride", True)
    # Without the experts' own logits its loss is the cross-entropy of the mean.
    mean = translated(config_json(add_extra_info=False))
    assert (mean.loss.name, mean.loss.collaborative, mean.loss.reweight_after) == ("cross_entropy", True, None)


def test_one_loss_of_the_mean_logits_is_trained_alike():
    """The original counts it once, longtail once for each expert: with 1/3 of the rate and 3 times the decay."""
    training = translated(config_json(add_extra_info=False)).training
    assert (training.learning_rate, training.weight_decay) == pytest.approx((0.1 / 3, 3 * 5e-4))


def test_margins_follow_the_scale_of_the_loss():
    arguments = NET["args"] | {"s": 20}
    config = translated(
        config_json(
            arch={"type": "ResNet32Model", "args": arguments},
            loss={"type": "RIDELoss", "args": RIDE["args"] | {"max_m": 0.4, "s": 30}},
        )
    )
    assert (config.model.scale, config.loss.max_margin) == (20, pytest.approx(0.4 * 30 / 20))


def test_distillation():
    config = translated(PUBLISHED["distilled"])
    assert config.teacher == "teacher.pth"
    assert config.distillation.published
    assert (config.distillation.temperature, config.distillation.factor) == (1.5, 1)
    assert config.training.warmup == 20


def test_networks():
    model = translated(PUBLISHED["cifar"]).model
    assert (model.backbone, model.num_experts, model.width, model.head) == ("resnet32", 3, "narrow", "cosine")
    arguments = {"num_classes": 1000, "layer3_output_dim": 128, "layer4_output_dim": 320, "share_layer3": True}
    model = translated(config_json(arch={"type": "ResNeXt50Model", "args": arguments})).model
    assert (model.backbone, model.num_experts, model.width) == ("resnext50_32x4d", 1, [128, 320])
    assert (model.head, model.expert_stages) == ("linear", 1)


def test_routers():
    arguments = NET["args"] | {"top_choices_num": 30, "pos_weight": 100}
    original = config_json(arch={"type": "ResNet10EAModel", "args": arguments}, loss={"type": "CrossEntropyLoss"})
    translation = translate(original | {"trainer": {"epochs": 5}})
    assert translation.is_router
    assert translation.settings["router"] | {"batch_size": 0} == {
        "top_choices": 30, "shared": True, "positive_weight": 100, "epochs": 5, "batch_size": 0, "learning_rate": 0.1,
        "weight_decay": 5e-4,
    }  # fmt: skip
    assert "loss" not in translation.settings  # those of the experts are in another file


@pytest.mark.parametrize(
    ("kind", "arguments", "rate"),
    [
        ("CosineAnnealingLR", {"T_max": 200, "eta_min": 0.02}, lambda e: 0.06 + 0.04 * math.cos(math.pi * e / 200)),
        ("MultiStepLR", {"milestones": [50, 150]}, lambda e: 0.1 * 0.1 ** ((e >= 50) + (e >= 150))),
        ("StepLR", {"step_size": 60, "gamma": 0.5}, lambda e: 0.1 * 0.5 ** (e // 60)),
    ],
)
def test_schedules_of_pytorch(kind, arguments, rate):
    rates = learning_rate(translated(config_json(lr_scheduler={"type": kind, "args": arguments})).training)
    assert all(math.isclose(rates(epoch), rate(epoch)) for epoch in range(200))


def test_what_has_no_counterpart_is_named():
    original = config_json(
        arch={"type": "MyModel"},
        optimizer={"type": "RMSprop", "args": {"lr": 0.1, "alpha": 0.9}},
        loss={"type": "RIDELoss", "args": RIDE["args"] | {"base_loss_factor": 2, "mine": 1}},
        lr_scheduler={"type": "ExponentialLR", "args": {"gamma": 0.9}},
    )
    assert translate(original).ignored == [
        "arch.type", "loss.args.base_loss_factor", "loss.args.mine", "optimizer.type", "optimizer.args.alpha",
        "lr_scheduler.type",
    ]  # fmt: skip
    assert translate(config_json(loss={"type": "MyLoss"})).ignored == ["loss.type"]


SWIN = {
    "MODEL": {"SWIN": {"DEPTHS": [2, 2, 18, 2]}, "USE_NORMED_LINEAR": True, "NUM_EXPERTS": 2, "DROP_PATH_RATE": 0.3},
    "TRAIN": {"LOSS_TYPE": "RIDE", "REWEIGHT_EPOCH": 240, "LOSS": {"REWEIGHT_FACTOR": 0.02}, "WEIGHT_DECAY": 0.2},
    "DATA": {"DATASET": "imagenet-lt"},
}


def test_swin():
    """The recipe was written by hand from the same facts."""
    changes = ["--training.batch_size", "1024", "--training.accumulation", "4", "--augmentation.mix_images", "32"]
    config = translated(SWIN, changes)
    recipe = resolve("imagenet-lt-swin-small-ride-2")
    assert config.model == recipe.model.__class__(**vars(recipe.model) | {"expert_stages": 2})
    assert config.augmentation == recipe.augmentation
    for section in ("loss", "training"):
        ours, theirs = vars(getattr(config, section)), vars(getattr(recipe, section))
        absolute = {"reweight_after": 241, "warmup": 20}  # the recipe has shares of the epochs
        assert ours == theirs | {key: value for key, value in absolute.items() if key in theirs}


@pytest.mark.parametrize(("loss", "first"), [("RIDE", 242), ("LDAM", 241), ("CE", None)])
def test_swin_counts_epochs_from_0(loss, first):
    config = translated(SWIN | {"TRAIN": {"LOSS_TYPE": loss, "REWEIGHT_EPOCH": 240}, "MODEL": {}})
    criterion = build_criterion(config.loss, [500, 50, 5], 300, 30)
    assert next((epoch for epoch in range(1, 301) if criterion.is_reweighted(epoch)), None) == first
    assert config.loss.diversity_factor == -0.2 or loss != "RIDE"


def test_saved_settings_of_swin_have_the_rates_of_their_run():
    saved = SWIN | {"LOCAL_RANK": 0, "TRAIN": SWIN["TRAIN"] | {"BASE_LR": 1e-3, "MIN_LR": 1e-5, "WARMUP_LR": 1e-6}}
    training = translated(saved, ["--training.batch_size", "1024"]).training
    assert learning_rate(training)(20) < 1e-3 < learning_rate(training)(15) * 1.5
    assert (training.learning_rate, training.learning_rate_batch) == (1e-3, None)


def test_mixing_of_swin():
    """One weight for the images of a GPU and an accumulated part."""
    mixing = {"MIXUP_PROB": 0.8, "MIXUP_SWITCH_PROB": 0.3, "CUTMIX_MINMAX": [0.2, 0.6], "CUTMIX": 0.0}
    augmentation = translated(SWIN | {"AUG": mixing, "DATA": {"BATCH_SIZE": 32}}).augmentation
    assert (augmentation.mix_images, augmentation.mix_probability, augmentation.cutmix_probability) == (32, 0.8, 0.3)
    assert (augmentation.cutmix, augmentation.cutmix_range) == (1.0, (0.2, 0.6))


def test_swin_without_a_counterpart():
    changed = SWIN | {
        "AUG": {"MIXUP_MODE": "pair"},
        "MODEL": {"SWIN": {"EMBED_DIM": 48, "MLP_RATIO": 2, "NUM_HEADS": [3] * 4}},
    }
    assert translate(changed).ignored == [
        "MODEL.SWIN.EMBED_DIM and DEPTHS", "MODEL.SWIN.MLP_RATIO", "MODEL.SWIN.NUM_HEADS", "AUG.MIXUP_MODE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("depths", "window", "expected"),
    [
        ([2, 2, 18, 2], 7, ("swin_small_patch4_window7_224", None, None)),
        ([2, 2, 4, 2], 7, ("swin_tiny_patch4_window7_224", [2, 2, 4, 2], None)),
        ([2, 2, 6, 2], 8, ("swin_tiny_patch4_window7_224", None, 8)),
    ],
)
def test_depths_and_windows_of_swin(depths, window, expected):
    model = translated(SWIN | {"MODEL": {"SWIN": {"DEPTHS": depths, "WINDOW_SIZE": window}}}).model
    assert (model.backbone, model.depths, model.window_size) == expected


def test_files(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("MODEL:\n  NUM_EXPERTS: 3\n")  # RIDE-Swin writes YAML into this file
    assert read_settings(path) == {"MODEL": {"NUM_EXPERTS": 3}}
    path.write_text('{\n\t"arch": {}\n}')  # tabs, which YAML does not have
    assert is_original(read_settings(path))
    assert not is_original({"data": {}, "model": {}})
    path.write_text("{")
    with pytest.raises(InputError, match="JSON"):
        read_settings(path)

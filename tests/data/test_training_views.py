"""Weak and strong views of training images: in memory, from files, in parts of a batch and among processes."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import layouts
from helpers.loaders import CPU, NORMALISE, loader, small_split
from helpers.runs import EXPERTS_ONLY, digits
from PIL import Image

import longtail
from longtail.config.recipes import load_recipe
from longtail.config.schema import AugmentationConfig
from longtail.data import loaders
from longtail.data.batch_augment import BatchAugmentation
from longtail.data.build import load_data
from longtail.data.fast_crop import FileCrop
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder, MemoryLoader
from longtail.data.mixup import MixedLoader, MixSettings
from longtail.data.splits import ImageSplit
from longtail.data.transforms import ImageAugmentation, train_transform
from longtail.losses import LDAMLoss, SelfDistilledLoss
from longtail.models.multi_expert import create_model
from longtail.runs.context import RunContext
from longtail.runtime.device import Runtime
from longtail.runtime.shard import Shard
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import TrainExperts
from longtail.utils.errors import InputError

WEAK = {"padding": 1, "flip": True, "rotation": 15.0}
STRONG = BatchAugmentation(1, True, 0.0, "cifar10", 4)


def two_views(num=50, batch_size=8, **options):
    return loader(small_split(num=num), batch_size, shuffle=True, other_views=[STRONG], **WEAK, **options)


def views_of(batches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weak views, strong views and labels of some batches."""
    parts = [(*batch.inputs.chunk(batch.num_views), batch.own_labels) for batch in batches]
    weak, strong, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return weak, strong, labels


# ---- in memory ----


def test_the_weak_view_is_the_one_without_other_views():
    weak, strong, labels = views_of(two_views().epoch(2))
    alone = list(loader(small_split(num=50), 8, shuffle=True, **WEAK).epoch(2))
    assert torch.equal(weak, torch.cat([batch.inputs for batch in alone]))
    assert torch.equal(labels, torch.cat([batch.labels for batch in alone]))
    assert strong.shape == weak.shape
    assert (strong != weak).flatten(1).any(1).float().mean() > 0.9


def test_all_of_one_view_come_before_those_of_another():
    for batch in two_views().epoch(1):
        assert batch.num_views == 2
        assert len(batch.inputs) == 2 * len(batch.labels)
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


def test_both_views_are_of_the_same_image():
    """Images of one color, which crops and mirrors keep; without AutoAugment and Cutout."""
    colors = np.random.default_rng(0).integers(1, 256, (30, 1, 1, 3), dtype=np.uint8)
    split = ImageSplit(np.arange(30), pixels=np.broadcast_to(colors, (30, 8, 8, 3)).copy())
    source = loader(split, 8, shuffle=True, flip=True, other_views=[BatchAugmentation(flip=True)])
    weak, strong, labels = views_of(source.epoch(1))
    assert torch.equal(weak, strong)
    assert torch.equal(weak, NORMALISE(torch.from_numpy(split.pixels)[labels].permute(0, 3, 1, 2)))


@pytest.mark.parametrize("pixels", [1, 8 * 8 * 16, 2**20])
def test_epochs_do_not_depend_on_chunks_and_resume_anywhere(pixels, monkeypatch):
    expected = [batch.inputs for batch in two_views().epoch(3)]
    monkeypatch.setattr(loaders, "CPU_CHUNK", pixels)
    for first in (0, 1, 4, 6):
        rest = [batch.inputs for batch in two_views().epoch(3, first)]
        assert len(rest) == 7 - first
        assert all(torch.equal(*pair) for pair in zip(rest, expected[first:], strict=True))
    assert not list(two_views().epoch(3, 7))


def test_each_epoch_and_each_image_has_its_own_changes():
    source = two_views()
    first, second = (dict(zip(*of_epoch(source, epoch), strict=True)) for epoch in (1, 2))
    assert first.keys() == second.keys()
    assert np.mean([np.array_equal(first[key], second[key]) for key in first]) < 0.1


def of_epoch(source: MemoryLoader, epoch: int) -> tuple[list[int], list[np.ndarray]]:
    """The positions of an epoch's images in the split, and their strong views."""
    positions = EpochOrder(50, 8, shuffle=True).draw(epoch).positions.tolist()
    return positions, list(views_of(source.epoch(epoch))[1].numpy())


def test_processes_share_every_batch():
    whole = list(two_views(num=48).epoch(1))
    shares = [list(two_views(num=48, shard=Shard(rank, 2)).epoch(1)) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for view, *of_parts in zip(batch.inputs.chunk(2), *(part.inputs.chunk(2) for part in parts), strict=True):
            assert torch.equal(view, torch.cat(of_parts))
        assert all(torch.equal(part.labels, batch.labels) for part in parts)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_batch_hold_all_views_of_their_images(parts):
    batch = next(two_views().epoch(1))._replace(soft_targets=torch.rand(8, 4))
    divided = batch.divide(parts)
    weak, strong, labels = views_of(divided)
    assert torch.equal(torch.cat([weak, strong]), batch.inputs)
    assert torch.equal(labels, batch.labels)
    assert torch.equal(torch.cat([part.soft_targets for part in divided]), batch.soft_targets)
    assert [part.num_views for part in divided] == [2] * parts


def test_label_smoothing_gives_one_target_for_all_views():
    smooth = MixedLoader(two_views(), 4, MixSettings(label_smoothing=0.1), device=CPU)
    for batch in smooth.epoch(1):
        assert batch.soft_targets.shape == (len(batch.labels), 4)
        assert batch.num_views == 2


def test_gradients_of_accumulated_parts_are_those_of_the_batch():
    """All but self-distillation; in a network without batch norms."""
    gradients = []
    for accumulation in (1, 3):
        torch.manual_seed(0)
        options = {"width": "full", "image_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 4, "num_heads": 3}
        model = create_model("vit_tiny_patch16_224", 4, 2, **options)
        task = TrainExperts(model, SelfDistilledLoss(LDAMLoss([9, 5, 3, 1], reweight_after=0), factor=0))
        optimizer = torch.optim.SGD(task.parameters(), 1e-3)
        records = list(fit(task, two_views(8), optimizer, lambda _: 1.0, 1, LoopOptions(accumulation=accumulation)))
        gradients.append(torch.cat([parameter.detach().flatten() for parameter in task.parameters()]))
        assert 0 <= records[0]["accuracy"] <= 1
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


# ---- files ----


@pytest.fixture
def files(tmp_path):
    paths = []
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return ImageSplit(np.arange(8), paths=np.array(paths, dtype=object))


JITTER = (0.4, 0.4, 0.4, 0.0)


@pytest.mark.parametrize("crop", ["padded", "resized", "fast"])
@pytest.mark.parametrize("workers", [0, 2])
def test_views_of_files(files, crop, workers):
    name = "padded" if crop == "padded" else "resized"
    weak, strong = (
        ImageAugmentation(
            name, 2, flip=True, rotation=rotation, auto_augment=policy, cutout=cutout, color_jitter=jitter
        )
        for rotation, policy, cutout in ((0.0, "none", 0), (0.0, "imagenet", 5))
        for jitter in [JITTER if crop == "fast" else (0.0,) * 4]
    )
    transforms = [FileCrop(12, how) if crop == "fast" else train_transform(12, how, 14) for how in (weak, strong)]

    def source(workers, *other_views):
        order = EpochOrder(8, 3, shuffle=True)
        return ImageLoader(
            files, transforms[0], order, device=CPU, normalise=NORMALISE, workers=workers, other_views=other_views
        )

    weak_views, strong_views, labels = views_of(source(workers, transforms[1]).epoch(1))
    alone = list(source(0).epoch(1))
    torch.testing.assert_close(weak_views, torch.cat([batch.inputs for batch in alone]))
    assert torch.equal(labels, torch.cat([batch.labels for batch in alone]))
    assert (strong_views != weak_views).flatten(1).any(1).all()
    later = views_of(source(workers, transforms[1]).epoch(1, 1))
    assert torch.equal(later[1], strong_views[3:])


# ---- settings ----


def context(folder, name: str, **changes) -> RunContext:
    config = load_recipe(
        name, {"data.root": str(folder), "device": "cpu", "augmentation.views": "weak-strong"} | changes
    )
    return RunContext(None, config, load_data(config.data), Runtime())


@pytest.mark.parametrize("cache_gib", [2.0, 0.0], ids=["memory", "files"])
def test_other_stages_see_the_weak_view_alone(tmp_path, cache_gib):
    layouts.write_folder(tmp_path)
    changes = {
        "data.cache_gib": cache_gib,
        "data.image_size": 16,
        "data.workers": 0,
        "augmentation.auto_augment": "svhn",
    }
    changes |= {"augmentation.crop": "padded", "augmentation.color_jitter": (0.0,) * 4, "augmentation.cutout": 4}
    run = context(tmp_path, "folder-from-scratch", **changes)
    plain = RunContext(None, dataclasses.replace(run.config, augmentation=weak(run.config)), run.dataset, Runtime())
    assert next(iter(run.loaders.train(run.config.training).epoch(1))).num_views == 2
    for make in (
        lambda of: of.loaders.shuffled(4),
        lambda of: of.loaders.balanced(4),
        lambda of: of.loaders.views(of.dataset.train, 4),
    ):
        batch, expected = (next(iter(make(of).epoch(1))) for of in (run, plain))
        assert batch.num_views == 1
        assert torch.equal(batch.inputs, expected.inputs)


def weak(config) -> AugmentationConfig:
    return dataclasses.replace(config.augmentation, views="one", auto_augment="none", cutout=0)


def test_auto_augment_and_cutout_without_views():
    """Crop, flip and rotation are the same as without them."""
    changes = {"augmentation.auto_augment": "cifar10", "augmentation.cutout": 3}
    batches = []
    for config in (digits(EXPERTS_ONLY), digits(EXPERTS_ONLY | changes)):
        run = RunContext(None, config, load_data(config.data), Runtime())
        batches.append(next(iter(run.loaders.train(run.config.training).epoch(1))))
    plain, strong = (batch.inputs for batch in batches)
    assert plain.shape == strong.shape
    assert (plain != strong).flatten(1).any(1).float().mean() > 0.7
    assert (plain == strong).float().mean() > 0
    assert torch.equal(batches[0].labels, batches[1].labels)


WRONG = [
    ({"distillation.self_factor": 0.6}, "distillation.self_factor is 0.6; it must be 0 unless augmentation.views is"),
    ({"augmentation.views": "weak-strong", "augmentation.mixup": 0.4}, "augmentation.views is 'weak-strong'.*mixup"),
    ({"augmentation.views": "weak-strong", "augmentation.cutmix": 1.0}, "augmentation.views is 'weak-strong'.*cutmix"),
    (
        {"augmentation.views": "weak-strong", "augmentation.random_erasing": 0.2},
        "views is 'weak-strong'.*random_erasing",
    ),
    (
        {"augmentation.views": "weak-strong", "training.trained_parts": "experts"},
        r"training\.views is 4; it must be 0 if augmentation\.views is 'weak-strong'",
    ),
    ({"augmentation.views": "two"}, "augmentation.views is 'two'; it must be one or weak-strong"),
    (
        {"augmentation.auto_augment": "cifar100"},
        "auto_augment is 'cifar100'; it must be none, cifar10, imagenet or svhn",
    ),
    ({"augmentation.cutout": -1}, "augmentation.cutout is -1; it must be at least 0"),
    ({"distillation.self_rampup": 500}, "distillation.self_rampup is 500.*at most training.epochs"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_wrong_settings_are_refused_in_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        load_recipe("cifar100-lt-ride", changes)
    assert "\n" not in str(caught.value)


def test_published_settings_of_mdcs():
    config = load_recipe("cifar100-lt-mdcs")
    training, augmentation, loss = config.training, config.augmentation, config.loss
    assert (loss.name, loss.prior_exponents, loss.reweight_after) == ("logit_adjustment", [-0.5, 1, 2.5], None)
    assert (config.distillation.self_factor, round(400 * config.distillation.self_rampup)) == (0.6, 20)
    assert (augmentation.crop, augmentation.padding, augmentation.flip, augmentation.rotation) == (
        "padded",
        4,
        True,
        15,
    )
    assert (augmentation.views, augmentation.auto_augment, augmentation.cutout) == ("weak-strong", "cifar10", 16)
    assert (training.epochs, training.batch_size, training.learning_rate) == (400, 64, 0.1)
    assert [round(400 * epoch) for epoch in (training.warmup, *training.milestones)] == [20, 200, 320, 380]
    assert (training.decay, training.weight_decay, training.nesterov) == (0.1, 5e-4, True)
    assert (config.model.num_experts, config.model.width, config.model.head) == (3, "narrow", "cosine")


@pytest.mark.slow
def test_a_run_with_views_teacher_and_average(tmp_path):
    """Self-distillation and a teacher, weight averaging and a cosine schedule, two steps at a time."""
    changes = {"augmentation.views": "weak-strong", "augmentation.auto_augment": "cifar10", "augmentation.cutout": 3}
    changes |= {
        "distillation.self_factor": 0.6,
        "loss.name": "logit_adjustment",
        "loss.prior_exponents": [-0.5, 1, 2.5],
    }
    changes |= {"training.ema": 0.9, "training.schedule": "cosine", "training.accumulation": 2}
    teacher = longtail.train(digits(EXPERTS_ONLY), output=tmp_path / "teacher")
    plain = longtail.train(digits(EXPERTS_ONLY | changes), output=tmp_path / "plain")
    distilled = digits(EXPERTS_ONLY | changes | {"teacher": str(teacher.folder)})
    distilled = longtail.train(distilled, output=tmp_path / "distilled")
    losses = [[record["loss"] for record in run.history()] for run in (plain, distilled)]
    assert np.isfinite(losses).all()
    assert (np.array(losses[1]) > losses[0]).all()  # the distance to the teacher

"""Training of a part of the network, on cached outputs of the rest."""

import copy
import multiprocessing

import pytest
import timm
import torch
from helpers import layouts
from helpers.runs import EXPERTS_ONLY, are_equal, assert_same_runs, digits, untimed, weights

import longtail
from longtail.models.lora import add_adapters, merge_adapters, merged
from longtail.models.multi_expert import create_model
from longtail.runs.context import open_context
from longtail.runs.model_file import save_model
from longtail.runs.run import Run
from longtail.runtime.process import Signals, Stopped
from longtail.training.experts import ExpertStage
from longtail.training.frozen_part import frozen_part
from longtail.training.loop import fit
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

VIT = {"model.backbone": "test_vit", "model.width": "full", "model.expert_stages": 2, "data.image_size": 32}
PARTS = {"experts": {}, "heads": {}, "lora": VIT | {"training.lora_rank": 2}}
BY_NAME = ["heads", *(pytest.param(name, marks=pytest.mark.slow) for name in ("experts", "lora"))]


def settings(trained, **changes):
    return EXPERTS_ONLY | PARTS[trained] | {"training.trained_parts": trained, "training.views": 3} | changes


def stage(config, folder):
    """The first stage of a new run."""
    run = Run(folder)
    folder.mkdir()
    context = open_context(run, config)
    run.start(config, {})
    return ExpertStage(context)


def frozen_part_of(experts):
    return frozen_part(experts.model, experts.context.config.training.trained_parts, experts.metadata.image_size)


def is_trained(name, trained):
    return name.startswith("heads.") or (name.startswith("branches.") and trained in ("experts", "lora"))


MOBILEVIT = {"model.backbone": "mobilevit_xxs", "data.image_size": 64, "training.epochs": 1}
"""Transformer blocks, and batch norms beside them"""


@pytest.mark.parametrize(
    ("trained", "changes"),
    [*((trained, {}) for trained in PARTS), pytest.param("lora", MOBILEVIT, id="batch norms", marks=pytest.mark.slow)],
)
def test_the_frozen_part_does_not_change(trained, changes, tmp_path):
    config = digits(settings(trained, **changes))
    first = {name: value.clone() for name, value in merged(stage(config, tmp_path / "a").model).state_dict().items()}
    run = longtail.train(config, tmp_path / "b")
    last = weights(run)
    assert last.keys() == first.keys()
    changed = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert changed
    assert all(is_trained(name, trained) for name in changed)
    # Batch norms of the branches learn only where all of the branches does.
    assert (trained == "experts") == any("running_mean" in name for name in changed)
    assert not run.views_folder.exists()
    longtail.evaluate(run)


def outputs_one_by_one(model, trained, image):
    """The output of the frozen part for an image (3, H, W), with the model's own layers."""
    with torch.no_grad():
        shared = model.trunk(image[None])
        if trained != "heads":
            return shared[0]
        return torch.stack([model.neck(branch(shared))[0] for branch in model.branches])


@pytest.mark.parametrize("trained", PARTS)
def test_cached_outputs_are_those_of_the_views(trained, tmp_path):
    config = digits(settings(trained, **{"augmentation.flip": True, "training.views": 5}))
    experts = stage(config, tmp_path / "run")
    context, model = experts.context, experts.model.eval()
    loader = context.loaders.views(context.dataset.train, config.training.batch_size, flip=False)
    images = [torch.cat([batch.inputs for batch in loader.epoch(epoch)]) for epoch in (1, 2, 3)]
    views = [images[0], images[0].flip(-1), images[1], images[1].flip(-1), images[2]]
    cached = experts._views(frozen_part_of(experts), None)
    order = context.loaders.train_order(context.config.training)
    for epoch in (1, 2, 7):
        positions = order.draw(epoch).positions.tolist()
        batches = list(cached.epoch(epoch))
        assert (
            torch.cat([batch.labels for batch in batches]).tolist() == context.dataset.train.labels[positions].tolist()
        )
        rows = torch.cat([batch.inputs for batch in batches])
        for place in range(0, len(positions), 37):
            position = positions[place]
            expected = outputs_one_by_one(model, trained, views[(position + epoch) % 5][position])
            torch.testing.assert_close(rows[place], expected, rtol=2e-3, atol=2e-3)  # kept as float16
    skipped = [batch.inputs for batch in cached.epoch(2, first=3)]
    assert all(map(torch.equal, skipped, [batch.inputs for batch in cached.epoch(2)][3:]))


def test_the_workers_that_decode_the_views_end(tmp_path):
    """Their memory is free while the rest is trained."""
    photos = layouts.write_folder(tmp_path / "photos", counts=(14, 9, 7))
    changes = {"data.name": "folder", "data.root": str(photos), "data.image_size": 32, "data.imbalance": "none"}
    changes |= {"data.workers": 1, "augmentation.crop": "resized", "training.batch_size": 8}
    experts = stage(digits(settings("heads", **changes)), tmp_path / "run")
    views, others = experts._views(frozen_part_of(experts), None), set(multiprocessing.active_children())
    views.prepare()
    assert set(multiprocessing.active_children()) <= others
    assert len(list(views.epoch(1))) == len(views)


def test_training_on_cached_outputs_equals_training_on_the_images(tmp_path, monkeypatch):
    """With a single view that is not augmented, and outputs that are not rounded, caching changes nothing."""
    plain = {"augmentation.crop": "none", "augmentation.rotation": 0, "augmentation.flip": False}
    monkeypatch.setattr("longtail.training.frozen_views.STORED", torch.float32)
    cached = longtail.train(digits(settings("experts", **plain, **{"training.views": 1})), tmp_path / "cached")
    direct = longtail.train(digits(settings("experts", **plain, **{"training.views": 0})), tmp_path / "direct")
    assert untimed(cached.history()) == untimed(direct.history())
    assert are_equal(weights(cached), weights(direct))


@pytest.mark.slow
def test_a_teacher_sees_the_images_of_each_view(experts_run, tmp_path, monkeypatch):
    plain = {"augmentation.crop": "none", "augmentation.rotation": 0, "augmentation.flip": False}
    monkeypatch.setattr("longtail.training.frozen_views.STORED", torch.float32)
    with_teacher = plain | {"teacher": str(experts_run.folder)}
    runs = [
        longtail.train(digits(settings("heads", **with_teacher, **{"training.views": views})), tmp_path / str(views))
        for views in (0, 2)
    ]
    assert are_equal(*map(weights, runs))


class StoppedAfter(Signals):
    """Asks to stop at the given look."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    @property
    def asked_to_stop(self):
        self.looks -= 1
        return self.looks < 0

    @asked_to_stop.setter
    def asked_to_stop(self, value):
        pass


def test_a_stopped_computation_of_views_goes_on(tmp_path):
    config = digits(settings("experts"))
    whole = stage(config, tmp_path / "whole")
    expected = whole._views(frozen_part_of(whole), None)
    expected.prepare()
    part = stage(config, tmp_path / "part")
    computed = []

    def views(signals):
        made = part._views(frozen_part_of(part), None)
        compute = made._compute
        made._compute = lambda images: computed.append(len(images)) or compute(images)
        made._signals = signals
        return made

    for looks in (2, 3):
        with pytest.raises(Stopped):
            views(StoppedAfter(looks)).prepare()
    last = views(Signals())
    last.prepare()
    assert sum(computed) == 3 * len(part.context.dataset.train)  # nothing twice
    for first, second in zip(expected._arrays, last._arrays, strict=True):
        assert (first == second).all()


def train_until(last, config, folder, monkeypatch):
    """Trains a run that is interrupted after an epoch."""

    def interrupted(*arguments):
        for record in fit(*arguments):
            yield record
            if record["epoch"] == last:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("longtail.training.experts.fit", interrupted)
        with pytest.raises(Stopped):
            longtail.train(config, folder)


@pytest.mark.parametrize("last", [2, 3])
@pytest.mark.parametrize("trained", BY_NAME)
def test_an_interrupted_run_resumes_exactly(trained, last, tmp_path, monkeypatch):
    config = digits(settings(trained, **{"training.epochs": 3, "training.checkpoint_every": 0}))
    longtail.train(config, tmp_path / "whole")
    train_until(last, config, tmp_path / "part", monkeypatch)
    assert Run(tmp_path / "part").views_folder.exists()
    longtail.resume(tmp_path / "part")
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def save_with_noise(experts, path):
    """Writes the model of a stage, changed, as pretrained weights."""
    for parameter in experts.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_model(path, experts.model, experts.metadata)


@pytest.mark.parametrize(
    ("trained", "views"),
    [
        ("heads", 0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("experts", 0), ("experts", 3), ("lora", 3))),
    ],
)
def test_a_run_resumes_with_its_own_frozen_part(trained, views, tmp_path, monkeypatch):
    """The pretrained weights have changed meanwhile, such as the branch of a repository that others push to."""
    pretrained = tmp_path / "pretrained.safetensors"
    model = stage(digits(settings(trained)), tmp_path / "model")
    merge_adapters(model.model)
    save_with_noise(model, pretrained)
    changes = {"training.epochs": 3, "training.views": views, "model.pretrained": str(pretrained)}
    changes |= {"data.val_spare": 5, "training.validate_every": 1, "training.checkpoint_every": 0}
    config = digits(settings(trained, **changes))
    longtail.train(config, tmp_path / "whole")
    train_until(2, config, tmp_path / "part", monkeypatch)
    save_with_noise(model, pretrained)
    longtail.resume(tmp_path / "part")
    assert_same_runs(tmp_path / "whole", tmp_path / "part")


def test_views_by_another_frozen_part_are_not_used(tmp_path):
    """The pretrained weights have changed before the first checkpoint."""
    experts = stage(digits(settings("experts")), tmp_path / "run")
    experts._views(frozen_part_of(experts), None).prepare()
    for parameter in experts.model.trunk.parameters():
        parameter.data *= 1.1
    frozen = frozen_part_of(experts)
    inputs, _ = next(experts._views(frozen, None).first_view())
    images = next(experts.context.loaders.views(experts.context.dataset.train, 8, flip=False).epoch(1)).inputs
    torch.testing.assert_close(inputs[:8], frozen.start(images), rtol=2e-3, atol=2e-3)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(InputError, match=r"training.views is 3, for which .*frozen-views would take .* No space left"):
        longtail.train(digits(settings("experts")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- adapters ----


def vit():
    torch.manual_seed(0)
    return create_model("test_vit", 5, 2, width="full", expert_stages=2, image_size=32).eval()


def test_adapters_change_nothing_at_first_and_merge_without_change():
    model, images = vit(), torch.randn(4, 3, 32, 32)
    names, before = model.state_dict().keys(), model(images).logits
    add_adapters(model, rank=3)
    torch.testing.assert_close(model(images).logits, before)
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = model(images).logits
    assert (adapted - before).abs().max() > 1e-3
    copied = merged(model)
    merge_adapters(model)
    for same in (copied, model):
        assert same.state_dict().keys() == names
        torch.testing.assert_close(same(images).logits, adapted)


def test_an_adapter_is_a_matrix_of_low_rank():
    model = vit()
    layer = model.branches[1].blocks[0].attn.qkv
    weight = layer.weight.detach().clone()
    add_adapters(model, rank=3)
    update = model.branches[1].blocks[0].attn.qkv
    torch.nn.init.normal_(update.up)
    expected = weight.double() + 16 / 3 * update.up.detach().double() @ update.down.detach().double()
    torch.testing.assert_close(update.weight.double(), expected)
    assert torch.linalg.matrix_rank(update.weight - weight) == 3
    trained = {name for name, parameter in model.branches.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.endswith((".up", ".down")) for name in trained)


def test_adapters_need_transformer_blocks(tmp_path):
    with pytest.raises(InputError, match=r"trained_parts is 'lora', which needs a backbone with transformer blocks"):
        longtail.train(digits(EXPERTS_ONLY | {"training.trained_parts": "lora"}), tmp_path / "run")


def test_models_without_adapters_are_not_copied():
    model = vit()
    assert merged(model) is model
    before = copy.deepcopy(model.state_dict())
    merge_adapters(model)
    assert are_equal(model.state_dict(), before)


# ---- heads that start from class means ----


@pytest.mark.parametrize("trained", ["all", "heads"])
def test_heads_start_from_class_means(trained, tmp_path):
    changes = {"model.head_start": "class-means", "model.head": "cosine", "augmentation.crop": "none"}
    config = digits(EXPERTS_ONLY | changes | {"training.trained_parts": trained, "augmentation.rotation": 0})
    experts = stage(config, tmp_path / "run")
    frozen = frozen_part_of(experts)
    experts._start_from_class_means(frozen, frozen and experts._views(frozen, None))
    model, train = experts.model, experts.context.dataset.train
    batches = list(experts.context.eval_loader(train).epoch(0))
    with torch.no_grad():
        features = torch.cat([model(batch.inputs).features for batch in batches])
    starts = []
    for number, head in enumerate(model.heads):
        expected = []
        for label in range(model.num_classes):
            own = features[torch.from_numpy(train.labels) == label, number]
            mean = sum(feature / feature.norm() for feature in own) / len(own)
            expected.append(mean / mean.norm())
        starts.append((head.weight.detach() * torch.stack(expected)).sum(dim=1))  # cosines
    assert starts[0].min() > 1 - 1e-4
    for cosines in starts[1:]:  # other means, but near these
        assert 0.9 < cosines.min() < 1 - 1e-4


@pytest.mark.slow
def test_experts_with_the_same_pretrained_weights_differ(tmp_path):
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), tmp_path / "weights.pth")
    changes = {"model.backbone": "resnet10t", "model.width": "full", "model.pretrained": str(tmp_path / "weights.pth")}
    changes |= {"model.head_start": "class-means", "data.image_size": 32}
    run = longtail.train(digits(settings("experts", **changes)), tmp_path / "run")
    heads = [value for name, value in weights(run).items() if name.startswith("heads.")]
    assert len(heads) == 3
    assert not torch.allclose(heads[0], heads[1], atol=1e-3)
    assert not torch.allclose(heads[1], heads[2], atol=1e-3)


def test_class_means_need_cosine_heads():
    with pytest.raises(InputError, match=r"model.head_start is 'class-means'; it must be 'random' if model.head"):
        digits({"model.head_start": "class-means", "model.head": "linear"})


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation.cutmix": 1},
        {"augmentation.mixup": 1, "teacher": "digits-lt-ce"},
        {"distillation.published": True, "teacher": "digits-lt-ce"},
    ],
)
def test_changes_of_images_that_cached_outputs_do_not_allow(changes):
    with pytest.raises(InputError, match=r"training.views is 4; it must be 0 for cutmix, random_erasing, and mixup"):
        digits({"training.trained_parts": "heads"} | changes)


def test_mixup_mixes_cached_outputs(tmp_path):
    config = digits(settings("heads", **{"augmentation.mixup": 0.5}))
    experts = stage(config, tmp_path / "run")
    views = experts._views(frozen_part_of(experts), None)
    loaders = views, experts.context.loaders.with_soft_targets(views, 0.0)
    plain, mixed = (next(iter(loader.epoch(1))) for loader in loaders)
    share = mixed.soft_targets.gather(1, mixed.labels[:, None]).reshape(-1, 1, 1)
    different = (mixed.labels != mixed.labels.flip(0)).nonzero().flatten()  # the others' targets do not tell the share
    expected = share * plain.inputs + (1 - share) * plain.inputs.flip(0)
    assert 0 < share[different].min() < 1
    torch.testing.assert_close(mixed.inputs[different], expected[different])


def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    config = digits(settings("experts", **{"training.freeze_batch_norms": True}))
    first = {name: value.clone() for name, value in stage(config, tmp_path / "a").model.state_dict().items()}
    last = weights(longtail.train(config, tmp_path / "b"))
    changed = {name for name, value in last.items() if not torch.equal(value, first[name])}
    assert not any("running" in name or "num_batches" in name for name in changed)
    assert any(".bn" in name and name.endswith(".weight") for name in changed)

"""How training is computed: precision, compilation, fused steps, and no wait for the device."""

import functools

import pytest
import torch
from helpers.loaders import CPU, loader, small_split
from torch.utils._python_dispatch import TorchDispatchMode

import longtail
from longtail.losses import RIDELoss
from longtail.models.compiled import compiled
from longtail.models.multi_expert import create_model
from longtail.runtime.device import Runtime, pick_device
from longtail.training import experts, frozen, optim
from longtail.training.loop import CHECK_EVERY, fit
from longtail.training.tasks import TrainExperts

HALVES = ["bf16", "fp16"]


def task(**options):
    torch.manual_seed(0)
    return TrainExperts(create_model("resnet20", 4, 2, **options), RIDELoss([9, 5, 3, 1], reweight_after=1))


def optimizer(of, **changes):
    return optim.optimizer(longtail.load_recipe("cifar100-lt-ride", changes), of)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_heads_and_losses_stay_float32(precision, head):
    """Convolutions compute in half precision, the heads and the loss do not, and gradients are float32."""
    seen = {}

    class Watching(RIDELoss):
        def forward(self, expert_logits, *others):
            seen["logits"] = expert_logits.dtype
            seen["autocast"] = torch.is_autocast_enabled("cpu")
            return super().forward(expert_logits, *others)

    ours = task(head=head)
    ours.criterion = Watching([9, 5, 3, 1])
    ours.model.trunk.register_forward_hook(lambda module, inputs, output: seen.update(trunk=output.dtype))
    ours.model.heads[0].register_forward_hook(
        lambda module, inputs, output: seen.update(head=output.dtype, features=inputs[0].dtype)
    )
    gradients = set()

    def after_step(*_):
        gradients.update(parameter.grad.dtype for parameter in ours.parameters())

    runtime = Runtime(CPU, precision)
    list(fit(ours, loader(small_split(), 8), optimizer(ours), lambda epoch: 1e-3, 1, after_step, runtime=runtime))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen == {
        "trunk": half, "features": torch.float32, "head": torch.float32, "logits": torch.float32, "autocast": False
    }  # fmt: skip
    assert gradients == {torch.float32}
    assert all(parameter.grad is None for parameter in ours.parameters())  # what follows may need the memory


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_is_near(precision):
    """The first step's gradient differs by rounding, not by more; fp16's is not scaled when it is used."""
    found = {}
    for kind in ("float32", precision):
        ours = task()
        ours.criterion = RIDELoss([9, 5, 3, 1])  # the same in all epochs
        steps = optimizer(ours, **{"training.momentum": 0, "training.nesterov": False, "training.weight_decay": 0})
        before = torch.cat([parameter.detach().flatten().clone() for parameter in ours.parameters()])
        # fp16 begins with scales that are too large, and skips such steps.
        for _ in fit(ours, loader(small_split(), 20), steps, lambda epoch: 1e-4, 9, runtime=Runtime(CPU, kind)):
            after = torch.cat([parameter.detach().flatten() for parameter in ours.parameters()])
            if not torch.equal(before, after):
                break
        found[kind] = after - before
    near, exact = found[precision], found["float32"]
    assert near.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)
    assert torch.cosine_similarity(near, exact, dim=0) > 0.95


def test_a_run_in_half_precision(tmp_path):
    config = longtail.load_recipe(
        "digits-lt-ce",
        {"training.epochs": 12, "training.precision": "bf16", "device": "cpu", "training.clip_gradient": 5},
    )
    run = longtail.train(config, tmp_path / "run")
    assert longtail.evaluate(run, device="cpu").accuracy > 0.6
    assert {value.dtype for value in run.load_model()[0].state_dict().values()} == {torch.float32, torch.int64}


class Waits(TorchDispatchMode):
    """Counts what would make a program wait for a GPU: numbers asked for, and sizes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(word) for word in self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_no_operation_of_a_step_waits(precision):
    """Between two looks at the loss not one operation would wait for a GPU, whatever the precision."""
    ours, waits, seen = task(), Waits(), []
    images = loader(small_split(num=2 * CHECK_EVERY), 2, shuffle=True, padding=1, flip=True, rotation=5.0)

    def on_step(done, rate, loss):
        if done == 1:
            waits.found.clear()  # the optimiser's first
        if done == CHECK_EVERY - 1:
            seen.extend(["reached", *waits.found])

    options = {"clip_gradient": 1.0, "accumulation": 1, "runtime": Runtime(CPU, precision)}
    with waits:
        list(fit(ours, images, optimizer(ours), lambda epoch: 1e-4, 2, on_step, **options))
    assert seen == ["reached", "reached"]
    assert waits.found  # at the looks there were some, so they are pluralize


def test_compiled_is_the_same(monkeypatch):
    """The compiled twin trains the model's own weights, to the same values; traced, but not made into machine code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for make in (lambda model: model, compiled):
        ours = task()
        model = ours.model
        ours.model = make(model)
        records = list(fit(ours, loader(small_split(), 8), optimizer(ours), lambda epoch: 1e-3, 2))
        found.append((records, model.state_dict()))
    (plain, weights), (traced, theirs) = found
    assert [record["loss"] for record in traced] == pytest.approx([record["loss"] for record in plain], rel=1e-5)
    assert weights.keys() == theirs.keys()
    for name, value in weights.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    with pytest.raises(longtail.InputError, match=r"training\.compile is True; it must be false where training"):
        longtail.load_recipe("digits-lt-ride", {"training.compile": True, "training.checkpoint_activations": True})


def test_a_compiled_run_is_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    settings = {"training.epochs": 2, "router.epochs": 1, "training.compile": True, "device": "cpu"}
    run = longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    assert run.is_finished
    longtail.load_model(run.folder).route(torch.zeros(2, 3, 8, 8))
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_to_machine_code(tmp_path):
    found = []
    for make in (lambda model: model, compiled):
        ours = task()
        ours.model = make(ours.model)
        found.append(list(fit(ours, loader(small_split(), 8), optimizer(ours), lambda epoch: 1e-3, 2)))
    assert found[1][1]["loss"] == pytest.approx(found[0][1]["loss"], rel=1e-4)


def test_steps_are_fused_and_like_any_others():
    for changes in ({}, {"training.optimizer": "adamw", "training.nesterov": False}):
        weights = []
        for fused in (True, False):
            ours = task()
            steps = optimizer(ours, **changes)
            assert all(group["fused"] for group in steps.param_groups)
            for group in steps.param_groups:
                group["fused"] = fused
            list(fit(ours, loader(small_split(), 8), steps, lambda epoch: 1e-3, 2))
            weights.append(torch.cat([parameter.detach().flatten() for parameter in ours.parameters()]))
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_the_settings_reach_the_loop(tmp_path, monkeypatch):
    seen = {}

    def watched(*arguments, **options):
        seen.setdefault("runtimes", []).append(options["runtime"].precision)
        return fit(*arguments, **options)

    for stage in (experts, frozen):
        monkeypatch.setattr(stage, "fit", watched)
    settings = {"training.epochs": 1, "router.epochs": 1, "training.precision": "bf16", "device": "cpu"}
    longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    assert seen["runtimes"] == ["bf16", "float32"]  # a router is small


def test_devices():
    assert pick_device("cpu") == CPU
    with pytest.raises(longtail.InputError, match="device is 'nothing', which is not here"):
        pick_device("nothing")


def of_torch(setting: str):
    return functools.reduce(getattr, setting.split("."), torch.backends)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("given", [None, "cuda.matmul", "cudnn.conv", "mkldnn.matmul"])
def test_precision_of_products_is_the_callers_again(given, allowed):
    """Also where it was set by torch's newer settings, beside which reading the older ones is an error."""
    settings = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul"]
    original = {name: of_torch(name).fp32_precision for name in settings}
    try:
        if given:
            of_torch(given).fp32_precision = "tf32" if original[given] != "tf32" else "ieee"
        before = {name: of_torch(name).fp32_precision for name in settings}
        with Runtime(torch.device("cuda")).tf32(allowed):
            precisions = {of_torch(name).fp32_precision for name in settings[:3]}
            assert precisions == {"tf32"} if allowed else precisions <= {"ieee", "none"}
        assert {name: of_torch(name).fp32_precision for name in settings} == before
    finally:
        for name, value in original.items():
            of_torch(name).fp32_precision = value
    assert torch.get_float32_matmul_precision() == "highest"

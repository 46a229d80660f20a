"""The device and its precision: half precision, compilation, fused optimiser steps, and no wait for a GPU."""

import functools

import pytest
import torch
from helpers.loaders import CPU, loader, small_split
from helpers.runs import digits
from torch.utils._python_dispatch import TorchDispatchMode

import longtail
from longtail.config.recipes import load_recipe
from longtail.losses import RIDELoss
from longtail.models.multi_expert import compile_model, create_model
from longtail.runtime.device import Runtime, pick_device, warn_slow_precision
from longtail.training import experts, frozen_stage, loop, optim
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import TrainExperts

HALVES = ["bf16", "fp16"]
STEPS = 10


def task(**options):
    torch.manual_seed(0)
    return TrainExperts(create_model("resnet20", 4, 2, **options), RIDELoss([9, 5, 3, 1], reweight_after=1))


def optimizer(task, **changes):
    settings = {f"training.{name}": value for name, value in changes.items()}
    return optim.optimizer(load_recipe("cifar100-lt-ride", settings).training, task)


# ---- precision ----


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_heads_and_losses_stay_float32(precision, head):
    """Convolutions are computed in half precision, heads and loss are not, and gradients are float32."""
    types = {}

    class Watching(RIDELoss):
        def forward(self, expert_logits, *others):
            types["logits"] = expert_logits.dtype
            types["autocast"] = torch.is_autocast_enabled("cpu")
            return super().forward(expert_logits, *others)

    half_task = task(head=head)
    half_task.criterion = Watching([9, 5, 3, 1])
    half_task.model.trunk.register_forward_hook(lambda module, inputs, output: types.update(trunk=output.dtype))
    half_task.model.heads[0].register_forward_hook(
        lambda module, inputs, output: types.update(head=output.dtype, features=inputs[0].dtype)
    )
    gradients = set()

    def on_step(*_):
        gradients.update(parameter.grad.dtype for parameter in half_task.parameters())

    options = LoopOptions(runtime=Runtime(CPU, precision), on_step=on_step)
    list(fit(half_task, loader(small_split(), 8), optimizer(half_task), lambda epoch: 1e-3, 1, options))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert types == {
        "trunk": half, "features": torch.float32, "head": torch.float32, "logits": torch.float32, "autocast": False
    }  # fmt: skip
    assert gradients == {torch.float32}
    assert all(parameter.grad is None for parameter in half_task.parameters())  # later stages may need the memory


@pytest.mark.parametrize("precision", HALVES)
def test_a_step_in_half_precision_is_close_to_a_float32_step(precision):
    """Gradients differ by rounding only; those of fp16 are not scaled when they are used."""
    steps = {}
    for kind in ("float32", precision):
        trained = task()
        trained.criterion = RIDELoss([9, 5, 3, 1])  # the same loss in all epochs
        plain = optimizer(trained, momentum=0, nesterov=False, weight_decay=0)
        before = torch.cat([parameter.detach().flatten().clone() for parameter in trained.parameters()])
        options = LoopOptions(runtime=Runtime(CPU, kind))
        # With fp16 the first scales are too large, and these steps are skipped.
        for _ in fit(trained, loader(small_split(), 20), plain, lambda epoch: 1e-4, 9, options):
            after = torch.cat([parameter.detach().flatten() for parameter in trained.parameters()])
            if not torch.equal(before, after):
                break
        steps[kind] = after - before
    half, exact = steps[precision], steps["float32"]
    assert half.norm().item() == pytest.approx(exact.norm().item(), rel=0.05)
    assert torch.cosine_similarity(half, exact, dim=0) > 0.95


@pytest.mark.slow
def test_a_run_in_half_precision(tmp_path, no_plots):
    changes = {"training.epochs": 12, "training.precision": "bf16", "training.clip_gradient": 5}
    run = longtail.train(digits(changes, "digits-lt-ce"), tmp_path / "run")
    assert longtail.evaluate(run).accuracy > 0.6
    assert {value.dtype for value in run.load_model()[0].state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.slow
def test_the_precision_of_the_settings_reaches_the_loop(tmp_path, no_plots, monkeypatch):
    precisions = []

    def recording_fit(task, loader, optimizer, learning_rate, epochs, options):
        precisions.append(options.runtime.precision)
        return fit(task, loader, optimizer, learning_rate, epochs, options)

    for stage in (experts, frozen_stage):
        monkeypatch.setattr(stage, "fit", recording_fit)
    longtail.train(digits({"training.epochs": 1, "training.precision": "bf16"}), tmp_path / "run")
    assert precisions == ["bf16", "float32"]  # the router is small


# ---- no wait for the device ----


class Waits(TorchDispatchMode):
    """Records operations that would wait for a GPU: reads of numbers, and sizes that depend on values."""

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
def test_no_operation_of_a_step_waits(precision, monkeypatch):
    monkeypatch.setattr(loop, "CHECK_EVERY", STEPS)
    trained, waits, waits_of_epochs = task(), Waits(), []
    images = loader(small_split(num=2 * STEPS), 2, shuffle=True, padding=1, flip=True, rotation=5.0)

    def on_step(done, rate, loss):
        if done == 1:
            waits.found.clear()  # the first step of the optimiser
        if done == STEPS - 1:
            waits_of_epochs.append(list(waits.found))

    options = LoopOptions(clip_gradient=1.0, runtime=Runtime(CPU, precision), on_step=on_step)
    with waits:
        list(fit(trained, images, optimizer(trained), lambda epoch: 1e-4, 2, options))
    assert waits_of_epochs == [[], []]
    assert waits.found  # reading the loss at the end of an epoch waits, so waits are recorded


# ---- compiled and fused ----


@pytest.mark.slow
def test_a_compiled_model_trains_the_same_weights(monkeypatch):
    """Traced, but not compiled to machine code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    results = []
    for make in (lambda model: model, compile_model):
        trained = task()
        model = trained.model
        trained.model = make(model)
        records = list(fit(trained, loader(small_split(), 8), optimizer(trained), lambda epoch: 1e-3, 2))
        results.append((records, model.state_dict()))
    (plain_records, plain), (traced_records, traced) = results
    assert [record["loss"] for record in traced_records] == pytest.approx(
        [record["loss"] for record in plain_records], rel=1e-5
    )
    assert traced.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(traced[name], value, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_compilation_excludes_activation_checkpointing():
    with pytest.raises(longtail.InputError, match=r"training\.compile"):
        digits({"training.compile": True, "training.checkpoint_activations": True})


@pytest.mark.slow
def test_a_compiled_run_can_be_routed(tmp_path, no_plots, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run = longtail.train(digits({"training.compile": True}), tmp_path / "run")
    assert run.is_finished
    longtail.load_model(run.folder).route(torch.zeros(2, 3, 8, 8))
    torch._dynamo.reset()


@pytest.mark.slow
def test_compilation_to_machine_code():
    records = []
    for make in (lambda model: model, compile_model):
        trained = task()
        trained.model = make(trained.model)
        records.append(list(fit(trained, loader(small_split(), 8), optimizer(trained), lambda epoch: 1e-3, 2)))
    assert records[1][1]["loss"] == pytest.approx(records[0][1]["loss"], rel=1e-4)


def test_fused_steps_equal_plain_steps():
    for changes in ({}, {"optimizer": "adamw", "nesterov": False}):
        weights = []
        for fused in (True, False):
            trained = task()
            steps = optimizer(trained, **changes)
            assert all(group["fused"] for group in steps.param_groups)
            for group in steps.param_groups:
                group["fused"] = fused
            list(fit(trained, loader(small_split(), 8), steps, lambda epoch: 1e-3, 2))
            weights.append(torch.cat([parameter.detach().flatten() for parameter in trained.parameters()]))
        torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


# ---- the device ----


def test_devices():
    assert pick_device("cpu") == CPU
    with pytest.raises(longtail.InputError, match="device is 'nothing'"):
        pick_device("nothing")


def backend_setting(name: str):
    return functools.reduce(getattr, name.split("."), torch.backends)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("changed", [None, "cuda.matmul", "cudnn.conv", "mkldnn.matmul"])
def test_tf32_settings_are_restored(changed, allowed):
    """Also if the caller uses torch's newer settings, beside which reading the older ones is an error."""
    names = ["cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul"]
    original = {name: backend_setting(name).fp32_precision for name in names}
    try:
        if changed:
            backend_setting(changed).fp32_precision = "tf32" if original[changed] != "tf32" else "ieee"
        before = {name: backend_setting(name).fp32_precision for name in names}
        with Runtime(torch.device("cuda")).tf32(allowed):
            precisions = {backend_setting(name).fp32_precision for name in names[:3]}
            assert precisions == {"tf32"} if allowed else precisions <= {"ieee", "none"}
        assert {name: backend_setting(name).fp32_precision for name in names} == before
    finally:
        for name, value in original.items():
            backend_setting(name).fp32_precision = value
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("flags", "precision", "warns"),
    [
        ("sse2 avx2", "bf16", True),
        ("sse2 avx2", "fp16", True),
        ("sse2 avx2", "float32", False),
        ("avx2 avx512_bf16", "bf16", False),
        ("", "bf16", False),  # the system does not say
    ],
)
def test_precisions_without_instructions_are_slow(monkeypatch, caplog, flags, precision, warns):
    monkeypatch.setattr("longtail.runtime.device.processor_info", lambda *names: flags)
    warn_slow_precision(torch.device("cpu"), precision)
    assert (f"no instructions for {precision}" in caplog.text) == warns

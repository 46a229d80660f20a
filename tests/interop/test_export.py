"""`longtail export`: what is written, and what is refused and leaves nothing."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.exported import CLASSES, metadata, pixels, small_model
from helpers.runs import SOURCE, python
from PIL import Image

import longtail
from longtail.cli import main
from longtail.interop.export import REGISTRY, Exported, Format
from longtail.interop.export_model import export_model
from longtail.runs.context import open_context
from longtail.utils.errors import InputError

FAKE = "fake"


def of_pytorch(model, images, threshold, facts=None):
    """What PyTorch computes, as an exported model would return it."""
    facts = facts or metadata()
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (facts.mean, facts.std))
    inputs = (torch.from_numpy(images).float() / 255 - mean) / std
    with torch.no_grad():
        if model.router is None:
            logits, used = model.predict_logits(inputs), torch.full((len(inputs),), model.num_experts)
        else:
            logits, used = model.route(inputs, threshold)
    probabilities = (logits / model.temperature).softmax(dim=1)
    return SimpleNamespace(logits=logits.numpy(), probabilities=probabilities.numpy(), experts_used=used.numpy())


@pytest.fixture
def fake(monkeypatch):
    """A format of PyTorch itself, which costs no time; ``change`` spoils its outputs."""
    state = SimpleNamespace(change=lambda outputs: None, content=b"content")

    def build(what):
        def run(images, threshold):
            outputs = of_pytorch(what.model, images, threshold, what.metadata)
            state.change(outputs)
            return outputs

        return Exported(state.content, run)

    REGISTRY.names()
    monkeypatch.setitem(REGISTRY.added, FAKE, Format(build, ".fake", has_int8=False))
    monkeypatch.setitem(REGISTRY.added, "fake-folder", Format(build, "", has_int8=False))
    return state


def export(path, format=FAKE, **options):
    return export_model(small_model(temperature=1.5), metadata(), path, format, **options)


# ---- the comparison with PyTorch ----


def spoil(name, change):
    def spoiled(outputs):
        setattr(outputs, name, change(getattr(outputs, name)))

    return spoiled


SPOILED = {
    "one logit": spoil("logits", lambda values: values + np.eye(1, 6, dtype=np.float32) * 0.1),
    "nan": spoil("logits", lambda values: values * np.float32(np.nan)),
    "another order": spoil("logits", lambda values: values[:, ::-1]),
    "temperature": spoil("probabilities", lambda values: values**0.9),
    "number of experts": spoil("experts_used", lambda values: np.minimum(values, 2)),
    "shape": spoil("logits", lambda values: values[:, :-1]),
    "large batches": lambda outputs: len(outputs.logits) < 60 or outputs.logits.fill(0),
    "all experts": lambda outputs: set(outputs.experts_used.tolist()) != {3} or outputs.logits.fill(0),
}


def test_equal_outputs_are_written(fake, tmp_path):
    _, comparison = export(tmp_path / "model.fake")
    assert (tmp_path / "model.fake").read_bytes() == b"content"
    assert comparison.images == 64
    assert comparison.difference < 1e-5


@pytest.mark.parametrize("change", SPOILED)
def test_other_outputs_are_not_written(fake, tmp_path, change):
    fake.change = SPOILED[change]
    (tmp_path / "model.fake").write_bytes(b"earlier")
    with pytest.raises(InputError, match="PyTorch"):
        export(tmp_path / "model.fake", pixels=pixels(64))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("model.fake", b"earlier")]


def test_close_decisions_may_differ(fake, tmp_path):
    """An image whose probability is that of the threshold, but for rounding, may stop or continue."""
    model, images = small_model(2), pixels(1)
    low, high = 0.0, 1.0
    for _ in range(40):  # the probability of the image, by bisection
        model.router.threshold = (low + high) / 2
        if of_pytorch(model, images, None).experts_used[0] == 2:
            low = model.router.threshold
        else:
            high = model.router.threshold

    batches = iter(["the first"])

    def flip(outputs):
        if next(batches, None):
            other = of_pytorch(model, images, -1.0 if outputs.experts_used[0] == 1 else 2.0)
            vars(outputs).update(vars(other))

    fake.change = flip
    export_model(model, metadata(2), tmp_path / "model.fake", FAKE, pixels=images)
    batches = iter(["the first"])
    model.router.threshold = 0.99 * low
    with pytest.raises(InputError, match=r"1 instead of 2 experts"):
        export_model(model, metadata(2), tmp_path / "model.fake", FAKE, pixels=images)


# ---- where it is written to ----


def test_an_earlier_file_is_replaced_and_a_folder_is_not(fake, tmp_path):
    export(tmp_path / "model.fake")
    fake.content = b"second"
    export(tmp_path / "model.fake")
    assert (tmp_path / "model.fake").read_bytes() == b"second"
    fake.content = {"a": b"first", "b": b"second"}
    export(tmp_path / "parts", "fake-folder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()} == fake.content
    for path in (tmp_path / "parts", tmp_path / "model.fake"):
        with pytest.raises(InputError, match="output"):
            export(path, "fake-folder")
    assert {path.name for path in tmp_path.iterdir()} == {"model.fake", "parts"}


@pytest.mark.parametrize(
    ("name", "format", "reason"),
    [
        ("model.onnx", "onxx", "format is 'onxx'.*did you mean 'onnx'"),
        ("model.safetensors", "onnx", r"must end in \.onnx"),
        ("model.pt2", "onnx", r"must end in \.onnx.*--format torch"),
        ("model.onnx", "torch", r"must end in \.pt2.*--format onnx"),
        ("model.onnx", "onnx-parts", "is a folder"),
        ("absent/model.onnx", "onnx", "'.*absent' is not a folder"),
        ("folder.onnx", "onnx", "exists; name a file"),
    ],
)
def test_wrong_targets(tmp_path, name, format, reason):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=reason):
        export(tmp_path / name, format)
    assert {path.name for path in tmp_path.iterdir()} == {"folder.onnx"}


@pytest.mark.parametrize("format", [FAKE, "fake-folder"])
def test_a_full_disk_leaves_nothing(fake, tmp_path, format, monkeypatch):
    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("longtail.utils.files._sync", fail)
    fake.content = b"content" if format == FAKE else {"a": b"content"}
    with pytest.raises(InputError, match="could not be written: No space left"):
        export(tmp_path / ("model.fake" if format == FAKE else "model"), format)
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_exported(fake, tmp_path, monkeypatch):
    def build(what):
        raise TypeError("no such\noperator")

    monkeypatch.setitem(REGISTRY.added, FAKE, Format(build, ".fake", has_int8=False))
    with pytest.raises(InputError, match=r"small cannot be exported .TypeError: no such operator"):
        export(tmp_path / "model.fake")


# ---- the command ----


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_extra(experts_run, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["export", str(experts_run.folder), str(tmp_path / "model.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{package} is not installed: pip install 'longtail[onnx]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--int8"], "int8 needs the validation images of the run: .*no validation"),
        (["--int8", "--format", "torch"], "format 'torch' has no int8"),
        (["--tolerance", "-1"], "tolerance is -1"),
        (["--training.epochs", "3"], "'training.epochs' cannot change here"),
    ],
)
def test_wrong_options(experts_run, tmp_path, capsys, options, reason):
    name = "model.pt2" if "torch" in options else "model.onnx"
    assert main(["export", str(experts_run.folder), str(tmp_path / name), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line), line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_images_of_the_comparison(fake, digits_run, tmp_path, capsys):
    """Those of the run or, for a model file or a run whose data are absent, random ones."""
    model = str(tmp_path / "model.fake")
    assert main(["export", str(digits_run.folder), model, "--format", FAKE]) == 0
    out = capsys.readouterr().out
    assert "PyTorch on 64 images" in out
    assert f"Exported to {model}" in out
    assert main(["export", str(digits_run.model_path), model, "--format", FAKE]) == 0
    assert "64 random images" in capsys.readouterr().out
    absent = ["--data.name", "folder", "--data.root", str(tmp_path / "absent")]
    assert main(["export", str(digits_run.folder), model, "--format", FAKE, *absent]) == 0
    out = capsys.readouterr().out
    assert "absent" in out
    assert "64 random images" in out
    assert longtail.export(digits_run, model, format=FAKE) == tmp_path / "model.fake"


def test_pixels_are_those_of_the_files(digits_run):
    """They are taken from normalised images."""
    context = open_context(digits_run, digits_run.config)
    images, labels = context.eval_pixels(context.dataset.test)
    np.testing.assert_array_equal(images, context.dataset.test.pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(labels, context.dataset.test.labels)


# ---- the formats ----


@pytest.mark.slow
def test_digits_from_run_to_predictions(digits_run, tmp_path):
    """The routed accuracy of the exported file is that of the run."""
    pytest.importorskip("onnxscript")
    path = longtail.export(digits_run, tmp_path / "model.onnx")
    context = open_context(digits_run, digits_run.config)
    images, labels = context.eval_pixels(context.dataset.test)
    outputs = longtail.OnnxPredictor(path).run(images)
    expected = digits_run.results()["test"]["routing"]
    assert (outputs.logits.argmax(axis=1) == labels).mean() == pytest.approx(expected["accuracy"])
    assert outputs.experts_used.mean() == pytest.approx(expected["mean_experts"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.slow
def test_int8(digits_run, tmp_path, caplog):
    pytest.importorskip("onnxscript")
    with caplog.at_level("INFO", "longtail"):
        longtail.export(digits_run, tmp_path / "parts", format="onnx-parts", int8=True, tolerance=20)
    for fact in (
        "180 validation images",
        "accuracy",
        "balanced",
        "same class",
        "threshold",
        "of the size",
        "of the time",
    ):
        assert fact in caplog.text
    small = longtail.OnnxPredictor(tmp_path / "parts")
    assert small.metadata.precision == "int8"
    longtail.export(digits_run, tmp_path / "model.onnx", int8=True, tolerance=20)
    size = sum(path.stat().st_size for path in (tmp_path / "parts").iterdir())
    assert size < 0.6 * digits_run.model_path.stat().st_size
    context = open_context(digits_run, digits_run.config)
    images, _ = context.eval_pixels(context.dataset.test)
    ours, theirs = small.run(images), longtail.Predictor(digits_run.folder)
    joined = longtail.OnnxPredictor(tmp_path / "model.onnx")
    assert joined.metadata.thresholds == small.metadata.thresholds
    assert (joined.run(images).experts_used == ours.experts_used).mean() > 0.99
    expected = theirs.classify([Image.fromarray(image.transpose(1, 2, 0)) for image in images])
    classes = [small.metadata.class_names[number] for number in ours.logits.argmax(axis=1)]
    assert np.mean([ours == first.class_name for ours, (first, *_) in zip(classes, expected, strict=True)]) > 0.95


@pytest.mark.slow
def test_int8_that_loses_accuracy_is_refused(digits_run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    from onnx import numpy_helper

    from longtail.interop.onnx import int8

    def spoiled(stages, pixels):
        """The graphs with random weights instead of 8-bit ones."""
        random = np.random.default_rng(0)
        for stage in stages:
            copy = type(stage.graph)()
            copy.CopyFrom(stage.graph)
            for weight in copy.graph.initializer:
                value = numpy_helper.to_array(weight)
                if value.ndim == 4 and "mean" not in weight.name and "std" not in weight.name:
                    weight.CopyFrom(
                        numpy_helper.from_array(random.permutation(value.ravel()).reshape(value.shape), weight.name)
                    )
            yield stage._replace(graph=copy)

    monkeypatch.setattr(int8, "quantise", lambda stages, pixels: list(spoiled(stages, pixels)))
    with pytest.raises(InputError, match=r"int8 loses \d+\.\d\d points.*tolerance of 2.*instead of"):
        longtail.export(digits_run, tmp_path / "model.onnx", int8=True, tolerance=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_torch_program_needs_no_longtail(tmp_path):
    model = small_model(temperature=1.5, average="probabilities")
    export_model(model, metadata(), tmp_path / "model.pt2", "torch")
    assert str(SOURCE).encode() not in (tmp_path / "model.pt2").read_bytes()
    code = """if True:
        import sys, torch
        files = {"longtail.json": ""}
        program = torch.export.load(sys.argv[1], extra_files=files).module()
        print(files["longtail.json"])
        images = torch.arange(5 * 3 * 8 * 8).view(5, 3, 8, 8).to(torch.uint8)
        print(torch.stack(program(images)).tolist())
        assert "longtail" not in sys.modules
    """
    done = python("-c", code, tmp_path / "model.pt2")
    assert done.returncode == 0, done.stderr
    facts, outputs = map(json.loads, done.stdout.splitlines())
    assert facts["class_names"] == list(CLASSES)
    images = torch.arange(5 * 3 * 8 * 8).view(5, 3, 8, 8).to(torch.uint8).numpy()
    expected = of_pytorch(model, images, -1.0)
    np.testing.assert_allclose(outputs, [expected.logits, expected.probabilities], atol=1e-4)

"""From image files to predictions: the exported model gives those of `longtail.Predictor`, and needs no PyTorch."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.runs import environment
from PIL import Image

import longtail
from longtail.cli import main
from longtail.interop.onnx import runtime
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, save_model
from longtail.utils.errors import InputError

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

CLASSES = ("ant", "bee, large", "=cat", "鳥")

WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in %r:
            raise ImportError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
"""
HEAVY = (
    *("torch", "torchvision", "timm", "scipy", "sklearn", "safetensors", "matplotlib", "jsonargparse", "yaml"),
    *("filelock", "onnx", "onnxscript"),
)
"""Dependencies of longtail that the runner must not need"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model file with a router, and what was exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    architecture = {"name": "resnet20", "num_classes": len(CLASSES), "num_experts": 2, "router": {}}
    network = create_model(**architecture, average="probabilities", temperature=1.3).eval()
    metadata = ModelMetadata(architecture, CLASSES, (9, 4, 2, 1), 16, 20, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    pixels = torch.rand(50, 3, 16, 16)
    with torch.no_grad():
        network.router.threshold = float(network.router(*network(pixels)[:2]).sigmoid().median())
    save_model(folder / "model.safetensors", network, metadata)
    longtail.export(folder / "model.safetensors", folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of many kinds, sizes and orientations."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def picture(width, height, mode="RGB"):
        noise = Image.fromarray(random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
        return noise.resize((width, height), Image.Resampling.BICUBIC).convert(mode)

    for number, size in enumerate([(40, 30), (30, 41), (20, 20), (15, 90), (7, 5), (301, 202)]):
        picture(*size).save(folder / f"{number}.png")
        picture(*size).save(folder / f"{number}.jpg", quality=80)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(33, 50).save(folder / f"turned {orientation}.jpg", exif=exif)
    picture(30, 30, "CMYK").save(folder / "cmyk.jpg")
    picture(30, 36, "P").save(folder / "palette.gif")
    picture(30, 36, "LA").save(folder / "transparent.png")
    Image.fromarray(random.integers(0, 65536, (30, 40), dtype=np.uint16)).save(folder / "16 bits.png")
    return folder


def choices(predictions):
    return [
        (prediction.path.name, [prediction.class_name, *(choice.class_name for choice in prediction.others)])
        for prediction in predictions
    ]


def probabilities(predictions):
    return [
        value
        for prediction in predictions
        for value in (prediction.probability, *(choice.probability for choice in prediction.others))
    ]


@pytest.mark.parametrize("options", [{}, {"batch_size": 3, "workers": 2}, {"batch_size": 1}])
def test_same_predictions_as_pytorch(files, images, options):
    expected = list(longtail.Predictor(files / "model.safetensors").predict(images, top=3))
    predictions = list(longtail.OnnxPredictor(files / "model.onnx").predict(images, top=3, **options))
    assert choices(predictions) == choices(expected)
    assert probabilities(predictions) == pytest.approx(probabilities(expected), abs=1e-5)


def test_all_experts_and_thresholds(files, images):
    model, source = files / "model.onnx", files / "model.safetensors"
    expected = list(longtail.predict(source, images, all_experts=True, top=4))
    assert probabilities(expected) != pytest.approx(probabilities(longtail.predict(source, images, top=4)), abs=1e-3)
    for options in ({"all_experts": True}, {"thresholds": -1}, {"thresholds": np.float32(-1)}, {"thresholds": [-1.0]}):
        predictions = list(longtail.OnnxPredictor(model, **options).predict(images, top=4))
        assert choices(predictions) == choices(expected)
        assert probabilities(predictions) == pytest.approx(probabilities(expected), abs=1e-5)


def test_images_in_memory(files, images):
    paths = sorted(images.iterdir())
    predictor, opened = longtail.OnnxPredictor(files / "model.onnx"), [Image.open(path) for path in paths]
    classified = predictor.classify(opened, top=2)
    expected = longtail.Predictor(files / "model.safetensors").classify(opened, top=2)
    assert [[c.class_name for c in row] for row in classified] == [[c.class_name for c in row] for row in expected]
    assert predictor.classify([]) == []
    with pytest.raises(InputError, match=r"image 1: 0 x 5 pixels"):
        predictor.classify([opened[0], Image.new("RGB", (0, 5))])
    with pytest.raises(InputError, match="top is 0"):
        predictor.classify(opened, top=0)


def test_one_path_twice_and_corrupt_images(files, images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    good = images / "0.png"
    seen, predictor = [], longtail.OnnxPredictor(files / "model.onnx")
    with pytest.raises(InputError, match=r"bad\.png: does not decode"):
        # += keeps what comes before the error.
        seen += predictor.predict([good, tmp_path / "bad.png", good], batch_size=2, workers=1)
    assert [prediction.path for prediction in seen] == [good, good]


def test_metadata(files):
    facts = longtail.OnnxPredictor(files / "model.onnx").metadata
    assert (facts.class_names, facts.average, facts.temperature) == (CLASSES, "probabilities", 1.3)
    assert (facts.backbone, facts.num_experts, facts.precision) == ("resnet20", 2, "float32")


def test_without_pytorch(files, images):
    """In a new process in which neither PyTorch nor any other large dependency can be imported."""
    code = f"""{WITHOUT % ((*HEAVY, "rich"),)}
import longtail
for prediction in longtail.OnnxPredictor({str(files / "model.onnx")!r}).predict({str(images)!r}, workers=2):
    print(prediction.path.name, prediction.class_name, repr(prediction.probability), sep="\\t")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    expected = list(longtail.predict(files / "model.safetensors", images))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [[prediction.path.name, prediction.class_name] for prediction in expected]
    assert [float(row[2]) for row in rows] == pytest.approx(probabilities(expected), abs=1e-5)


def test_command_without_pytorch(files, images, capsys):
    code = f"""{WITHOUT % (HEAVY,)}
from longtail.cli import main
sys.exit(main(["predict", {str(files / "model.onnx")!r}, {str(images)!r}, "--top", "2", "--workers", "2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert main(["predict", str(files / "model.safetensors"), str(images), "--top", "2"]) == 0
    ours, theirs = (list(csv.reader(io.StringIO(text))) for text in (done.stdout, capsys.readouterr().out))
    assert ours[0] == theirs[0]
    assert [[row[0], row[1], row[3]] for row in ours] == [[row[0], row[1], row[3]] for row in theirs]
    assert [float(row[2]) for row in ours[1:]] == pytest.approx([float(row[2]) for row in theirs[1:]], abs=1e-5)


def test_missing_onnxruntime(files, images, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["predict", str(files / "model.onnx"), str(images)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'longtail[onnx]'" in line


@pytest.mark.parametrize("option", ["--device=cuda", "--precision=bf16", "--views=flip"])
def test_options_of_pytorch(files, images, option, capsys):
    assert main(["predict", str(files / "model.onnx"), str(images), option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err


def test_engine(files, images, tmp_path, capsys):
    (tmp_path / "model").write_bytes((files / "model.onnx").read_bytes())  # by another name
    assert main(["predict", str(tmp_path / "model"), str(images / "0.png"), "--engine", "onnx"]) == 0
    assert "0.png" in capsys.readouterr().out
    assert main(["predict", str(files / "model.safetensors"), str(images), "--engine", "onnx"]) == 2
    assert "model.safetensors: cannot be read as an ONNX file" in capsys.readouterr().err
    assert main(["predict", str(files / "model.onnx"), str(images), "--engine", "torch"]) == 2
    assert "model.onnx" in capsys.readouterr().err


# ---- files that are no exported model ----


def foreign():
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "other", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def with_metadata(content, **changes):
    """The exported file with other metadata."""
    import onnx

    model = onnx.load_from_string(content)
    for entry in model.metadata_props:
        entry.value = changes.get(entry.key, entry.value)
    return model.SerializeToString()


DAMAGES = {
    "empty": (lambda content: b"", ""),
    "cut off": (lambda content: content[: len(content) // 2], ""),
    "text": (lambda content: b"not a model", ""),
    "another model": (lambda content: foreign().SerializeToString(), "no metadata of longtail"),
    "newer": (lambda content: with_metadata(content, longtail_format="99"), "longtail_format is 99"),
    "class names": (lambda content: with_metadata(content, class_names='["a"]'), "1 class names"),
    "no list": (lambda content: with_metadata(content, class_names="3"), "metadata are damaged"),
    "no JSON": (lambda content: with_metadata(content, resize="{"), ""),
    "image size": (lambda content: with_metadata(content, image_size="17"), "uint8"),
    "huge": (lambda content: with_metadata(content, resize="1000000000"), "metadata are damaged"),
    "interpolation": (lambda content: with_metadata(content, interpolation='"magic"'), "metadata are damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(files, images, tmp_path, damage, capsys):
    change, reason = DAMAGES[damage]
    (tmp_path / "bad.onnx").write_bytes(change((files / "model.onnx").read_bytes()))
    assert main(["predict", str(tmp_path / "bad.onnx"), str(images)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert f"{tmp_path / 'bad.onnx'}: cannot be read as an ONNX file of longtail" in line
    assert reason in line


def test_no_file(tmp_path):
    for path, reason in ((tmp_path / "no.onnx", "no such file"), (tmp_path, r"has no first\.onnx")):
        with pytest.raises(InputError, match=reason):
            longtail.OnnxPredictor(path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(InputError, match="pipe"):
        longtail.OnnxPredictor(tmp_path / "pipe.onnx")


def test_wrong_arguments(files):
    model = files / "model.onnx"
    for options, reason in (
        ({"thresholds": [0.1, 0.2]}, "2 thresholds"),
        ({"threads": 0}, "threads is 0"),
        ({"providers": ["MagicExecutionProvider"]}, "MagicExecutionProvider.*CPUExecutionProvider"),
    ):
        with pytest.raises(InputError, match=reason):
            longtail.OnnxPredictor(model, **options)
    predictor = longtail.OnnxPredictor(model)
    for pixels in (np.zeros((1, 3, 16, 16)), np.zeros((1, 16, 16, 3), np.uint8), np.zeros((3, 16, 16), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            predictor.run(pixels)


def test_processors_whose_sums_saturate(monkeypatch):
    runtime.saturates.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert not runtime.saturates()
    for flags, expected in (("sse4_1 avx2", True), ("avx2 avx512_vnni", False), ("avx2 avx_vnni", False)):
        runtime.saturates.cache_clear()
        monkeypatch.setattr("platform.machine", lambda: "AMD64")
        monkeypatch.setattr(runtime, "processor_info", lambda name, flags=flags: flags)
        assert runtime.saturates() == expected
    runtime.saturates.cache_clear()

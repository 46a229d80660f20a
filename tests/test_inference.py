"""Classifying pictures: the same answers whatever the way, and no picture lost for another one's sake."""

import csv
import io
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.image_io import decode
from longtail.data.loaders import Normalise
from longtail.data.transforms import eval_transform
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, load_model_file, save_model
from longtail.utils.errors import InputError

NUM, CLASSES = 10, ("ant", "bee, large", "cat", "dog")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    architecture = {"name": "resnet20", "num_classes": len(CLASSES), "num_experts": 2, "router": {}}
    metadata = ModelMetadata(architecture, CLASSES, (9, 4, 2, 1), 16, 20, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, create_model(**architecture).eval(), metadata)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Ten of noise."""
    (tmp_path / "new").mkdir()
    for number in range(NUM):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "new" / f"{number}.png")
    return tmp_path / "new"


def rows(capsys):
    return list(csv.reader(io.StringIO(capsys.readouterr().out)))


def slow_probabilities(path, picture):
    network, metadata = load_model_file(path)
    image = eval_transform(metadata.image_size, metadata.resize, metadata.interpolation)(decode(picture))
    normalise = Normalise(metadata.mean, metadata.std, torch.device("cpu"))
    with torch.no_grad():
        return network.predict_logits(normalise(image[None]))[0].softmax(dim=0).tolist()


@pytest.mark.parametrize("top", [1, 3, 9])
def test_most_likely_classes(model, pictures, top):
    found = list(longtail.predict(model, [pictures], all_experts=True, top=top))
    assert [prediction.path.name for prediction in found] == [f"{number}.png" for number in range(NUM)]
    for prediction in found:
        right = sorted(zip(slow_probabilities(model, prediction.path), CLASSES, strict=True), reverse=True)[:top]
        given = [(prediction.class_name, prediction.probability), *prediction.others]
        assert [name for name, _ in given] == [name for _, name in right]
        assert [likely for _, likely in given] == pytest.approx([likely for likely, _ in right], abs=1e-5)


def test_batches_and_workers_change_nothing(model, pictures):
    right = list(longtail.predict(model, [pictures]))
    for options in ({"batch_size": 3}, {"batch_size": 4, "workers": 2}):
        found = list(longtail.predict(model, [pictures], **options))
        assert [prediction[:2] for prediction in found] == [prediction[:2] for prediction in right]
        likely = [prediction.probability for prediction in right]
        assert [prediction.probability for prediction in found] == pytest.approx(likely, abs=1e-5)


@contextmanager
def convolutions():
    """The types that convolutions within it give."""
    types = set()

    def watch(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d) and not output.is_meta:
            types.add(output.dtype)

    hook = torch.nn.modules.module.register_module_forward_hook(watch)
    try:
        yield types
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision(model, pictures, precision, dtype):
    right = [prediction.probability for prediction in longtail.predict(model, [pictures], all_experts=True)]
    with convolutions() as computed_in:
        options = {"precision": precision, "all_experts": True}
        found = [prediction.probability for prediction in longtail.predict(model, [pictures], **options)]
    assert computed_in == {dtype}
    assert found == pytest.approx(right, abs=0.02)


@pytest.mark.parametrize("batch_size", ["64", "2"])
def test_pictures_that_do_not_decode_cost_no_others(model, pictures, capsys, batch_size):
    for name in ("2.png", "3.png", "7.png"):
        (pictures / name).write_bytes(b"nothing")
    arguments = ["predict", str(model), str(pictures), "--batch_size", batch_size, "--workers", "1"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    header, *lines = csv.reader(io.StringIO(out))
    assert header == ["image", "class", "probability"]
    assert [line[0] for line in lines] == [str(pictures / f"{number}.png") for number in (0, 1, 4, 5, 6, 8, 9)]
    for line, name in zip(err.splitlines(), ("2.png", "3.png", "7.png"), strict=True):
        assert f"{pictures / name}: does not decode (not a picture of a known kind); mend or remove" in line


def test_a_classifier_of_pictures_in_memory(model, pictures):
    """Turned pictures and palettes are read as from a file, and stay as they were."""
    turned = Image.open(pictures / "0.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(pictures / "0.png", exif=exif)
    Image.open(pictures / "1.png").convert("P").save(pictures / "1.png")
    paths = sorted(pictures.iterdir())
    classifier = longtail.Predictor(model)
    assert classifier.metadata.class_names == CLASSES
    images = [Image.open(path) for path in paths]
    found = classifier.classify(images, top=2)
    for choices, prediction in zip(found, longtail.predict(model, paths, top=2), strict=True):
        expected = [(prediction.class_name, prediction.probability), *prediction.others]
        assert [name for name, _ in choices] == [name for name, _ in expected]
        assert [likely for _, likely in choices] == pytest.approx([likely for _, likely in expected], abs=1e-5)
    assert found[0] != classifier.classify([images[0].transpose(Image.Transpose.ROTATE_90)], top=2)[0]
    assert images[0].getexif()[0x0112] == 6
    assert images[1].mode == "P"
    assert classifier.classify([]) == []


def test_csv_of_several_classes(model, pictures, capsys):
    assert main(["predict", str(model), str(pictures), "--top", "3"]) == 0
    header, *lines = rows(capsys)
    assert header == ["image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    for line, prediction in zip(lines, longtail.predict(model, [pictures], top=3), strict=True):
        choices = [(prediction.class_name, prediction.probability), *prediction.others]
        assert line[1::2] == [name for name, _ in choices]
        assert [float(cell) for cell in line[2::2]] == pytest.approx([likely for _, likely in choices], rel=1e-5)


def test_other_files_are_told_of(model, pictures, caplog):
    for name in ("a.heic", "b.HEIC", "notes.txt", "README", ".hidden.heic"):
        (pictures / name).touch()
    with caplog.at_level("INFO", logger="longtail"):
        assert len(list(longtail.predict(model, [pictures]))) == NUM
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == f"'{pictures}': 4 files are left out, no pictures by name: 2 .heic, 1 without an ending, 1 .txt"


@pytest.mark.parametrize(("option", "value"), [("top", 0), ("batch_size", 0), ("workers", -1)])
def test_numbers_that_cannot_be(model, pictures, option, value, capsys):
    with pytest.raises(InputError, match=f"{option} is {value}; it must be at least"):
        longtail.predict(model, [pictures], **{option: value})  # at once, not when the first answer is asked for
    assert main(["predict", str(model), str(pictures), f"--{option}", str(value)]) == 2
    assert f"{option} is {value}" in capsys.readouterr().err

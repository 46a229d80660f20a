"""Classification of images: all ways give the same predictions, and a corrupt image does not affect the others."""

import csv
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data import image_io
from longtail.data.find_images import find_images
from longtail.data.image_io import decode
from longtail.data.loaders import Normalise
from longtail.data.predictions import ClassProbability
from longtail.data.transforms import eval_transform
from longtail.inference import Predictor, predict
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, load_model_file, save_model
from longtail.utils.errors import InputError

NUM_IMAGES, CLASSES = 10, ("ant", "bee, large", "cat", "dog")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file with a router and random weights."""
    torch.manual_seed(0)
    architecture = {"name": "resnet20", "num_classes": len(CLASSES), "num_experts": 2, "router": {}}
    metadata = ModelMetadata(architecture, CLASSES, (9, 4, 2, 1), 16, 20, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, create_model(**architecture).eval(), metadata)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with images of noise."""
    (tmp_path / "new").mkdir()
    for number in range(NUM_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "new" / f"{number}.png")
    return tmp_path / "new"


@pytest.fixture(scope="module")
def reference(model):
    """A function: an image file to the probabilities of all classes, without fused batch norms and router."""
    network, metadata = load_model_file(model)
    transform = eval_transform(metadata.image_size, metadata.resize, metadata.interpolation)
    normalise = Normalise(metadata.mean, metadata.std, torch.device("cpu"))

    def probabilities(path):
        with torch.no_grad():
            return network.predict_logits(normalise(transform(decode(path))[None]))[0].softmax(dim=0).tolist()

    return probabilities


def choices(prediction):
    """All classes of a prediction, the most probable first."""
    return [ClassProbability(prediction.class_name, prediction.probability), *prediction.others]


def assert_close(actual, expected):
    """Checks that lists of `ClassProbability` are equal except for rounding."""
    assert [choice.class_name for choice in actual] == [choice.class_name for choice in expected]
    probabilities = [choice.probability for choice in expected]
    assert [choice.probability for choice in actual] == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("top", [1, 3, 9])
def test_most_probable_classes(model, reference, folder, top):
    predictions = list(predict(model, [folder], all_experts=True, top=top))
    assert [prediction.path.name for prediction in predictions] == [f"{number}.png" for number in range(NUM_IMAGES)]
    for prediction in predictions:
        probabilities = reference(prediction.path)
        expected = sorted(map(ClassProbability, CLASSES, probabilities), key=lambda choice: -choice.probability)
        assert_close(choices(prediction), expected[:top])


def test_router_chooses_the_number_of_experts(model, folder):
    network, metadata = load_model_file(model)
    paths = find_images([folder])
    transform = eval_transform(metadata.image_size, metadata.resize, metadata.interpolation)
    pixels = torch.stack([transform(decode(path)) for path in paths])
    images = Normalise(metadata.mean, metadata.std, torch.device("cpu"))(pixels)
    with torch.no_grad():
        network.router.threshold = network.router(*network(images)[:2])[:, 0].sigmoid().median().item()
        routed = network.route(images)
    assert set(routed.experts_used.tolist()) == {1, 2}
    changed = folder.parent / "model.safetensors"
    save_model(changed, network, metadata)
    expected = routed.logits.softmax(dim=1).amax(dim=1).tolist()
    assert [prediction.probability for prediction in predict(changed, paths)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 4, "workers": 2}])
def test_predictions_do_not_depend_on_batches_and_workers(model, folder, options):
    expected = list(predict(model, [folder]))
    predictions = list(predict(model, [folder], **options))
    assert [prediction.path for prediction in predictions] == [prediction.path for prediction in expected]
    for first, second in zip(predictions, expected, strict=True):
        assert_close(choices(first), choices(second))


@contextmanager
def watched_convolutions():
    """Collects the types of the outputs of convolutions."""
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
def test_precision(model, folder, precision, dtype):
    expected = [prediction.probability for prediction in predict(model, [folder], all_experts=True)]
    with watched_convolutions() as types:
        predictions = list(predict(model, [folder], all_experts=True, precision=precision))
    assert types == {dtype}
    assert [prediction.probability for prediction in predictions] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("batch_size", ["64", "2"])
def test_corrupt_images_do_not_affect_the_others(model, folder, capsys, batch_size):
    corrupt = ("2.png", "3.png", "7.png")
    for name in corrupt:
        (folder / name).write_bytes(b"nothing")
    arguments = ["predict", str(model), str(folder), "--batch_size", batch_size, "--workers", "1"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    _, *rows = csv.reader(io.StringIO(out))
    assert [row[0] for row in rows] == [str(folder / f"{number}.png") for number in (0, 1, 4, 5, 6, 8, 9)]
    for line, name in zip(err.splitlines(), corrupt, strict=True):
        assert str(folder / name) in line


def test_predictor_classifies_images_in_memory(model, folder):
    """Turned images and images with a palette are read as from a file, and are not changed."""
    turned = Image.open(folder / "0.png")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "0.png", exif=exif)
    Image.open(folder / "1.png").convert("P").save(folder / "1.png")
    paths = sorted(folder.iterdir())
    predictor = Predictor(model)
    assert predictor.metadata.class_names == CLASSES
    images = [Image.open(path) for path in paths]
    classified = predictor.classify(images, top=2)
    for first, prediction in zip(classified, predict(model, paths, top=2), strict=True):
        assert_close(first, choices(prediction))
    assert classified[0] != predictor.classify([images[0].transpose(Image.Transpose.ROTATE_90)], top=2)[0]
    assert images[0].getexif()[0x0112] == 6
    assert images[1].mode == "P"
    assert predictor.classify([]) == []
    assert predictor.classify(images[0], top=2) == predictor.classify(images[:1], top=2)
    with pytest.raises(InputError, match="image 1 is a str"):
        predictor.classify([images[0], "1.png"])


def test_predictor_is_loaded_once_for_many_predictions(model, folder):
    predictor = longtail.Predictor(model)
    expected = list(longtail.predict(model, [folder]))
    assert [list(predictor.predict([folder])) for _ in range(2)] == [expected, expected]


def test_csv_of_several_classes(model, folder, capsys):
    assert main(["predict", str(model), str(folder), "--top", "3"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "class", "probability", "class_2", "probability_2", "class_3", "probability_3"]
    for row, prediction in zip(rows, predict(model, [folder], top=3), strict=True):
        assert row[1::2] == [choice.class_name for choice in choices(prediction)]
        probabilities = [choice.probability for choice in choices(prediction)]
        assert [float(cell) for cell in row[2::2]] == pytest.approx(probabilities, rel=1e-5)


def test_find_images_searches_folders_in_order(folder):
    (folder / "inner").mkdir()
    (folder / "0.png").rename(folder / "inner" / "0.png")
    found = find_images([folder / "5.png", folder])
    names = ["5.png", *(f"{number}.png" for number in range(1, NUM_IMAGES)), "inner/0.png"]
    assert found == [folder / name for name in names]


def test_find_images_raises_errors(tmp_path):
    for location, message in ((tmp_path / "missing", "neither an image nor a folder"), (tmp_path, "no images")):
        with pytest.raises(InputError, match=message) as error:
            find_images([location])
        assert f"'{location}'" in str(error.value)


def test_skipped_files_are_logged(folder, caplog):
    for name in ("a.cr2", "b.CR2", "notes.txt", "README", ".hidden.cr2"):
        (folder / name).touch()
    with caplog.at_level("INFO", "longtail"):
        assert len(find_images([folder])) == NUM_IMAGES
    (line,) = [record.getMessage() for record in caplog.records]
    for fact in ("4 files", f"'{folder}'", "2 .cr2", "1 .txt", "1 without extension"):
        assert fact in line


@pytest.mark.parametrize(("option", "value"), [("top", 0), ("batch_size", 0), ("workers", -1)])
def test_numbers_out_of_range(model, folder, option, value, capsys):
    with pytest.raises(InputError, match=f"{option} is {value}"):
        predict(model, [folder], **{option: value})  # at once, before the first prediction
    assert main(["predict", str(model), str(folder), f"--{option}", str(value)]) == 2
    assert f"{option} is {value}" in capsys.readouterr().err


def test_crops_are_averaged(model, folder):
    """One crop at a time, cut from the resized image."""
    network, metadata = load_model_file(model)
    normalise = Normalise(metadata.mean, metadata.std, torch.device("cpu"))
    for prediction in predict(model, [folder], views="ten-crop", all_experts=True, batch_size=7, top=4):
        image = eval_transform(20, 20)(decode(prediction.path))
        logits = []
        for top, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2)):
            crop = image[None, :, top : top + 16, left : left + 16]
            with torch.no_grad():
                logits += [network.predict_logits(normalise(view)) for view in (crop, crop.flip(3))]
        probabilities = torch.cat(logits).mean(dim=0).softmax(dim=0).tolist()
        expected = sorted(map(ClassProbability, CLASSES, probabilities), key=lambda choice: -choice.probability)
        assert_close(choices(prediction), expected)


# ---- what services send ----


@pytest.mark.parametrize(
    ("size", "problem"), [((1, 2_000_000), "256 times"), ((0, 0), "0 x 0"), ((20_000, 20_000), "bomb")]
)
def test_images_that_would_exhaust_memory(model, size, problem, monkeypatch):
    image = Image.new("RGB", (1, 1))
    monkeypatch.setattr(Image.Image, "size", property(lambda self: size))
    with pytest.raises(InputError, match=f"image 0: .*{problem}"):
        Predictor(model).classify([image])


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """Decoding takes several times the memory of the pixels."""
    monkeypatch.setattr(image_io, "LARGE", 99)
    most = now = 0
    lock = threading.Lock()

    def decode_one(side):
        nonlocal most, now
        with image_io.decoding(Image.new("RGB", (side, side))):
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_one, [10] * 8))
    assert most == 1
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(decode_one, [9] * 8))
    assert most > 1


def test_a_single_location(model, folder, monkeypatch):
    """The letters of its name are not locations, and an empty name is not the current folder."""
    for location in (folder, str(folder)):
        assert len(list(predict(model, location))) == NUM_IMAGES
    monkeypatch.chdir(folder)
    for locations in ("", [""]):
        with pytest.raises(InputError, match="'' is neither an image nor a folder"):
            predict(model, locations)


@pytest.mark.parametrize(
    ("name", "choices"), [("precision", "float32, bf16, fp16"), ("views", "one, flip, five-crop, ten-crop")]
)
def test_unknown_options(model, name, choices):
    with pytest.raises(InputError, match=f"{name} is 'tencrop'; it must be one of {choices}"):
        Predictor(model, **{name: "tencrop"})


def test_names_in_csv(model, folder, monkeypatch, capsys):
    """They name the same files, are no formulas, and keep their carriage returns."""
    names = ["=1+1.png", "+a.png", "-a.png", "@a.png", "a\rb.png", "a,b.png"]
    monkeypatch.chdir(folder)
    for name in names:
        Image.new("RGB", (9, 9)).save(name)
    assert main(["predict", str(model), *(f"./{name}" for name in names)]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out, newline="")))[1:]
    assert [row[0] for row in rows] == [f"./{name}" if name[0] in "=+-@" else name for name in names]

"""Any bytes are either read or refused with an InputError. No other error is raised, and no code in them is run."""

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden.networks import load
from helpers.hostile import Call
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longtail.config.recipes import checked_types, load_recipe, to_yaml
from longtail.config.schema import DataConfig
from longtail.data.corrupt_images import from_text, to_text
from longtail.data.image_io import decode, problem
from longtail.data.sources import load_source
from longtail.interop.original.convert import _config, convert
from longtail.interop.original.settings import translate
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, load_model_file, save_model
from longtail.utils.errors import InputError


def fuzz(few: int, many: int):
    """Runs a test with few examples, and with many if slow tests are run."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


def run(examples: int, check, *strategies) -> None:
    """Calls a function with examples; the same ones every time."""
    options = settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    options(given(*strategies)(check))()


def is_read(function, *arguments) -> bool:
    """Whether a function reads its input. If not, it must raise an InputError with a message that can be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn about what they read
        try:
            function(*arguments)
            return True
        except InputError as error:
            message = str(error)
    assert message.strip()
    assert len(message.splitlines()) <= 20
    return False


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """The content cut off, with some bytes replaced, or with a piece left out or repeated."""
    position = st.integers(0, len(content) - 1)

    def with_bytes(changes: dict[int, int]) -> bytes:
        mutable = bytearray(content)
        for index, value in changes.items():
            mutable[index] = value
        return bytes(mutable)

    return st.one_of(
        position.map(lambda length: content[:length]),
        st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=8).map(with_bytes),
        st.builds(lambda first, second: content[:first] + content[second:], position, position),
    )


# ---- list files ----

WORDS = st.sampled_from(
    ["a/1.jpg", "b/1.jpg", "a", "b/", "/", "//", "..", "../a/1.jpg", "./a/1.jpg", "a//1.jpg", "0", "1", "2", "-1", "9" * 12,  # noqa: E501
     " ", "\t", "\n", "\r", "\0", "\x1b[2J", "ä", "\u2028", "\ufeff", "\\", "~", "x" * 300, "a\0/b", "1.jpg"]
)  # fmt: skip
LINES = st.lists(WORDS, max_size=12).map(" ".join).map(str.encode)
LIST_BYTES = st.one_of(st.lists(LINES, max_size=8).map(b"\n".join), st.binary(max_size=200))
SOUND = b"a/1.jpg 0\nb/1.jpg 1\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lists")
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "1.jpg").touch()
    (root / "sound.txt").write_bytes(SOUND)
    return root


def list_settings(root, **files):
    return DataConfig(name="list", root=str(root), **{"train_list": "sound.txt", "test_list": "sound.txt"} | files)


@fuzz(40, 400)
def test_list_files(root, examples):
    def check(content, outside):
        (root / "train.txt").write_bytes(content)

        def read():
            dataset = load_source(list_settings(root, train_list="train.txt", allow_outside_root=outside))
            assert len(dataset.class_names) == 2
            for path in dataset.train.paths:
                assert outside or root.resolve() in path.resolve().parents

        is_read(read)

    contents = st.one_of(LIST_BYTES, LIST_BYTES.map(lambda more: SOUND + more), changed(SOUND))
    run(examples, check, contents, st.booleans())


@fuzz(20, 150)
def test_files_of_class_names(root, examples):
    def check(names):
        (root / "names.txt").write_bytes(names)
        is_read(load_source, list_settings(root, class_names="names.txt"))

    run(examples, check, LIST_BYTES)


@fuzz(20, 100)
def test_lists_of_skipped_images(examples):
    def check(content):
        def read():
            corrupt = from_text(content, Path("skipped_images.txt"))
            assert from_text(to_text(corrupt), Path("skipped_images.txt")) == corrupt

        is_read(read)

    run(examples, check, st.binary(max_size=80))


# ---- settings ----

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["folder", "2001-13-01", "0x", "1e999", ".nan", "!!float x", "!!python/name:os.system", "*a", "&a 1", "~", "1_0", "12:30"]),  # noqa: E501
)  # fmt: skip
SECTIONS = json.loads(json.dumps(load_recipe().__dict__, default=vars))
FIELDS = [(section, field) for section, fields in SECTIONS.items() if isinstance(fields, dict) for field in fields]
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
)


@fuzz(15, 60)
def test_settings_with_any_value(tmp_path, examples):
    file, copy = tmp_path / "mine.yaml", tmp_path / "copy.yaml"

    def check(name, value, quoted):
        section, field = name
        text = json.dumps(value) if quoted else str(value)
        assume(text.isascii() or text.isprintable())
        file.write_text(f"{section}:\n  {field}: {text}\n", encoding="utf-8", errors="surrogatepass")

        def read():
            config = load_recipe(file)
            copy.write_text(to_yaml(config), encoding="utf-8")
            assert load_recipe(copy) == config

        is_read(read)

    run(examples, check, st.sampled_from(FIELDS), VALUES, st.booleans())


YAML_PIECES = st.lists(st.sampled_from(
    ["training", "seed", "data", "name", "base", "about", ": ", "- ", "? ", "[", "]", "{", "}", ", ", "\n", "  ", "\n  ", "&a ", "*a", "!!set ",  # noqa: E501
     "!!int ", "!!timestamp ", "!!binary ", "!!python/object/apply:os.abort []", "'", '"', "|\n", "---\n", "%YAML 9\n", "#", "<<", "1", "x", "\0", "\t", "é", "2001-99-99"]  # noqa: E501
), max_size=20).map("".join)  # fmt: skip


@fuzz(100, 400)
def test_yaml_files_of_any_bytes(tmp_path, examples):
    file = tmp_path / "mine.yaml"

    def check(content):
        file.write_bytes(content)
        is_read(load_recipe, file)

    settings_text = to_yaml(load_recipe()).encode()[:400]
    run(examples, check, st.one_of(YAML_PIECES.map(str.encode), st.binary(max_size=60), changed(settings_text)))


# ---- images ----


@fuzz(10, 60)
@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_images(tmp_path, suffix, examples):
    sound, broken = tmp_path / f"sound.{suffix}", tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(sound)

    def check(content):
        broken.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decodes = problem(broken) is None
        assert is_read(decode, broken) == decodes

    run(examples, check, changed(sound.read_bytes()))


# ---- model files ----


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A small model file, so that many changes are in its metadata."""
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    architecture = {"name": "resnet20", "num_classes": 3, "num_experts": 2, "width": [4, 4], "image_size": 8}
    metadata = ModelMetadata(architecture, ("a", "b", "c"), (3, 2, 1), 8, 8, (0.5,) * 3, (0.5,) * 3)
    save_model(path, create_model(**architecture), metadata)
    return path


@fuzz(20, 150)
def test_model_files_with_changed_bytes(model_file, tmp_path, examples):
    content = model_file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")

    def check(start, complete):
        (tmp_path / "broken.safetensors").write_bytes(start + content[header + 50 :] if complete else start)
        is_read(load_model_file, tmp_path / "broken.safetensors")

    run(examples, check, changed(content[: header + 50]), st.booleans())


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@fuzz(40, 250)
def test_model_files_with_any_metadata(model_file, tmp_path, examples):
    with safe_open(model_file, "pt") as file:
        sound = json.loads(file.metadata()["longtail"])
    sound.pop("sha256")  # otherwise only the checksum would be checked
    tensors, broken = load_file(model_file), tmp_path / "broken.safetensors"
    arguments = (*sound["architecture"], "pretrained", "router", "head", "scale", "depth")

    def check(keys, value):
        metadata = json.loads(json.dumps(sound))
        (metadata if len(keys) == 1 else metadata["architecture"])[keys[-1]] = value
        save_file(tensors, broken, {"longtail": json.dumps(metadata)})

        def use():
            model, read = load_model_file(broken)
            assert len(read.class_names) == model.num_classes == 3
            assert model.eval()(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 2, 3)

        is_read(use)

    keys = [*((key,) for key in sound), *(("architecture", argument) for argument in arguments)]
    run(examples, check, st.sampled_from(keys), JSON)


# ---- checkpoints of the original ----

FUNCTIONS = st.sampled_from(
    [
        ("os", "system"), ("posix", "system"), ("subprocess", "call"), ("builtins", "eval"), ("builtins", "exec"),
        ("os", "popen"), ("builtins", "__import__"), ("torch", "load"), ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"), ("pathlib", "Path"), ("functools", "partial"), ("operator", "methodcaller"), ("nobody.knows", "It"),  # noqa: E501
        ("torch._utils", "_rebuild_tensor_v2"), ("torch", "Size"), ("collections", "OrderedDict"), ("torch.jit", "load"),  # noqa: E501
    ]
)  # fmt: skip


class Official:
    """A folder with a sound checkpoint, a broken one, and a marker that hostile code would write."""

    def __init__(self, folder: Path):
        self.sound, self.broken = folder / "sound.pth", folder / "broken.pth"
        self.output, self.marker = folder / "out", folder / "was-run"
        weights = load("cifar_resnet32_e3_rd1_un1").original
        tensors = {name: tensor[:2].clone() for name, tensor in list(weights.items())[:4]}
        torch.save({"state_dict": tensors, "epoch": 3, "arch": "ResNet32Model"}, self.sound)

    def converts(self) -> bool:
        return is_read(convert, self.broken, self.output)

    def pickle(self) -> bytes:
        with zipfile.ZipFile(self.sound) as file:
            (name,) = (name for name in file.namelist() if name.endswith("/data.pkl"))
            return file.read(name)

    def write_broken(self, content: bytes) -> None:
        """Writes the sound checkpoint with another pickle in it."""
        with zipfile.ZipFile(self.sound) as sound, zipfile.ZipFile(self.broken, "w") as broken:
            for entry in sound.infolist():
                is_pickle = entry.filename.endswith("/data.pkl")
                broken.writestr(entry.filename, content if is_pickle else sound.read(entry))

    def call(self, module: str, name: str) -> bytes:
        """Opcodes that call a function with a command that writes the marker."""
        # Written by hand: Python refuses to pickle some of the functions.
        command = pickle.dumps(f"touch {self.marker}", protocol=2)[2:-1]
        return f"c{module}\n{name}\n".encode() + command + b"\x85R"


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    return Official(tmp_path_factory.mktemp("official"))


@fuzz(20, 200)
def test_checkpoints_with_changed_bytes(official, examples):
    def check(content):
        official.broken.write_bytes(content)
        official.converts()
        assert not official.output.exists()  # the weights are not of a complete network

    zips = st.binary(max_size=60).map(lambda end: b"PK\x03\x04" + end)
    run(examples, check, st.one_of(changed(official.sound.read_bytes()), zips))


@fuzz(25, 250)
def test_checkpoints_with_a_changed_pickle(official, examples):
    def check(content):
        official.write_broken(content)
        assert not official.converts() or official.output.exists()

    pickles = st.binary(max_size=40).map(lambda end: b"\x80\x02" + end)
    run(examples, check, st.one_of(changed(official.pickle()), pickles))


@fuzz(40, 200)
def test_checkpoints_with_a_hostile_pickle(official, examples):
    def check(function, protocol, key):
        call, name = official.call(*function), pickle.dumps(key, protocol=2)[2:-1]
        official.write_broken(b"\x80" + bytes([protocol]) + (b"}" + name + call + b"s." if key else call + b"."))
        assert not official.converts()
        assert not official.marker.exists()

    keys = st.sampled_from(["config", "state_dict", "epoch", "arch", ""])
    run(examples, check, FUNCTIONS, st.integers(0, 5), keys)


def test_python_would_run_the_hostile_pickles(official):
    """Shows that the test above can fail."""
    pickle.loads(b"\x80\x02" + official.call("posix", "system") + b".")
    assert official.marker.exists()
    official.marker.unlink()
    assert pickle.loads(pickle.dumps(Call(os.getpid))) == os.getpid()


ORIGINAL_SETTINGS = st.dictionaries(
    st.sampled_from(["name", "arch", "trainer", "optimizer", "loss", "lr_scheduler", "data_loader"]),
    st.one_of(JSON, st.dictionaries(st.sampled_from(["args", "epochs", "type"]), st.one_of(JSON, st.dictionaries(
        st.sampled_from(["lr", "num_classes", "imb_type", "imb_factor", "data_dir", "batch_size", "step1", "step2", "gamma", "reweight_epoch"]),  # noqa: E501
        JSON, max_size=3)), max_size=3)),
    max_size=4,
)  # fmt: skip


@fuzz(10, 50)
def test_settings_of_the_original(tmp_path, examples):
    """A run that is made from the config.json beside a checkpoint can be read again."""
    architecture = {"name": "resnet32", "num_classes": 100, "num_experts": 3, "width": "narrow", "head": "cosine",
                    "scale": 30.0, "expert_stages": 2}  # fmt: skip

    def check(original):
        try:
            config = checked_types(_config("name", translate(original), architecture))
        except (TypeError, ValueError, OverflowError):  # `convert` turns these into an InputError
            return
        (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_recipe(tmp_path / "config.yaml") == config

    run(examples, check, ORIGINAL_SETTINGS)

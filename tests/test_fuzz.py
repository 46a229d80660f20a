"""Whatever bytes are given: they are read, or refused by an InputError; nothing else is raised, and nothing is run."""

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
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, load_model_file, save_model
from longtail.utils.errors import InputError

FUZZ = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def often(examples: int) -> settings:
    return settings(FUZZ, max_examples=examples)


def is_read(function, *arguments) -> bool:
    """Whether it is read; if not, the error must be ours and one that can be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about what they read
        try:
            function(*arguments)
            return True
        except InputError as error:
            message = str(error)
    assert message.strip()
    assert len(message.splitlines()) <= 20
    return False


def changed(content: bytes) -> st.SearchStrategy[bytes]:
    """The content cut off, with some bytes replaced, or with a part left out or standing twice."""
    position = st.integers(0, len(content) - 1)

    def with_bytes(changes: dict[int, int]) -> bytes:
        mutable = bytearray(content)
        for where, value in changes.items():
            mutable[where] = value
        return bytes(mutable)

    def spliced(first: int, second: int) -> bytes:
        return content[:first] + content[second:]

    return st.one_of(
        position.map(lambda length: content[:length]),
        st.dictionaries(position, st.integers(0, 255), min_size=1, max_size=8).map(with_bytes),
        st.builds(spliced, position, position),
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


@often(400)
@given(content=st.one_of(LIST_BYTES, LIST_BYTES.map(lambda more: SOUND + more), changed(SOUND)), outside=st.booleans())
def test_list_files(root, content, outside):
    (root / "train.txt").write_bytes(content)

    def read():
        lists = {"train_list": "train.txt", "test_list": "sound.txt"}
        dataset = load_source(DataConfig(name="list", root=str(root), allow_outside_root=outside, **lists))
        assert len(dataset.class_names) == 2
        for path in dataset.train.paths:
            assert outside or root.resolve() in path.resolve().parents

    is_read(read)


@often(150)
@given(names=LIST_BYTES)
def test_files_of_class_names(root, names):
    (root / "names.txt").write_bytes(names)
    lists = {"train_list": "sound.txt", "test_list": "sound.txt", "class_names": "names.txt"}
    is_read(load_source, DataConfig(name="list", root=str(root), **lists))


@often(100)
@given(content=st.binary(max_size=80))
def test_lists_of_skipped_images(content):
    def read():
        bad = from_text(content, Path("skipped_images.txt"))
        assert from_text(to_text(bad), Path("skipped_images.txt")) == bad

    is_read(read)


# ---- configs ----

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from(["folder", "2001-13-01", "0x", "1e999", ".nan", "!!float x", "!!python/name:os.system", "*a", "&a 1", "~", "1_0", "12:30"]),  # noqa: E501
)  # fmt: skip
SECTIONS = list(json.loads(json.dumps(load_recipe().__dict__, default=vars)).items())
NAMES = [(section, field) for section, fields in SECTIONS if isinstance(fields, dict) for field in fields]
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "mine.yaml"


@often(60)
@given(name=st.sampled_from(NAMES), value=VALUES, quoted=st.booleans())
def test_settings_of_any_value(config_file, name, value, quoted):
    section, field = name
    text = json.dumps(value) if quoted else str(value)
    assume(text.isascii() or text.isprintable())
    config_file.write_text(f"{section}:\n  {field}: {text}\n", encoding="utf-8", errors="surrogatepass")

    def read():
        config = load_recipe(config_file)
        copy = config_file.with_name("copy.yaml")
        copy.write_text(to_yaml(config), encoding="utf-8")
        assert load_recipe(copy) == config

    is_read(read)


YAML_PIECES = st.lists(st.sampled_from(
    ["training", "seed", "data", "name", "base", "about", ": ", "- ", "? ", "[", "]", "{", "}", ", ", "\n", "  ", "\n  ", "&a ", "*a", "!!set ",  # noqa: E501
     "!!int ", "!!timestamp ", "!!binary ", "!!python/object/apply:os.abort []", "'", '"', "|\n", "---\n", "%YAML 9\n", "#", "<<", "1", "x", "\0", "\t", "é", "2001-99-99"]  # noqa: E501
), max_size=20).map("".join)  # fmt: skip


@often(400)
@given(
    content=st.one_of(
        YAML_PIECES.map(str.encode), st.binary(max_size=60), changed(to_yaml(load_recipe()).encode()[:400])
    )
)
def test_config_files_of_any_bytes(config_file, content):
    config_file.write_bytes(content)
    is_read(load_recipe, config_file)


# ---- pictures ----


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_pictures(picture_folder, suffix):
    path = picture_folder / f"sound.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(path)
    broken = picture_folder / f"broken.{suffix}"

    @often(60)
    @given(content=changed(path.read_bytes()))
    def check(content):
        broken.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sound = problem(broken) is None
        assert is_read(decode, broken) == sound

    check()


# ---- our own model files ----


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory):
    """A model file of few bytes, so that many changes hit the description."""
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    architecture = {"name": "resnet20", "num_classes": 3, "num_experts": 2, "width": [4, 4], "image_size": 8}
    metadata = ModelMetadata(architecture, ("a", "b", "c"), (3, 2, 1), 8, 8, (0.5,) * 3, (0.5,) * 3)
    save_model(path, create_model(**architecture), metadata)
    return path, path.read_bytes()


def test_model_files_of_changed_bytes(model_bytes):
    path, content = model_bytes
    header = 8 + int.from_bytes(content[:8], "little")
    broken = path.with_name("broken.safetensors")

    @often(150)
    @given(start=changed(content[: header + 50]), whole=st.booleans())
    def check(start, whole):
        broken.write_bytes(start + content[header + 50 :] if whole else start)
        is_read(load_model_file, broken)

    check()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


def test_model_files_of_any_description(model_bytes):
    path, _ = model_bytes
    with safe_open(path, "pt") as file:
        described = json.loads(file.metadata()["longtail"])
    described.pop("sha256")  # otherwise nothing further would be looked at
    tensors = load_file(path)
    broken = path.with_name("described.safetensors")
    inner = [
        ("architecture", name)
        for name in (*described["architecture"], "pretrained", "router", "head", "scale", "depth")
    ]

    @often(250)
    @given(where=st.sampled_from([*((name,) for name in described), *inner]), value=JSON)
    def check(where, value):
        metadata = json.loads(json.dumps(described))
        (metadata if len(where) == 1 else metadata["architecture"])[where[-1]] = value
        save_file(tensors, broken, {"longtail": json.dumps(metadata)})

        def use():
            model, read = load_model_file(broken)
            assert len(read.class_names) == model.num_classes == 3
            assert model.eval()(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 2, 3)

        is_read(use)

    check()


# ---- files of torch.save ----


class Marked:
    """Tells whether anything was run."""

    def __init__(self, folder: Path):
        self.path = folder / "was-run"

    def command(self) -> str:
        return f"touch {self.path}"


HOSTILE_CALLS = st.sampled_from(
    [
        ("os", "system"), ("posix", "system"), ("subprocess", "call"), ("builtins", "eval"), ("builtins", "exec"),
        ("os", "popen"), ("builtins", "__import__"), ("torch", "load"), ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"), ("pathlib", "Path"), ("functools", "partial"), ("operator", "methodcaller"), ("nobody.knows", "It"),  # noqa: E501
        ("torch._utils", "_rebuild_tensor_v2"), ("torch", "Size"), ("collections", "OrderedDict"), ("torch.jit", "load"),  # noqa: E501
    ]
)  # fmt: skip


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    weights = {
        name: tensor[:2].clone() for name, tensor in list(load("cifar_resnet32_e3_rd1_un1").official.items())[:4]
    }
    torch.save({"state_dict": weights, "epoch": 3, "arch": "ResNet32Model"}, folder / "sound.pth")
    return folder


def converted(folder: Path) -> bool:
    return is_read(convert, folder / "broken.pth", folder / "out")


def test_checkpoints_of_changed_bytes(official):
    content = (official / "sound.pth").read_bytes()

    @often(200)
    @given(content=st.one_of(changed(content), st.binary(max_size=60).map(lambda end: b"PK\x03\x04" + end)))
    def check(content):
        (official / "broken.pth").write_bytes(content)
        converted(official)
        assert not (official / "out").exists()  # these weights are of no whole network

    check()


def with_pickle(official: Path, content: bytes) -> None:
    """The sound checkpoint with another pickle in it, everything else as it should be."""
    with zipfile.ZipFile(official / "sound.pth") as sound, zipfile.ZipFile(official / "broken.pth", "w") as broken:
        for entry in sound.infolist():
            own = entry.filename.endswith("/data.pkl")
            broken.writestr(entry.filename, content if own else sound.read(entry))


def test_changed_pickles(official):
    with zipfile.ZipFile(official / "sound.pth") as sound:
        (name,) = (name for name in sound.namelist() if name.endswith("/data.pkl"))
        content = sound.read(name)

    @often(250)
    @given(content=st.one_of(changed(content), st.binary(max_size=40).map(lambda end: b"\x80\x02" + end)))
    def check(content):
        with_pickle(official, content)
        assert not converted(official) or (official / "out").exists()

    check()


@often(200)
@given(
    call=HOSTILE_CALLS, protocol=st.integers(0, 5), place=st.sampled_from(["config", "state_dict", "epoch", "arch", ""])
)
def test_hostile_pickles(official, call, protocol, place):
    """By name, so that Python's own pickler cannot refuse to write them."""
    marked = Marked(official)
    module, name = call
    by_name = f"c{module}\n{name}\n".encode()  # the opcode GLOBAL, in every protocol
    argument = pickle.dumps(marked.command(), protocol=2)[2:-1]
    calling = by_name + argument + b"\x85R"  # a tuple of one, called
    key = pickle.dumps(place, protocol=2)[2:-1]
    content = b"\x80" + bytes([protocol]) + (b"}" + key + calling + b"s." if place else calling + b".")
    with_pickle(official, content)
    assert not converted(official)
    assert not marked.path.exists()


def test_the_hostile_pickles_would_run(official):
    """The test above can fail: Python's own unpickler runs what it writes."""
    marked = Marked(official)
    pickle.loads(b"\x80\x02cposix\nsystem\n" + pickle.dumps(marked.command(), protocol=2)[2:-1] + b"\x85R.")
    assert marked.path.exists()
    marked.path.unlink()
    assert pickle.loads(pickle.dumps(Call(os.getpid))) == os.getpid()


JSON_SETTINGS = st.dictionaries(
    st.sampled_from(["name", "arch", "trainer", "optimizer", "loss", "lr_scheduler", "data_loader"]),
    st.one_of(JSON, st.dictionaries(st.sampled_from(["args", "epochs", "type"]), st.one_of(JSON, st.dictionaries(
        st.sampled_from(["lr", "num_classes", "imb_type", "imb_factor", "data_dir", "batch_size", "step1", "step2", "gamma", "reweight_epoch"]),  # noqa: E501
        JSON, max_size=3)), max_size=3)),
    max_size=4,
)  # fmt: skip


def test_settings_of_the_original(tmp_path):
    """The config.json beside a checkpoint; a run that is made of it can be read again."""
    architecture = {"name": "resnet32", "num_classes": 100, "num_experts": 3, "width": "narrow", "head": "cosine",
                    "scale": 30.0, "expert_stages": 2}  # fmt: skip

    @often(25)
    @given(theirs=JSON_SETTINGS)
    def check(theirs):
        try:
            config = checked_types(_config("name", theirs, architecture))
        except (TypeError, ValueError, OverflowError):  # which `convert` tells with the file's name
            return
        (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_recipe(tmp_path / "config.yaml") == config

    check()

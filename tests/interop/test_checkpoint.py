"""Checkpoint files of the original code are read as data. Nothing in them is executed."""

import pathlib
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers.hostile import HOSTILE, Call
from safetensors.torch import save_file

from longtail.interop.original.checkpoint import read_original
from longtail.utils.errors import InputError

WEIGHTS = {"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3)}
TRAP = "raise SystemExit('imported')"


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Makes a class of a module that exists while a file is saved. Importing the module later ends the tests."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def make(module, name, base=object):
        kind = type(name, (base,), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[module], name, kind)
        (tmp_path / "modules" / f"{module}.py").write_text(TRAP)
        return kind

    return make


def save(path, **content):
    torch.save({"state_dict": WEIGHTS, "epoch": 200, "arch": "ResNet32Model"} | content, path)
    return path


def test_file_of_ride_with_settings(tmp_path, foreign):
    settings = foreign("parse_config", "ConfigParser")()
    settings._config = OrderedDict(name="a run", arch={"args": {"num_classes": 7}})
    settings._save_dir = pathlib.PurePosixPath("saved/models")
    path = save(tmp_path / "a.pth", config=settings, monitor_best=np.float64(0.25), optimizer={"state": {}})
    del sys.modules["parse_config"]
    file = read_original(path)
    assert "parse_config" not in sys.modules
    assert (file.epoch, file.arch) == (200, "ResNet32Model")
    assert file.config == {"name": "a run", "arch": {"args": {"num_classes": 7}}}
    torch.testing.assert_close(file.state_dict, WEIGHTS)


def test_file_of_ride_swin_with_settings(tmp_path, foreign):
    settings = foreign("yacs", "CfgNode", dict)(MODEL=1)
    settings.__dict__["frozen"] = True
    torch.save({"model": WEIGHTS, "epoch": 299, "config": settings}, tmp_path / "a.pth")
    del sys.modules["yacs"]
    file = read_original(tmp_path / "a.pth")
    assert "yacs" not in sys.modules
    assert (file.epoch, file.arch, file.config) == (300, "", {"MODEL": 1})  # RIDE-Swin counts from 0
    torch.testing.assert_close(file.state_dict, WEIGHTS)


def test_file_of_weights_alone(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth")
    file = read_original(tmp_path / "a.pth")
    torch.testing.assert_close(file.state_dict, WEIGHTS)
    assert file.epoch == 0


@pytest.mark.parametrize("number", [np.int32(7), np.float64(7), np.uint8(7)])
def test_numbers_of_numpy_are_dropped(tmp_path, number):
    file = read_original(save(tmp_path / "a.pth", monitor_best=number, epoch=number))
    assert file.epoch == 0
    torch.testing.assert_close(file.state_dict, WEIGHTS)


def test_foreign_functions_are_not_called(tmp_path, foreign):
    """A call of a function of the original's modules gives an empty object."""
    kind = foreign("parse_config", "ConfigParser")
    path = save(tmp_path / "a.pth", config=Call(kind, "touch", tmp_path.name))
    del sys.modules["parse_config"]
    assert read_original(path).config == {}
    assert "parse_config" not in sys.modules


@pytest.mark.parametrize("key", ["config", "optimizer", "state_dict"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickle_is_refused_and_not_run(tmp_path, name, key):
    marker = tmp_path / "was-run"
    path = save(tmp_path / "a.pth", **{key: HOSTILE[name](f"touch {marker}")})
    with pytest.raises(InputError, match="refused") as error:
        read_original(path)
    # Python may name a submodule (numpy.lib for numpy.load).
    library, _, function = name.partition(".")
    assert str(path) in str(error.value)
    assert f"{library}." in str(error.value)
    assert function.rpartition(".")[2] in str(error.value)
    assert not marker.exists()


def test_pythons_unpickler_runs_the_hostile_pickle(tmp_path):
    """Shows that the test above can fail."""
    marker = tmp_path / "was-run"
    pickle.loads(pickle.dumps(HOSTILE["posix.system"](f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_hostile_pickle_of_another_protocol(tmp_path, protocol):
    marker = tmp_path / "was-run"
    content = {"state_dict": WEIGHTS, "config": HOSTILE["posix.system"](f"touch {marker}")}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol)
    with pytest.raises(InputError, match="refused"):
        read_original(tmp_path / "a.pth")
    assert not marker.exists()


def test_object_scalars_of_numpy_are_dropped(tmp_path):
    """NumPy would use the bytes as the address of an object."""
    scalar = np.float64(0).__reduce__()[0]
    path = save(tmp_path / "a.pth", epoch=Call(scalar, np.dtype("O"), b"\x10\0\0\0\0\0\0\0"))
    assert read_original(path).epoch == 0


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_off_early(path):
    path.write_bytes(path.read_bytes()[:20])


def change_names(path):
    content = path.read_bytes()
    at = content.index(b"state_dict")
    path.write_bytes(content[:at] + b"\xff" * 10 + content[at + 10 :])


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/a.txt", "nothing")


DAMAGED = {
    "cut off": (cut_off, "damaged, truncated"),
    "cut off early": (cut_off_early, "damaged, truncated"),
    "changed": (change_names, "damaged"),
    "another zip": (other_zip, "damaged, truncated or not a checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a checkpoint"),
    "text": (lambda path: path.write_text("an image of a rare bird"), "not a checkpoint"),
    "old format": (
        lambda path: torch.save({"state_dict": WEIGHTS}, path, _use_new_zipfile_serialization=False),
        "before 1.6",
    ),
    "safetensors": (lambda path: save_file(WEIGHTS, path), "safetensors"),
    "list": (lambda path: torch.save([1, 2], path), "state_dict"),
    "no tensors": (lambda path: torch.save({"state_dict": {"a": 3}}, path), "state_dict"),
    "no weights": (lambda path: torch.save({"state_dict": {}}, path), "state_dict"),
    "absent": (lambda path: path.unlink(), "No such file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "directory"),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_damaged_file_is_one_line(tmp_path, how):
    path = save(tmp_path / "a.pth")
    assert read_original(path).epoch == 200
    damage, fact = DAMAGED[how]
    damage(path)
    with pytest.raises(InputError, match=fact) as error:
        read_original(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value).splitlines()) == 1
    assert "weights_only" not in str(error.value)  # PyTorch's message recommends to switch it off

"""CIFAR: the official files are read correctly, other files are refused, and no pickle is executed."""

import logging
import os
import pickle
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from helpers.cifar_files import LAYOUTS, WRITERS, contents, write
from helpers.hostile import Call
from torchvision.datasets.utils import download_url

from longtail.config.schema import DataConfig
from longtail.data.sources import cifar, load_source
from longtail.data.sources.cifar import CLASS_NAMES
from longtail.utils.errors import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def download(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)


def load(name, root):
    return load_source(DataConfig(name=name, root=str(root)))


def write_archive(archive, folder, name="cifar-100-python"):
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, f"w:{archive.suffix[1:]}") as tar:
        tar.add(folder, name)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_all_files_are_read(tmp_path, name, writer):
    files = contents(name)
    write(tmp_path, name, files, WRITERS[writer])
    data, layout = load(name, tmp_path), LAYOUTS[name]
    assert data.class_names == CLASS_NAMES[name]
    assert len(set(data.class_names)) == layout.num_classes
    assert data.val is None
    for split, names in ((data.train, layout.train), (data.test, layout.test)):
        assert split.labels.tolist() == [label for file in names for label in files[file][layout.labels]]
        assert split.labels.dtype == np.int64
        assert split.pixels.dtype == np.uint8
        assert split.pixels.flags.c_contiguous
        flat = np.concatenate([files[file]["data"] for file in names])
        assert split.pixels.shape == (len(flat), 32, 32, 3)
        # A row of the file has 1024 red, 1024 green and 1024 blue values, line by line.
        np.testing.assert_array_equal(split.pixels.transpose(0, 3, 1, 2).reshape(-1, 3072), flat)


def test_root_can_be_the_official_folder(tmp_path):
    assert len(load("cifar100", write(tmp_path, "cifar100")).train) == 4


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_archive_in_root_is_unpacked(tmp_path, compression):
    folder, root = write(tmp_path / "elsewhere", "cifar100"), tmp_path / "data"
    write_archive(root / f"cifar-100-python.tar.{compression}", folder)
    assert len(load("cifar100", root).train) == 4
    assert (root / "cifar-100-python/meta").is_file()


def test_several_processes_can_unpack_at_once(tmp_path, monkeypatch):
    folder, root = write(tmp_path / "elsewhere", "cifar100"), tmp_path / "data"
    write_archive(root / "cifar-100-python.tar.gz", folder)
    all_have_unpacked, unpack = threading.Barrier(3), tarfile.TarFile.extractall

    def unpack_and_wait(*arguments, **options):
        unpack(*arguments, **options)
        all_have_unpacked.wait(timeout=60)

    monkeypatch.setattr(tarfile.TarFile, "extractall", unpack_and_wait)
    with ThreadPoolExecutor(3) as pool:
        assert [len(data.train) for data in pool.map(load, ["cifar100"] * 3, [root] * 3)] == [4, 4, 4]
    assert sorted(path.name for path in root.iterdir()) == ["cifar-100-python", "cifar-100-python.tar.gz"]


# ---- download ----


def test_download_is_unpacked(tmp_path, monkeypatch):
    folder = write(tmp_path / "server", "cifar10")

    def download(url, root, md5):
        assert url.endswith("cifar-10-python.tar.gz")
        write_archive(Path(root, "cifar-10-python.tar.gz"), folder, "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    load("cifar10", tmp_path / "new/data")
    assert [path.name for path in (tmp_path / "new/data").iterdir()] == ["cifar-10-batches-py"]


def test_silent_server_times_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        monkeypatch.setattr("torchvision.datasets.CIFAR10.url", url)
        monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
        monkeypatch.setattr("longtail.data.sources.cifar.SERVER_TIMEOUT", 0.2)
        with pytest.raises(InputError, match="timed out"):
            load("cifar10", tmp_path)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", LAYOUTS)
def test_error_without_files_and_network_names_the_files(tmp_path, name):
    root = tmp_path / "absent"
    with pytest.raises(InputError) as error:
        load(name, root)
    for fact in (f"{LAYOUTS[name].folder}/", ".tar.gz", str(root), "data.root", "no network"):
        assert fact in str(error.value)
    assert "\n" not in str(error.value)
    assert not root.exists()


# ---- damaged files ----


@pytest.mark.parametrize("kind", ["cut", "no archive", "other folder", "path outside", "too large"])
def test_bad_archive_leaves_nothing(tmp_path, kind, monkeypatch):
    folder, root = write(tmp_path / "elsewhere", "cifar100"), tmp_path / "data"
    archive = root / "cifar-100-python.tar.gz"
    names = {"other folder": "mnist", "path outside": "../cifar-100-python"}
    write_archive(archive, folder, names.get(kind, "cifar-100-python"))
    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:-2000])
    if kind == "too large":
        monkeypatch.setattr(cifar, "MAX_UNPACKED", 1000)
    if kind == "no archive":
        archive.write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz"):
        load("cifar100", root)
    assert list(root.iterdir()) == [archive]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "elsewhere"]


def test_missing_file_is_named(tmp_path):
    (write(tmp_path, "cifar10") / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"data_batch_3"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"<html>404</html>", lambda b: pickle.dumps([1])],
    ids=["cut", "cut early", "empty", "web page", "list"],
)
def test_damaged_file_is_named(tmp_path, damage):
    path = write(tmp_path, "cifar100") / "test"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        load("cifar100", tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("data", np.zeros(shape, np.uint8)) for shape in ((4, 3071), (4, 3, 32, 32), (3, 3072))],
        ("data", np.zeros((4, 3072), np.float32)),
        *[("fine_labels", labels) for labels in ([0, 1, 2, 100], [0, 1, 2, -1], [0.0, 1.0, 2.0, 3.5], ["a"] * 4, [])],
        *[("fine_labels", labels) for labels in ([[1], [2], [3], [4]], [[1, 2], [3], [4], [5]], 3)],
        *[("data", None), ("fine_labels", None)],
    ],
)
def test_wrong_content_is_refused(tmp_path, key, value):
    files = contents("cifar100")
    files["train"][key] = value
    write(tmp_path, "cifar100", files)
    with pytest.raises(InputError, match="train: "):
        load("cifar100", tmp_path)


def test_unofficial_files_give_a_warning(tmp_path, caplog):
    write(tmp_path, "cifar100")
    with caplog.at_level(logging.WARNING):
        load("cifar100", tmp_path)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert all("MD5" in warning for warning in warnings)


# ---- hostile pickles ----


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", ["system", "eval"])
def test_no_function_is_called(tmp_path, protocol, function):
    trace = tmp_path / "trace"
    attack = {
        "system": Call(os.system, f"touch {trace}"),
        "eval": Call(eval, f"open({str(trace)!r}, 'w')"),
    }[function]
    content = pickle.dumps({"data": attack, "fine_labels": []}, protocol=protocol)
    (write(tmp_path, "cifar100") / "train").write_bytes(content)
    with pytest.raises(InputError, match=rf"train: .*refused.*\.{function},"):
        load("cifar100", tmp_path)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists(), "the attack must work on an ordinary unpickler"


def test_no_function_is_called_in_an_array_of_objects(tmp_path):
    trace = tmp_path / "trace"
    array = np.array([Call(os.system, f"touch {trace}")], dtype=object)
    (write(tmp_path, "cifar100") / "train").write_bytes(pickle.dumps({"data": array, "fine_labels": []}))
    with pytest.raises(InputError, match="refused"):
        load("cifar100", tmp_path)
    assert not trace.exists()

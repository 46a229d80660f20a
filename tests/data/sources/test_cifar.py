"""CIFAR's files: read as they are, refused where they are not CIFAR, and never executed."""

import logging
import os
import pickle
import socket
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from helpers.cifar_files import WRITERS, contents, write
from torchvision.datasets.utils import download_url

from longtail.data.sources.cifar import LAYOUTS, cifar, read_pickle
from longtail.utils.errors import InputError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def download(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_reads_every_file(tmp_path, name, writer):
    files = contents(name)
    write(tmp_path, name, files, WRITERS[writer])
    data = cifar(name, tmp_path)
    layout = LAYOUTS[name]
    assert data.class_names == tuple(f"class {k}" for k in range(layout.num_classes))
    assert data.val is None
    for split, parts in ((data.train, layout.train), (data.test, layout.test)):
        assert split.labels.tolist() == [label for file in parts for label in files[file][layout.labels]]
        assert split.labels.dtype == np.int64
        assert split.pixels.dtype == np.uint8
        assert split.pixels.flags.c_contiguous
        flat = np.concatenate([files[file]["data"] for file in parts])
        assert split.pixels.shape == (len(flat), 32, 32, 3)
        # A row holds 1024 red, 1024 green and 1024 blue values, each line by line.
        assert split.pixels[2, 5, 7].tolist() == [flat[2, channel * 1024 + 5 * 32 + 7] for channel in range(3)]
        np.testing.assert_array_equal(split.pixels.transpose(0, 3, 1, 2).reshape(-1, 3072), flat)


def test_root_may_be_the_folder_itself(tmp_path):
    assert len(cifar("cifar100", write(tmp_path, "cifar100")).train) == 4


@pytest.mark.parametrize("compression", ["gz", "xz"])
def test_archive_is_unpacked(tmp_path, compression):
    write(tmp_path / "elsewhere", "cifar100")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / f"data/cifar-100-python.tar.{compression}", f"w:{compression}") as tar:
        tar.add(tmp_path / "elsewhere/cifar-100-python", "cifar-100-python")
    assert len(cifar("cifar100", tmp_path / "data").train) == 4
    assert (tmp_path / "data/cifar-100-python/meta").is_file()


def test_a_server_that_says_nothing_is_given_up(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            "torchvision.datasets.CIFAR10.url", f"http://127.0.0.1:{silent.getsockname()[1]}/cifar.tar.gz"
        )
        monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
        monkeypatch.setattr("longtail.data.sources.cifar.SERVER_PATIENCE", 0.2)
        with pytest.raises(InputError, match=r"could not be downloaded .*timed out"):
            cifar("cifar10", tmp_path)
    assert socket.getdefaulttimeout() is None


def test_download_is_unpacked(tmp_path, monkeypatch):
    def download(url, root, md5):
        assert url.endswith("cifar-10-python.tar.gz")
        write(tmp_path / "server", "cifar10")
        with tarfile.open(Path(root, "cifar-10-python.tar.gz"), "w:gz") as tar:
            tar.add(tmp_path / "server/cifar-10-batches-py", "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    cifar("cifar10", tmp_path / "new/data")
    assert [path.name for path in (tmp_path / "new/data").iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("kind", ["cut", "no archive", "other content", "climbs out"])
def test_bad_archives_leave_nothing(tmp_path, kind):
    root = tmp_path / "data"
    root.mkdir()
    archive = root / "cifar-100-python.tar.gz"
    write(tmp_path / "elsewhere", "cifar100")
    name = {"other content": "mnist", "climbs out": "../cifar-100-python"}.get(kind, "cifar-100-python")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "elsewhere/cifar-100-python", name)
    if kind == "cut":
        archive.write_bytes(archive.read_bytes()[:-2000])
    if kind == "no archive":
        archive.write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match=r"cifar-100-python\.tar\.gz: cannot be unpacked"):
        cifar("cifar100", root)
    assert list(root.iterdir()) == [archive]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "elsewhere"]


@pytest.mark.parametrize("names", [["a"] * 7, 3, None])
def test_class_names_must_fit(tmp_path, names):
    files = contents("cifar100")
    files["meta"]["fine_label_names"] = names
    write(tmp_path, "cifar100", files)
    with pytest.raises(InputError, match="class names"):
        cifar("cifar100", tmp_path)


@pytest.mark.parametrize("labels", [[[1, 2], [3], [4], [5]], [[1], [2], [3], [4]], ["a"] * 4, [1.5] * 4, []])
def test_labels_must_be_numbers(tmp_path, labels):
    files = contents("cifar100")
    files["train"]["fine_labels"] = labels
    write(tmp_path, "cifar100", files)
    with pytest.raises(InputError, match="labels"):
        cifar("cifar100", tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_absent_and_offline(tmp_path, name):
    with pytest.raises(InputError) as error:
        cifar(name, tmp_path)
    layout = LAYOUTS[name]
    for said in (*layout.train, *layout.test, layout.meta, layout.folder, f"{layout.archive}.gz", str(tmp_path)):
        assert said in str(error.value)
    assert "no network" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_file_is_missing(tmp_path):
    (write(tmp_path, "cifar10") / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"data_batch_3.*every file"):
        cifar("cifar10", tmp_path)


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", ["system", "eval"])
def test_nothing_is_executed(tmp_path, protocol, function):
    trace = tmp_path / "trace"
    attack = {
        "system": Attack(os.system, f"touch {trace}"),
        "eval": Attack(eval, f"open({str(trace)!r}, 'w')"),
    }[function]
    content = pickle.dumps({"data": attack}, protocol=protocol)
    with pytest.raises(InputError) as error:
        read_pickle(content, Path("train"))
    assert str(error.value).startswith("train: refused: the pickle asks for ")
    assert f".{function}," in str(error.value)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists(), "the attack is a real one"


def test_nothing_is_executed_inside_an_array_of_objects(tmp_path):
    trace = tmp_path / "trace"
    array = np.array([Attack(os.system, f"touch {trace}")], dtype=object)
    with pytest.raises(InputError, match="refused"):
        read_pickle(pickle.dumps({"data": array}), Path("train"))
    assert not trace.exists()


def damage_test_file(folder: Path, change) -> None:
    path = folder / "test"
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [lambda b: b[:-100], lambda b: b[:50], lambda b: b"", lambda b: b"<html>404</html>"],
    ids=["cut", "cut early", "empty", "web page"],
)
def test_damaged_file(tmp_path, change):
    damage_test_file(write(tmp_path, "cifar100"), change)
    with pytest.raises(InputError, match="test: damaged or not a pickle"):
        cifar("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data", np.zeros((4, 3071), np.uint8), r"expected uint8 images of shape \(n, 3072\).*\(4, 3071\)"),
        ("data", np.zeros((4, 3, 32, 32), np.uint8), "expected uint8 images"),
        ("data", np.zeros((4, 3072), np.float32), "expected uint8 images"),
        ("data", np.zeros((3, 3072), np.uint8), "n labels"),
        ("fine_labels", [0, 1, 2, 100], "whole numbers from 0 to 99"),
        ("fine_labels", [0, 1, 2, -1], "whole numbers from 0 to 99"),
        ("fine_labels", [0.0, 1.0, 2.0, 3.5], "whole numbers from 0 to 99"),
        ("fine_labels", ["a", "b", "c", "d"], "whole numbers from 0 to 99"),
    ],
)
def test_wrong_content(tmp_path, key, value, message):
    files = contents("cifar100")
    files["train"][key] = value
    write(tmp_path, "cifar100", files)
    with pytest.raises(InputError, match=f"train: .*{message}"):
        cifar("cifar100", tmp_path)


@pytest.mark.parametrize("key", ["data", "fine_labels"])
def test_not_a_cifar_file(tmp_path, key):
    files = contents("cifar100")
    del files["test"][key]
    write(tmp_path, "cifar100", files)
    with pytest.raises(InputError, match=f"not a CIFAR file, it has no '{key}'"):
        cifar("cifar100", tmp_path)


def test_a_pickled_list_is_not_a_cifar_file():
    with pytest.raises(InputError, match="it holds a list"):
        read_pickle(pickle.dumps([1, 2]), Path("train"))


def test_another_checksum_is_only_a_warning(tmp_path, caplog):
    write(tmp_path, "cifar100")
    with caplog.at_level(logging.WARNING):
        cifar("cifar100", tmp_path)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert all("differs from the official file" in message for message in warned)


def test_checksums_are_those_torchvision_knows():
    import torchvision.datasets

    for name, official in (("cifar10", torchvision.datasets.CIFAR10), ("cifar100", torchvision.datasets.CIFAR100)):
        layout = LAYOUTS[name]
        assert list(layout.train.items()) == [tuple(entry) for entry in official.train_list]
        assert list(layout.test.items()) == [tuple(entry) for entry in official.test_list]
        assert (layout.folder, layout.meta) == (official.base_folder, official.meta["filename"])
        assert layout.class_names == official.meta["key"]

"""Atomic writes, and safetensors files with a checksum."""

import errno

import pytest
import torch

from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors


@pytest.mark.parametrize("failing", ["longtail.utils.files.os.fsync", "longtail.utils.files.save_file"])
def test_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch, failing):
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"n": 1})
    content = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises(InputError, match=rf"{path.name}.*No space left on device"):
        write_tensors(path, {"a": torch.zeros(3)}, {"n": 2}, keep=tmp_path / "before")
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_tensor_files(tmp_path):
    """Tensors and metadata are read as written; the same content gives the same file; every flipped bit is found."""
    path, kept = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {
        "x": torch.randn(3, 4),
        "n": torch.tensor(3),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    metadata = {"list": [1, 2.5, None, "ü"]}
    write_tensors(path, tensors, metadata)
    read, read_metadata = read_tensors(path)
    assert read_metadata == metadata
    assert all(torch.equal(value, read[name]) for name, value in tensors.items())
    content = path.read_bytes()
    write_tensors(path, tensors, metadata, keep=kept)
    assert path.read_bytes() == kept.read_bytes() == content
    for position in range(0, len(content), 37):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        with pytest.raises(InputError, match=r"a\.safetensors"):
            read_tensors(path)

"""Locks on folders, also where the file system has none."""

import errno
import fcntl
import os

import pytest

from longtail.runs.run import Run
from longtail.utils.errors import InputError
from longtail.utils.files import UNFINISHED
from longtail.utils.locks import LOCK_FILE, acquire_lock, is_locked


def test_a_folder_is_locked_once(tmp_path):
    assert not is_locked(tmp_path)
    lock = acquire_lock(tmp_path)
    assert is_locked(tmp_path)
    with pytest.raises(InputError, match="in use"), Run(tmp_path).lock():
        pass
    lock.release()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_file_systems_without_locks(tmp_path, monkeypatch, caplog, number):
    """A lock file that another machine or version left behind does not block the run."""

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    run = Run(tmp_path / "run")
    run.folder.mkdir()
    (run.folder / LOCK_FILE).touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with run.lock():
            assert not run.in_use
    (line,) = {record.getMessage() for record in caplog.records}
    assert str(run.folder) in line
    assert os.strerror(number) in line


def test_a_folder_that_is_not_writable_is_not_in_use(tmp_path):
    """An experiment would wait for the end of its use."""
    (tmp_path / LOCK_FILE).mkdir()  # as a file of somebody else, which root could open
    assert not is_locked(tmp_path)
    with pytest.raises(InputError, match=r"is not writable: "), Run(tmp_path).lock():
        pass


@pytest.mark.parametrize("folder", [".", "epochs"])
def test_files_that_a_killed_process_was_writing_are_removed(tmp_path, folder):
    leftover = tmp_path / folder / f".model.safetensors.123{UNFINISHED}"
    leftover.parent.mkdir(exist_ok=True)
    leftover.touch()
    with Run(tmp_path).lock():
        assert not leftover.exists()

"""Interrupts a process at one of its writes: all that it can leave on the disk."""

import errno
import os
import signal
from pathlib import Path

from longtail.utils import files

KILL, FULL_DISK = "kill", "full disk"


def interrupt(how: str, number: int, folder: Path) -> None:
    """Lets this process run in a folder, and interrupts it at its ``number``-th write (from 1).

    What it would have written is noted in a file beside the folder. ``how`` is

    - "kill": SIGKILL before a file is renamed or removed. What is left after it is what is left before the next one.
    - "full disk": a file cannot be written.
    """
    os.chdir(folder)
    left, note = number, folder.with_suffix(".txt")

    def count(what: str) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            note.write_text(what)
        return left == 0

    if how == FULL_DISK:
        sync = files._sync

        def sync_or_fail(file):
            if count(Path(file.name).name):
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        files._sync = sync_or_fail
        return

    rename, unlink = Path.replace, Path.unlink

    def replace_or_die(path, target):
        if count(Path(target).name):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    def unlink_or_die(path, missing_ok=False):
        if path.exists() and not path.name.endswith(files.UNFINISHED) and count(f"{path.name}, removed"):
            os.kill(os.getpid(), signal.SIGKILL)
        unlink(path, missing_ok=missing_ok)

    Path.replace, Path.unlink = replace_or_die, unlink_or_die

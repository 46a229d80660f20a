"""Runs a command of longtail and kills it at a certain point: python dying.py POINT FILE NUMBER command ..."""

import os
import signal
import sys
from pathlib import Path

from longtail.cli import main
from longtail.utils import files


def die_at(point: str, name: str, number: int) -> None:
    """The ``number``-th time (from 1) that a file of this name is written.

    Points are: in the middle of its content, before it takes the place of the file before, between the moments when the
    file before has left and the new one has come, and after that.
    """
    left = number

    def perhaps_die(path: object) -> None:
        nonlocal left
        if str(path).startswith(name) or f".{name}" in str(path):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    save_file, replace, synced = files.save_file, Path.replace, files._sync_folder

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata)
        if point == "in the middle":
            os.truncate(path, path.stat().st_size // 2)
            perhaps_die(path.name)

    def replacing(self, target):
        coming = self.name.startswith(".")
        if (point, coming) == ("before", True):
            perhaps_die(self.name)
        made = replace(self, target)
        if (point, coming) == ("between", False):
            perhaps_die(self.name)
        if (point, coming) == ("after", True):
            perhaps_die(target.name)
        return made

    files.save_file, Path.replace, files._sync_folder = half, replacing, synced


if __name__ == "__main__":
    die_at(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))

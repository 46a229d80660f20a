"""Runs a command of longtail again and again, and interrupts it at each of its writes in turn.

Usage: python every_write.py HOW START OUTPUT command ...

For n = 1, 2, ... the folder START is copied to OUTPUT/n, where the command runs and is interrupted at its n-th write;
then it runs a second time to its end. The last folder, OUTPUT/expected, is of a command that was not interrupted.
Prints one line of JSON for each n: the write, and the exit codes of both commands. HOW is

- "kill": SIGKILL before or after a file is renamed, or after it is removed;
- "full disk": a file cannot be written.

If START has a script named ``train``, it replaces the trainings of an experiment, which are processes of their own.
"""

import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

from longtail import api  # noqa: F401  # imported once, not in each of the processes
from longtail.cli import main
from longtail.evaluation import evaluator
from longtail.reports import results
from longtail.utils import files


class Interruption:
    """Counts writes, and interrupts the ``number``-th one."""

    def __init__(self, how: str, number: int):
        self.left, self.note = number, Path(f"../{number}.txt")
        if how == "kill":
            rename, unlink = Path.replace, Path.unlink

            def replace_or_die(path, target):
                self._kill(f"before {Path(target).name} is replaced")
                result = rename(path, target)
                self._kill(f"after {Path(target).name} is replaced")
                return result

            def unlink_or_die(path, missing_ok=False):
                existed = path.exists()
                unlink(path, missing_ok=missing_ok)
                if existed and not path.name.endswith(files.UNFINISHED):
                    self._kill(f"after {path.name} is removed")

            Path.replace, Path.unlink = replace_or_die, unlink_or_die
        else:
            sync = files._sync

            def sync_or_fail(file):
                self._count(f"{Path(file.name).name} is written", self._fail)
                sync(file)

            files._sync = sync_or_fail

    def _count(self, where, interrupt):
        self.left -= 1
        if self.left == 0:
            self.note.write_text(where)
            interrupt()

    def _kill(self, where):
        self._count(where, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def _fail(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def run(folder: Path, command: list[str], interruption=None) -> int:
    """Runs a command in a process of its own, in a folder; returns its exit code, negative if it was killed."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        # Without report, plots and long speed measurements, which take most of the time of a short run.
        results.write_report = results.write_html = lambda *arguments, **options: None
        evaluator.SPEED_SECONDS = 0.01
        if Path("train").exists():
            sys.executable = str(Path("train").resolve())
        output = os.open(f"../{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = 1
        try:
            if interruption is not None:
                Interruption(*interruption)
            code = main(command)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupt_everywhere(how: str, start: Path, output: Path, command: list[str]) -> None:
    number = 0
    while True:
        number += 1
        folder = output / str(number)
        shutil.copytree(start, folder)
        first = run(folder, command, (how, number))
        note = output / f"{number}.txt"
        if not note.exists():
            assert first == 0, (output / f"{number}.log").read_text()
            folder.rename(output / "expected")
            return
        shutil.copytree(folder, output / f"{number} interrupted")
        print(json.dumps([note.read_text(), first, run(folder, command)]), flush=True)


if __name__ == "__main__":
    interrupt_everywhere(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve(), sys.argv[4:])

"""Commands of longtail in processes of their own that start at once: forks of a server that has imported the package.

They write neither report nor plots, as all tests that do not ask for them.
"""

import atexit
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from helpers.runs import skip_reports
from torch.distributed import TCPStore

from longtail.cli import main

SERVER = multiprocessing.get_context("forkserver")
# What a command imports when it needs it is imported once, too.
PRELOADED = ["longtail.api", "sklearn.datasets", "sklearn.feature_extraction", "torch.utils.flop_counter"]
SERVER.set_forkserver_preload(PRELOADED)


def nothing() -> None:
    """Prepares nothing."""


class Job:
    """A command that runs, and leads a session of processes; ``prepare`` is called in its process before it."""

    def __init__(self, command: list, folder: Path, prepare: Callable[[], None] = nothing):
        folder.mkdir(exist_ok=True)
        self._files = folder / "out.txt", folder / "err.txt"
        for path in self._files:
            path.write_text("")
        arguments = [str(word) for word in command]
        self._process = SERVER.Process(target=_run, args=(arguments, *self._files, prepare))
        self._process.start()
        self.pid = self._process.pid

    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait(self, timeout: float = 300) -> int:
        """Returns the exit code, negative if a signal ended the process; an error if it takes too long, in seconds."""
        self._process.join(timeout)
        if self.is_running():
            self.end(0)
            raise TimeoutError(f"no end after {timeout} seconds: {self.err}")
        return self._process.exitcode

    def end(self, timeout: float) -> int:
        """Kills the process if it does not end in time, in seconds; returns the exit code."""
        self._process.join(timeout)
        self.kill()
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        if self.is_running():
            self._process.kill()

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()


def _run(command: list[str], out: Path, err: Path, prepare: Callable[[], None]) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    multiprocessing.set_start_method(None, force=True)  # the default, not that of this process
    torch.set_num_threads(1)
    skip_reports(setattr)
    prepare()
    try:
        sys.exit(main(command))
    finally:
        atexit._run_exitfuncs()  # as at the end of Python, which multiprocessing leaves in another way


def run(command: list, folder: Path, prepare: Callable[[], None] = nothing) -> Job:
    """Runs a command to its end, which must be successful."""
    job = Job(command, folder, prepare)
    assert job.wait() == 0, job.err
    return job


def run_as_two(command: list, folder: Path, prepare: Callable[[], None] = nothing) -> tuple[list[int], str, str]:
    """Runs a command in two processes of one training, with the variables that torchrun sets.

    If the first one fails, the other one is killed after ten seconds. Returns their exit codes, and the outputs and the
    errors of both.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # in neither of them, as with torchrun
    both = [Job(command, folder / f"rank {rank}", partial(_join_two, rank, store.port, prepare)) for rank in range(2)]
    try:
        codes = [both[0].wait()]
        codes.append(both[1].wait() if codes[0] == 0 else both[1].end(10))
    finally:
        for job in both:
            job.kill()
    return codes, "".join(job.out for job in both), "".join(job.err for job in both)


def _join_two(rank: int, port: int, prepare: Callable[[], None]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    prepare()

"""This process: the signals that ask it to stop, and the processors that it may use."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", None)
"""The terminal was closed, or the connection to it was lost"""

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; what Slurm can send earlier (--signal=USR1@120); hang-up"""

EXIT_STOPPED = 75
"""Exit code of a stopped process, EX_TEMPFAIL of sysexits.h: it is saved, and the same command resumes it"""

SECOND_SIGNAL = 1.0
"""Seconds after which another Ctrl-C counts as a second one"""


class Stopped(KeyboardInterrupt):  # not an error: a signal asked for it
    """Training stopped between two steps because a signal asked for it; its state is saved."""


class Signals:
    """Turns signals into KeyboardInterrupt or, within `postponed`, into the flag ``asked_to_stop``."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._postponing = False
        self._first = 0.0
        self._terminals: list[int] = []

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Within it, this object handles the signals; only in the main thread, where Python delivers them.

        A hang-up that is ignored (nohup) stays ignored, and handlers that are not Python's stay.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._terminals = [output for output in (1, 2) if os.isatty(output)]
        before = {number: signal.signal(number, self._handle) for number in filter(_is_ours, STOPPING)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within it, a signal sets ``asked_to_stop``. A second Ctrl-C interrupts at once.

        Raises:
            Stopped: at the end, if a signal came and nothing has stopped since.
        """
        self._postponing = True
        try:
            yield
        finally:
            self._postponing = False
        if self.asked_to_stop:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == HANG_UP:
            self._redirect_output()
        if not self._postponing:
            raise KeyboardInterrupt
        now = time.monotonic()
        if self.asked_to_stop:
            # Schedulers and torchrun forward the same signal several times at once.
            if number == signal.SIGINT and now - self._first > SECOND_SIGNAL:
                raise KeyboardInterrupt
            return
        self.asked_to_stop, self._first = True, now
        if number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"\nStopping after this step; Ctrl-C again stops at once.\n")  # print is not safe in a handler

    def _redirect_output(self) -> None:
        """Redirects output: writing to a closed terminal is an error, which would come before the training is saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminals:
            os.dup2(nowhere, output)
        os.close(nowhere)


def num_processors() -> int:
    """Returns the number of processors that this process may use; on a cluster, fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_ours(number: int) -> bool:
    handler = signal.getsignal(number)
    return handler is not None and not (number == HANG_UP and handler == signal.SIG_IGN)

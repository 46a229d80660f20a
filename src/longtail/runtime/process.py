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
"""The terminal has gone: its window was closed, or the connection to it broke"""

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; what Slurm can be told to send earlier (--signal=USR1@120); hang-up"""

TWICE = 1.0
"""Seconds after which a second Ctrl-C is meant as one"""


class Stopped(KeyboardInterrupt):  # no error: it was asked for
    """Training has stopped between two steps, as a signal asked for."""


class Signals:
    """Turns signals into KeyboardInterrupt, or, within `postponed`, into a wish to be looked at later."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._postponing = False
        self._first = 0.0
        self._terminals: list[int] = []

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Within it, this object gets the signals. Only in the main thread, to which Python gives them.

        A hang-up that is ignored stays so, as nohup wants it. So do handlers that are not Python's.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._terminals = [output for output in (1, 2) if os.isatty(output)]
        before = {number: signal.signal(number, self._arrived) for number in filter(_is_ours, STOPPING)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within it, a signal sets ``asked_to_stop``, and stops at the end at the latest; a second Ctrl-C, at once.

        Raises:
            Stopped: at the end, where nobody has looked at ``asked_to_stop`` since.
        """
        self._postponing = True
        try:
            yield
        finally:
            self._postponing = False
        if self.asked_to_stop:
            raise Stopped

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if number == HANG_UP:
            self._write_to_no_terminal()
        if not self._postponing:
            raise KeyboardInterrupt
        now = time.monotonic()
        if self.asked_to_stop:
            # Schedulers and torchrun pass the same signal on, several times and at once: that asks for nothing new.
            if number == signal.SIGINT and now - self._first > TWICE:
                raise KeyboardInterrupt
            return
        self.asked_to_stop, self._first = True, now
        if number == signal.SIGINT and sys.stderr.isatty():
            os.write(2, b"\nStopping after this step; Ctrl-C again stops at once.\n")  # print is not for handlers

    def _write_to_no_terminal(self) -> None:
        """Writing to one that has gone is an error, and would come before the training is saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminals:
            os.dup2(nowhere, output)
        os.close(nowhere)


def num_processors() -> int:
    """Those it may use, which on a cluster are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_ours(number: int) -> bool:
    handler = signal.getsignal(number)
    return handler is not None and not (number == HANG_UP and handler == signal.SIG_IGN)

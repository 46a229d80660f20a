"""This process: the signals that ask it to stop, and the processors that it may use."""

import multiprocessing
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

HANG_UP = getattr(signal, "SIGHUP", None)
"""The terminal was closed, or the connection to it was lost"""

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; what Slurm can send earlier (--signal=USR1@120); hang-up"""

EXIT_STOPPED = 75
"""Exit code of a stopped process, EX_TEMPFAIL of sysexits.h: it is saved, and the same command resumes it"""

CPU_INFO = Path("/proc/cpuinfo")
"""What Linux says about the processor"""

SECOND_SIGNAL = 1.0
"""Seconds after which another Ctrl-C counts as a second one"""


GRACE = 20.0
"""Seconds after a signal in which a training must come to a point where it can be saved; schedulers kill after 30"""


class Stopped(KeyboardInterrupt):  # not an error: a signal asked for it
    """Training stopped between two steps because a signal asked for it; its state is saved."""


class Signals:
    """Turns signals into KeyboardInterrupt or, within `postponed`, into the flag ``asked_to_stop``.

    Args:
        grace: seconds after the first signal until the process ends with `EXIT_STOPPED`, unless `answered` is called.
            It may hang where Python runs no handler, such as in a call that waits for another process. None: no limit.
    """

    def __init__(self, grace: float | None = None) -> None:
        self.asked_to_stop = False
        self._grace, self._answered, self._is_watched = grace, threading.Event(), False
        self._postponing = self._interruptible = False
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
            with self._watched(set(before)):
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def answered(self) -> None:
        """Says that the signal is obeyed; saving may take its time."""
        self._answered.set()

    @contextmanager
    def _watched(self, numbers: set[int]) -> Iterator[None]:
        """Within it, a thread sees the signals even while the main thread hangs."""
        if self._grace is None or self._is_watched:
            yield
            return
        self._is_watched = True
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader, numbers), daemon=True).start()
        try:
            yield
        finally:
            self.answered()
            self._is_watched = False
            signal.set_wakeup_fd(before)
            writer.close()

    def _watch(self, reader: socket.socket, numbers: set[int]) -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in numbers and not self._answered.wait(self._grace):
                    for child in multiprocessing.active_children():
                        child.kill()
                    os.write(2, b"longtail: stopped while waiting; the same command resumes from the last checkpoint\n")
                    os._exit(EXIT_STOPPED)

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

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within it, a signal interrupts at once, also within `postponed`: nothing is half-done here.

        Raises:
            KeyboardInterrupt: a signal came, here or before.
        """
        self._interruptible = True
        try:
            if self.asked_to_stop:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

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
        if self._interruptible:
            self._interruptible = False  # once
            raise KeyboardInterrupt

    def _redirect_output(self) -> None:
        """Redirects output: writing to a closed terminal is an error, which would come before the training is saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in self._terminals:
            os.dup2(nowhere, output)
        os.close(nowhere)


def num_processors() -> int:
    """Returns the number of processors that this process may use; on a cluster, fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Returns how many threads decode images: one for each processor, at most 8."""
    return min(num_processors(), 8)


def processor_info(*names: str) -> str:
    """Returns what Linux says about the processor under the first of these names; empty if it says nothing."""
    with suppress(OSError), CPU_INFO.open(encoding="utf-8") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return ""


def processor_name() -> str:
    """Returns the name of the processor, or its kind."""
    return processor_info("model name") or platform.processor() or platform.machine()


def _is_ours(number: int) -> bool:
    handler = signal.getsignal(number)
    return handler is not None and not (number == HANG_UP and handler == signal.SIG_IGN)

"""Signals that ask a training to stop: it finishes its step, saves, and says how to go on."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C; what schedulers send before they kill; and what Slurm can be told to send earlier (--signal=USR1@120)."""


class Stopped(KeyboardInterrupt):  # no error: it was asked for
    """Training has stopped between two steps, as a signal asked for."""


class Signals:
    """Turns signals into KeyboardInterrupt, or, within `postponed`, into a wish to be looked at later."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._postponing = False

    @contextmanager
    def caught(self) -> Iterator["Signals"]:
        """Within it, this object gets the signals. Only in the main thread, to which Python gives them."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._arrived) for number in STOPPING}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within it, the first signal sets ``asked_to_stop``; the second interrupts at once all the same."""
        self._postponing = True
        try:
            yield
        finally:
            self._postponing = False

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if not self._postponing or self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True
        if number == signal.SIGINT and sys.stderr.isatty():
            print("\nStopping after this step; Ctrl-C again stops at once.", file=sys.stderr)

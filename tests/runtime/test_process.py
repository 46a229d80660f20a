"""Signals: when they interrupt, and when training stops after its step."""

import os
import signal

import pytest
from helpers.runs import python

from longtail.runtime import process
from longtail.runtime.process import EXIT_STOPPED, Signals, Stopped, num_processors, processor_info


def send(number):
    os.kill(os.getpid(), number)


def test_signals(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with Signals().caught() as signals:
        with signals.postponed():
            send(signal.SIGTERM)
            assert signals.asked_to_stop
            # Schedulers and torchrun send the same signal several times.
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                send(number)
            monkeypatch.setattr("longtail.runtime.process.SECOND_SIGNAL", -1.0)
            with pytest.raises(KeyboardInterrupt):  # a second Ctrl-C, later
                send(signal.SIGINT)
            signals.asked_to_stop = False
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        with pytest.raises(Stopped), signals.postponed():  # nothing has stopped within it
            send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_waits_is_interrupted_at_once():
    with Signals().caught() as signals, signals.postponed():
        with pytest.raises(KeyboardInterrupt), signals.interruptible():
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # not here
        with pytest.raises(KeyboardInterrupt), signals.interruptible():  # a signal that came before
            pass
        signals.asked_to_stop = False


HANGING = """
import ctypes, os, signal, sys
from longtail.runtime.process import Signals
with Signals(grace=1.0).caught() as signals, signals.postponed():
    os.kill(os.getpid(), signal.SIGTERM)
    if sys.argv[1] == "saves":
        signals.answered()
    ctypes.CDLL(None).sleep(4)  # Python runs no handler meanwhile
    signals.asked_to_stop = False
"""


@pytest.mark.parametrize(("kind", "code"), [("hangs", EXIT_STOPPED), ("saves", 0)])
def test_a_process_that_hangs_ends_after_its_grace(kind, code):
    done = python("-c", HANGING, kind)
    assert done.returncode == code, done.stderr
    assert ("last checkpoint" in done.stderr) == (code == EXIT_STOPPED)


def test_the_number_of_processors_is_that_of_this_process():
    assert 1 <= num_processors() <= os.cpu_count()


def test_what_linux_says_about_the_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "CPU_INFO", tmp_path / "cpuinfo")
    assert processor_info("flags") == ""
    process.CPU_INFO.write_text("model name\t: A: B\nflags\t\t: sse2 avx2\n\nflags\t\t: other\n")
    assert (processor_info("flags", "Features"), processor_info("model name")) == ("sse2 avx2", "A: B")

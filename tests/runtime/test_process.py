"""Signals: when they interrupt, and when training stops after its step."""

import os
import signal

import pytest

from longtail.runtime.process import Signals, Stopped, num_processors


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


def test_the_number_of_processors_is_that_of_this_process():
    assert 1 <= num_processors() <= os.cpu_count()

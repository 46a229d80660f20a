"""Carries out an experiment: one process for each training, several at once if wanted, and nothing twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from longtail.config.recipes import to_yaml
from longtail.experiments.reuse import copy_experts, reusable_runs
from longtail.experiments.spec import Job
from longtail.runtime.process import Signals, Stopped, num_processors
from longtail.training.progress import say
from longtail.utils.errors import InputError
from longtail.utils.format import duration, pluralize

PAUSE = 0.1
"""Seconds between two looks at the processes"""


class Trainings:
    """Trains what is jobs_planned and not finished yet.

    Each training is a process of its own, ``longtail train``: a failure ends one row and not the others, and a GPU's
    memory is free again afterwards.

    Args:
        jobs_planned: made by `longtail.experiments.spec.plan`.
        others: of the same experiment, whose runs may give their experts if they are finished.
        jobs: how many at once. They share the CPU's cores; GPUs they take in turn, and one GPU may serve several.
        console: where to tell how it goes.
        on_finished: called after each training.
    """

    def __init__(
        self,
        jobs_planned: Sequence[Job],
        others: Sequence[Job],
        jobs: int,
        console: Console,
        on_finished: Callable[[], object] = lambda: None,
    ):
        self.jobs_planned = {one.name: one for one in jobs_planned}
        self.donors = reusable_runs([*jobs_planned, *(one for one in others if one.is_done)])
        self.jobs = jobs
        self.console = console
        self.on_finished = on_finished
        self.failed: list[str] = []
        """Names of those that could not be trained"""
        self._running: dict[int, _Training] = {}  # by their place among the jobs

    def check(self) -> None:
        """Finds runs that are in the way.

        Raises:
            InputError: a run of the same name has other settings, or learned from a teacher that has gone.
        """
        for one in self.jobs_planned.values():
            if one.run.config_path.is_file() and (difference := one.difference()):
                name, there, wanted = difference
                raise InputError(
                    f"{one.run.folder} was trained with {name} {there}, and not {wanted}; "
                    "give another --output, or remove it to train it again"
                )
            teacher = self._teacher(one)
            if one.run.config_path.is_file() and teacher is not None and not teacher.run.is_finished:
                raise InputError(
                    f"{one.run.folder} learned from {teacher.run.folder}, which is not finished or was removed; "
                    "remove the former too, to train both again"
                )

    def carry_out(self) -> None:
        """Trains; afterwards ``failed`` names what could not be.

        Raises:
            Stopped: a signal asked for it, and all trainings have saved where they are; the same again goes on.
        """
        waiting = [one for one in self.jobs_planned.values() if not one.run.is_finished]
        done = len(self.jobs_planned) - len(waiting)
        before = f", {done} of them finished before" if done else ""
        say(self.console, f"{pluralize(len(self.jobs_planned), 'training', 'trainings')}{before}")
        with TemporaryDirectory() as folder, Signals().caught() as signals:
            try:
                with signals.postponed():
                    while (waiting or self._running) and not signals.asked_to_stop:
                        waiting = [one for one in waiting if not self._taken_up(one, Path(folder))]
                        time.sleep(PAUSE)
                        for place in [place for place, training in self._running.items() if training.has_ended]:
                            training = self._running.pop(place)
                            if training.was_stopped:
                                signals.asked_to_stop = True
                            else:
                                self._tell(training)
                    self._stop()
            except Stopped:
                say(self.console, "Stopped; the same command goes on")
                raise
            except KeyboardInterrupt as error:  # Ctrl-C again: now
                self._kill()
                say(self.console, "Killed; the same command goes on with what was saved")
                raise Stopped from error
            except BaseException:  # a full disk, say: nobody would look after the others
                self._stop()
                raise

    def _teacher(self, one: Job) -> Job | None:
        return None if one.teacher is None else self.jobs_planned[f"{one.teacher}-seed{one.seed}"]

    def _taken_up(self, one: Job, folder: Path) -> bool:
        """Starts a training if there is room and it waits for no other; true also where it never can be."""
        donor = None if one.run.config_path.exists() else self.donors.get(one.name)
        needed = [] if donor is None else [donor]
        needed += [] if (teacher := self._teacher(one)) is None else [teacher]
        if lost := [other.name for other in needed if other.name in self.failed]:
            say(self.console, f"{one.name}: not trained, because {lost[0]} could not be")
            self.failed.append(one.name)
            return True
        free = next((place for place in range(self.jobs) if place not in self._running), None)
        if free is None or not all(other.run.is_finished for other in needed):
            return False
        should_continue = " goes on" if one.run.epochs_done else ""
        if donor is not None:
            try:
                copy_experts(donor.run, one.run, one.config)
            except InputError as error:
                say(self.console, f"{one.name}: failed ({error})")
                self.failed.append(one.name)
                return True
            should_continue = f" with the experts of {donor.name}"
        say(self.console, f"{one.name}:{should_continue or ' begins'}")
        self._running[free] = _Training(one, folder, free, self.jobs)
        return True

    def _tell(self, training: "_Training") -> None:
        """How a training ended."""
        one = training.one
        if training.process.returncode or not one.run.is_finished:
            self.failed.append(one.name)
            say(self.console, f"{one.name}: failed{training.last_words()}")
        else:
            accuracy, seconds = one.run.results()["test"]["accuracy"], time.monotonic() - training.start
            say(self.console, f"{one.name}: finished after {duration(seconds)}, {accuracy:.1%} overall")
        self.on_finished()

    def _stop(self) -> None:
        """Asks those that are left to stop, and waits until they have saved where they are."""
        for training in self._running.values():
            training.process.send_signal(signal.SIGTERM)
        for training in self._running.values():
            training.process.wait()

    def _kill(self) -> None:
        for training in self._running.values():
            training.process.kill()
            training.process.wait()


class _Training:
    """A process that trains."""

    def __init__(self, one: Job, folder: Path, place: int, jobs: int):
        self.one = one
        settings = folder / f"{one.name}.yaml"
        settings.write_text(to_yaml(one.config), encoding="utf-8")
        command = [sys.executable, "-m", "longtail", "train", "--config", settings, "--output", one.run.folder]
        self.log = None if jobs == 1 else one.run.folder.with_name(f"{one.name}.log")
        one.run.folder.parent.mkdir(parents=True, exist_ok=True)
        self.start = time.monotonic()
        # Of a session of its own: of Ctrl-C it hears from here, once.
        options = {"env": _environment(one, place, jobs), "stdin": subprocess.DEVNULL, "start_new_session": True}
        if self.log is None:
            self.process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        else:
            with self.log.open("ab") as log:
                self.log_start = log.tell()
                self.process = subprocess.Popen(command, stdout=log, stderr=log, **options)  # type: ignore[call-overload]

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def was_stopped(self) -> bool:
        """Whether somebody else did: a scheduler that signals to every process, say."""
        return self.process.returncode in (-signal.SIGINT, 75) and not self.one.run.is_finished

    def last_words(self) -> str:
        """What killed it; or, where its output went to a file, the last line, which is its error."""
        if self.process.returncode < 0:
            return f" (killed by {signal.Signals(-self.process.returncode).name})"
        lines = self.log.read_bytes()[self.log_start :].decode(errors="replace").split("\n") if self.log else []
        said = [line for line in lines if line.strip()]
        return f" ({said[-1].removeprefix('longtail: ')})" if said else ""


def _environment(one: Job, place: int, jobs: int) -> dict[str, str]:
    """Of a process that shares the machine."""
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_processors() // jobs)))
        if one.config.device in ("auto", "cuda") and (devices := _devices(environment)):
            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
    return environment


def _devices(environment: dict[str, str]) -> list[str]:
    given = environment.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]

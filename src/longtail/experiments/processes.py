"""The trainings of an experiment: each one is a process of its own, several at once."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from longtail.config.recipes import to_yaml
from longtail.experiments.reuse import copy_experts, reusable_runs
from longtail.experiments.spec import Job
from longtail.runtime.process import EXIT_STOPPED, Signals, Stopped, num_processors
from longtail.utils.errors import InputError
from longtail.utils.format import duration, pluralize

logger = logging.getLogger(__name__)

PAUSE = 0.2
"""Seconds between two checks of the processes"""


class JobRunner:
    """Trains the jobs that are not finished.

    Each job is a process, ``longtail train``: an error ends one job and not the others, and frees its GPU memory.

    Args:
        jobs: made by `longtail.experiments.spec.plan`.
        others: all jobs of the experiment; finished ones may lend their experts.
        slots: number of parallel jobs. They share the CPU cores, and take the GPUs in turn.
        on_finished: called after each job.
    """

    def __init__(
        self, jobs: Sequence[Job], others: Sequence[Job], slots: int, on_finished: Callable[[], object] = lambda: None
    ):
        self.jobs = jobs
        self.sources = reusable_runs([*jobs, *(job for job in others if job.is_done)])
        self.slots = slots
        self.on_finished = on_finished
        self.failed: list[str] = []
        """Names of the jobs that failed"""
        self._running: dict[int, _Process | _OrphanedTraining] = {}
        """By slot"""

    def check(self) -> None:
        """Finds runs that are in the way.

        Raises:
            InputError: a run of the same name has other settings, or learned from a teacher that was removed.
        """
        for job in self.jobs:
            if not job.run.config_path.is_file():
                continue
            if difference := job.difference():
                name, value, planned = difference
                raise InputError(
                    f"{job.run.folder} was trained with {name} {value}, not {planned}; choose another --output, or "
                    "remove the folder to train it again"
                )
            if job.teacher is not None and not job.teacher.run.is_finished:
                raise InputError(
                    f"{job.run.folder} learned from {job.teacher.run.folder}, which is not finished or was removed; "
                    "remove both folders to train both again"
                )

    def run(self) -> None:
        """Trains the jobs; afterwards ``failed`` has the names of those that failed.

        Raises:
            Stopped: a signal asked for it, and all trainings are saved; the same call resumes.
        """
        waiting = [job for job in self.jobs if not job.run.is_finished]
        done = len(self.jobs) - len(waiting)
        logger.info(pluralize(len(self.jobs), "training") + (f", {done} of them finished before" if done else ""))
        with TemporaryDirectory() as folder, Signals().caught() as signals:
            try:
                with signals.postponed():
                    while (waiting or self._running) and not signals.asked_to_stop:
                        waiting = [job for job in waiting if not self._start(job, Path(folder))]
                        time.sleep(PAUSE)
                        for slot in [slot for slot, process in self._running.items() if process.poll() is not None]:
                            process = self._running.pop(slot)
                            if self._is_to_do(process):
                                waiting.insert(0, process.job)
                            else:
                                signals.asked_to_stop |= self._finish(process)
                    self._end(signal.SIGTERM)
            except Stopped:
                logger.info("Stopped; the same command resumes")
                raise
            except KeyboardInterrupt as error:  # a second Ctrl-C
                self._end(signal.SIGKILL)
                logger.info("Killed; the same command resumes from what was saved")
                raise Stopped from error
            except BaseException:  # such as a full disk
                self._end(signal.SIGTERM)
                raise

    def _start(self, job: Job, folder: Path) -> bool:
        """Starts a job if a slot is free and the runs that it needs are finished; also returns True if it failed."""
        source = None if job.run.config_path.exists() else self.sources.get(job.name)
        needed = [dependency for dependency in (source, job.teacher) if dependency is not None]
        if failed := [dependency.name for dependency in needed if dependency.name in self.failed]:
            return self._fail(job, f"not trained, because {failed[0]} failed")
        slot = next((slot for slot in range(self.slots) if slot not in self._running), None)
        if slot is None or not all(dependency.run.is_finished for dependency in needed):
            return False
        if job.run.in_use:
            logger.info("%s: another process trains it; waiting for its end", job.name)
            self._running[slot] = _OrphanedTraining(job)
            return True
        how = "resumes" if job.run.progress().epochs else "starts"
        if source is not None:
            try:
                copy_experts(source.run, job.run, job.config)
            except InputError as error:
                return self._fail(job, f"failed ({error})")
            how = f"starts with the experts of {source.name}"
        logger.info("%s: %s", job.name, how)
        self._running[slot] = _Process(job, folder, slot, self.slots)
        return True

    def _fail(self, job: Job, reason: str) -> bool:
        logger.info("%s: %s", job.name, reason)
        self.failed.append(job.name)
        return True

    def _is_to_do(self, process: "_Process | _OrphanedTraining") -> bool:
        """Whether the job of an ended process remains to be done, although it did not fail."""
        if isinstance(process, _OrphanedTraining):
            return not process.job.run.is_finished  # it was stopped
        # The training of a killed experiment had started, but had not locked the run yet when this one started. After
        # a signal, such as that of the system if memory runs out, the lock is that of workers which end soon.
        return process.returncode > 0 and process.job.run.in_use

    def _finish(self, process: "_Process | _OrphanedTraining") -> bool:
        """Reports the end of a process; returns whether a signal from elsewhere stopped it, such as a scheduler's."""
        job, is_finished = process.job, process.job.run.is_finished
        if process.returncode in (-signal.SIGINT, EXIT_STOPPED) and not is_finished:
            return True
        if process.returncode or not is_finished:
            self._fail(job, f"failed{process.reason()}")
        else:
            accuracy, seconds = job.run.results()["test"]["accuracy"], time.monotonic() - process.start
            logger.info(f"{job.name}: finished after {duration(seconds)}, overall accuracy {accuracy:.1%}")
        self.on_finished()
        return False

    def _end(self, number: signal.Signals) -> None:
        """Sends a signal to all processes and waits for their end."""
        for process in self._running.values():
            process.send_signal(number)
        for process in self._running.values():
            process.wait()


class _OrphanedTraining:
    """A training of an experiment that was killed. It continues, and takes the slot until its end."""

    def __init__(self, job: Job):
        self.job, self.start, self.returncode = job, time.monotonic(), 0

    def poll(self) -> int | None:
        """Returns None while it is trained."""
        return None if self.job.run.in_use else self.returncode

    def reason(self) -> str:
        return ""

    def send_signal(self, number: int) -> None:
        """Does nothing: it is the process of another experiment."""

    def wait(self) -> None:
        """Returns at once."""


class _Process(subprocess.Popen[bytes]):
    """A job that is being trained. With several slots its output goes to a log file beside the run folder."""

    def __init__(self, job: Job, folder: Path, slot: int, slots: int):
        self.job, self.start = job, time.monotonic()
        settings = folder / f"{job.name}.yaml"
        settings.write_text(to_yaml(job.config), encoding="utf-8")
        command = ["-m", "longtail", "train", "--config", str(settings), "--output", str(job.run.folder)]
        job.run.folder.parent.mkdir(parents=True, exist_ok=True)
        self.log = None if slots == 1 else job.run.folder.with_name(f"{job.name}.log")
        with nullcontext() if self.log is None else self.log.open("ab") as log:
            # In a session of its own: Ctrl-C reaches it once, from `JobRunner`.
            super().__init__(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(job, slot, slots),
                start_new_session=True,
            )

    def reason(self) -> str:
        """Returns the signal that killed it or, from a log file, the last line, which is its error."""
        if self.returncode < 0:
            return f" (killed by {signal.Signals(-self.returncode).name})"
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log else []
        messages = [line for line in lines if line.strip()]
        return f" ({messages[-1].removeprefix('longtail: ')})" if messages else ""


def _environment(job: Job, slot: int, slots: int) -> dict[str, str]:
    """The variables of a process that shares the machine."""
    environment = dict(os.environ)
    if slots > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, num_processors() // slots)))
        if visible_devices := environment.get("CUDA_VISIBLE_DEVICES"):
            devices = visible_devices.split(",")
        else:
            devices = [str(number) for number in range(torch.cuda.device_count())]
        if job.config.device in ("auto", "cuda") and devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment

"""Several processes that train or evaluate one model together. No other file uses torch.distributed."""

import atexit
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from longtail.runtime.process import Stopped
from longtail.runtime.shard import Shard
from longtail.utils.console import mute
from longtail.utils.errors import InputError

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others within a step or an evaluation; if one ends, they notice at once"""

PATIENCE = timedelta(hours=2)
"""How long they wait for the first process, which may download data or check a million images"""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which torchrun tells a process its rank"""

FAILED = "longtail/failed"
"""Key in the job's store; counts the processes that have failed"""


# Each process keeps its own batch norm statistics in training; `Group.broadcast` aligns them before they are used. The
# option has another name in newer versions of torch.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: Any = {"forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False}


class OtherProcessError(InputError):
    """Another process of the job has failed and reports the error; this one reports nothing."""


class Group:
    """The processes that work together. A single process is a group too, and sends nothing.

    Args:
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs for all."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """This process's share of every training batch."""
        return Shard(self.rank, self.size)

    @property
    def eval_shard(self) -> Shard:
        """This process's full batches in an evaluation."""
        return Shard(self.rank, self.size, full_batches=True)

    def parallel(self, task: nn.Module, device: torch.device) -> nn.Module:
        """Wraps a task so that its gradients are averaged over all processes during backward."""
        if self.size == 1:
            return task
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(task, device_ids=ids, gradient_as_bucket_view=True, **_OWN_BUFFERS)

    def no_sync(self, task: nn.Module) -> AbstractContextManager[None]:
        """Within it, gradients of a `parallel` task are summed locally; the next backward after it averages the sum."""
        if isinstance(task, DistributedDataParallel):
            return task.no_sync()  # type: ignore[no-any-return,no-untyped-call]
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int, patient: bool = False) -> int:
        """Returns the largest of the processes' numbers. ``patient``: another one may take long."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)  # on the CPU, which does not wait for a GPU
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=_groups.patient if patient else _groups.steps)
        return int(numbers)

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Copies the values of the source process to all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, source)

    def broadcast_object(self, text: str) -> str:
        """Returns the first process's text in every process."""
        if self.size == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, group=_groups.patient)
        return texts[0]

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self.all_reduce_max(0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Runs the block in the first process, then in the others: the first one may download what they read."""
        if not self.is_main:
            self.all_reduce_max(0, patient=True)
        yield
        if self.is_main:
            self.all_reduce_max(0, patient=True)


SINGLE_PROCESS = Group()


@contextmanager
def init_distributed(device: str) -> Iterator[Group]:
    """Yields the group in which torchrun started this process. Processes join at the first call, and leave at exit.

    An error in one process ends all of them and is reported once.

    Args:
        device: setting; processes communicate by gloo on "cpu", otherwise by NCCL.

    Raises:
        InputError: the processes cannot work together.
        OtherProcessError: in all processes but the one that reports the error.
    """
    if not dist.is_initialized():
        # Some clusters set some of the variables for other purposes.
        if not all(os.environ.get(name) for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
            yield SINGLE_PROCESS
            return
        _join(device)
    group = Group(dist.get_rank(), dist.get_world_size())
    if not group.is_main:
        mute()
    _exit.together = False
    try:
        yield group
    except Stopped:  # all processes stop together
        _exit.together = True
        raise
    except InputError as error:
        if _is_first_to_fail():
            raise
        raise OtherProcessError from error
    except RuntimeError as error:
        first = _is_first_to_fail()
        if not _is_about_others(error):
            raise
        if not first:
            raise OtherProcessError from error
        raise InputError(
            f"process {group.rank} of {group.size} lost the connection to another process, which ended without an "
            f"error message (killed, or out of memory) or did not answer for {TIMEOUT.seconds / 60:g} minutes; the "
            "same command resumes from the last checkpoint"
        ) from error
    group.barrier()
    _exit.together = True


def _join(device: str) -> None:
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu and ":" in device:
        raise InputError(f"device is '{device}'; for several processes it must be auto, cuda or cpu")
    if on_gpu and local >= torch.cuda.device_count():
        raise InputError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on a machine with {torch.cuda.device_count()} "
            "GPUs; start at most one process for each GPU, or set --device cpu"
        )
    if on_gpu:
        torch.cuda.set_device(local)
    # NCCL ends the process when its time is over, without a line; so it waits longer than the others.
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=1.5 * TIMEOUT if on_gpu else TIMEOUT)
    _groups.steps = dist.new_group(backend="gloo", timeout=TIMEOUT)
    _groups.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    # At exit, not at the end of each command: processes cannot join twice.
    atexit.register(_leave, on_gpu)


@dataclass
class _Groups:
    """Process groups of all processes that differ in how long they wait. None: the default one."""

    steps: Any = None
    patient: Any = None


_groups = _Groups()


@dataclass
class _Exit:
    together: bool = True
    """Whether the other processes end too"""


_exit = _Exit()


def _leave(on_gpu: bool) -> None:
    if on_gpu and not _exit.together:
        # NCCL would wait for the others, which wait for this process; its end tells them.
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(1)
    with suppress(Exception):
        dist.destroy_process_group()


def _is_first_to_fail() -> bool:
    with suppress(Exception):  # the store ends with the process that holds it
        store: Any = dist.distributed_c10d._get_default_store()
        return int(store.add(FAILED, 1)) == 1
    return True


def _is_about_others(error: RuntimeError) -> bool:
    words = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "timed out", "timeout")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)

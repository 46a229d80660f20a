"""Several processes that train or test one model together: the only file that knows torch.distributed."""

import atexit
import inspect
import logging
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
from longtail.utils.errors import InputError

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others, which may be checking a million pictures; a death is noticed at once."""

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""By which torchrun tells a process who it is."""

FAILED = "longtail/failed"
"""Key of the job's store that counts the processes that have failed."""


# Newer versions of torch have another name for it. Batch norms keep their own statistics in training; `Group.broadcast` is
# for before they are used.
_NAMES = inspect.signature(DistributedDataParallel).parameters
_OWN_BUFFERS: Any = {"forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers": False}


class OtherProcessError(InputError):
    """Another process of the job has failed, and says why itself: this one has nothing to say."""


class Group:
    """The processes that work together; one alone is a group too, in which nothing needs to be sent.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def shard(self) -> Shard:
        """This process's part of every training batch."""
        return Shard(self.rank, self.size)

    @property
    def eval_shard(self) -> Shard:
        """This process's batches of a pass in which batches stay whole."""
        return Shard(self.rank, self.size, whole_batches=True)

    def parallel(self, task: nn.Module, device: torch.device) -> nn.Module:
        """The task with gradients that are averaged over all processes as they are computed."""
        if self.size == 1:
            return task
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(task, device_ids=ids, gradient_as_bucket_view=True, **_OWN_BUFFERS)

    def no_sync(self, task: nn.Module) -> AbstractContextManager[None]:
        """Within it, gradients of a `parallel` task only add up here; those after it bring the sum to the others."""
        if isinstance(task, DistributedDataParallel):
            return task.no_sync()  # type: ignore[no-any-return,no-untyped-call]
        return nullcontext()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place where there are several."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.size == 1:
            return number
        numbers = torch.tensor(number)  # on the CPU, so that no GPU is waited for
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return int(numbers)

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Gives all processes the values that the source has, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, source)

    def broadcast_object(self, own: str) -> str:
        """The first process's text."""
        if self.size == 1:
            return own
        texts = [own]
        dist.broadcast_object_list(texts)
        return texts[0]

    def barrier(self) -> None:
        """Until all processes are here."""
        self.all_reduce_max(0)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first process goes through alone, then the others: it may download what they read."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()


SINGLE_PROCESS = Group()


@contextmanager
def init_distributed(device: str) -> Iterator[Group]:
    """The group that torchrun started this process in; processes join when first asked, and part when they end.

    Whatever fails in one of them ends them all, and is told once: by the process in which it happened, or by the first
    one where it happens in all.

    Args:
        device: setting; on "cpu" processes talk by gloo, otherwise by NCCL.

    Raises:
        InputError: what was started cannot work together.
        OtherProcessError: in all processes but the one that tells why.
    """
    if not dist.is_initialized():
        # Some clusters set one or the other for their own purposes.
        if not all(os.environ.get(name) for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
            yield SINGLE_PROCESS
            return
        _join(device)
    group = Group(dist.get_rank(), dist.get_world_size())
    if not group.is_main:
        logging.getLogger("longtail").setLevel(logging.ERROR)
    _parting.together = False
    try:
        yield group
    except Stopped:  # as all have agreed
        _parting.together = True
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
            f"process {group.rank} of {group.size} lost touch with another one, which ended without a word (killed, or "
            "out of memory); the same command goes on from the last checkpoint"
        ) from error
    group.barrier()
    _parting.together = True


def _join(device: str) -> None:
    local = int(os.environ["LOCAL_RANK"])
    on_gpu = device != "cpu" and torch.cuda.is_available()
    _check(device, on_gpu, local)
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
    # Not at the end of each command: the same processes cannot join twice.
    atexit.register(_part, on_gpu)


@dataclass
class _Parting:
    together: bool = True
    """Whether the others come to the end too"""


_parting = _Parting()


def _part(on_gpu: bool) -> None:
    if on_gpu and not _parting.together:
        # NCCL would wait for the others, who wait for this one; that it ends is what tells them.
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(1)
    with suppress(Exception):
        dist.destroy_process_group()


def _check(device: str, on_gpu: bool, local: int) -> None:
    if on_gpu and ":" in device:
        raise InputError(f"device is '{device}'; with several processes it must be auto, cuda or cpu")
    if on_gpu and local >= torch.cuda.device_count():
        raise InputError(
            f"{os.environ.get('LOCAL_WORLD_SIZE', 'more')} processes on a machine with {torch.cuda.device_count()} "
            "GPUs; there may be at most one for each, or --device cpu"
        )


def _is_first_to_fail() -> bool:
    with suppress(Exception):  # the store may be gone with the process that had it
        store: Any = dist.distributed_c10d._get_default_store()
        return int(store.add(FAILED, 1)) == 1
    return True


def _is_about_others(error: RuntimeError) -> bool:
    words = ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl", "timed out", "timeout")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)

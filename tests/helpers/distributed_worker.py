"""What each process of tests/runtime/test_distributed.py runs.

Usage: torchrun --nproc-per-node N distributed_worker.py ACTION FOLDER
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
from helpers.loaders import CPU, loader
from torch import nn

from longtail.data.loaders import MemoryLoader
from longtail.data.splits import ImageSplit
from longtail.evaluation.outputs import collect_outputs
from longtail.losses import RIDELoss
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runtime import distributed
from longtail.runtime.device import Runtime
from longtail.runtime.distributed import SINGLE_PROCESS, Group, init_distributed
from longtail.runtime.process import Signals, Stopped
from longtail.training import stages
from longtail.training.cached_outputs import CachedOutputs, ComputedOutputs
from longtail.training.checkpoint import Checkpoint
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import TrainExperts
from longtail.utils.errors import InputError

COUNTS = [20, 9, 5, 3]


def split() -> ImageSplit:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (sum(COUNTS), 16, 16, 3), dtype=torch.uint8, generator=random)
    return ImageSplit(torch.arange(4).repeat_interleave(torch.tensor(COUNTS)).numpy(), pixels=pixels.numpy())


def network(name: str) -> MultiExpert:
    torch.manual_seed(1)
    if name == "resnet20":
        return create_model(name, 4, 2)
    return create_model(name, 4, 2, width="full", image_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3)


def train_loader(group: Group) -> MemoryLoader:
    augmentation = {"padding": 1, "flip": True, "rotation": 5.0}
    return loader(split(), 10, shuffle=True, shard=group.shard, **augmentation)


def eval_loader(group: Group, shuffle: bool = False) -> MemoryLoader:
    return loader(split(), 5, shuffle=shuffle, shard=group.eval_shard)


class RecordingSGD(torch.optim.SGD):
    """Keeps the gradients of every step."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, 1.0)
        self.gradients: list[torch.Tensor] = []

    def step(self, closure=None):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.gradients.append(torch.cat(gradients).clone())
        return super().step(closure)


class TrainInFloat64(TrainExperts):
    """Differences between numbers of processes are then errors, not rounding."""

    def forward(self, batch, epoch):
        return super().forward(batch._replace(inputs=batch.inputs.double()), epoch)


def gradients(group: Group = SINGLE_PROCESS, accumulation: int = 1) -> list[torch.Tensor]:
    """Gradients of two epochs of a network without batch norm, and the losses; the second epoch has class weights."""
    model = network("vit_tiny_patch16_224")
    task = TrainInFloat64(model, RIDELoss(COUNTS, reweight_after=1, reweight_beta=0.95)).double()
    optimizer = RecordingSGD(list(task.parameters()))
    options = LoopOptions(accumulation, runtime=Runtime(CPU, group=group))
    records = fit(task, train_loader(group), optimizer, lambda epoch: 0.01, 2, options)
    losses = [record["loss"] for record in records]
    return [*optimizer.gradients, torch.tensor(losses)]


def outputs(group: Group = SINGLE_PROCESS) -> list[torch.Tensor]:
    """The outputs of a network for all images, and the batches on which a router is trained."""
    model = network("resnet20").eval()
    collected = collect_outputs(model, eval_loader(group), group)
    cached = CachedOutputs(model, eval_loader(group, shuffle=True), batch_size=8, seed=3, group=group)
    return [collected.logits, collected.labels, *_batches(cached, group)]


def computed_outputs(group: Group = SINGLE_PROCESS) -> list[torch.Tensor]:
    """The batches on which a router is trained if the outputs do not fit into memory."""
    return list(_batches(ComputedOutputs(network("resnet20").eval(), train_loader(group), 8), group))


def _batches(frozen: CachedOutputs | ComputedOutputs, group: Group) -> Iterator[torch.Tensor]:
    for epoch in (1, 2):
        for batch in frozen.epoch(epoch):
            yield batch.labels
            for part in (batch.inputs.logits, batch.inputs.features, batch.own_labels):
                # The shares of all processes, in order.
                parts = [part]
                if group.size > 1:
                    parts *= group.size
                    torch.distributed.all_gather_object(parts, part)
                yield torch.cat(parts)


def stop(group: Group) -> list[torch.Tensor]:
    """Whether this process stops if process 1 alone gets a signal."""
    signals = Signals()
    signals.asked_to_stop = group.rank == 1
    source = eval_loader(group, shuffle=True)
    model = network("resnet20").eval()
    frozen = CachedOutputs(model, source, batch_size=8, seed=3, signals=signals, group=group)
    try:
        list(frozen.epoch(1))
    except Stopped:
        return [torch.tensor(1)]
    return [torch.tensor(0)]


def fail_everywhere(group: Group) -> None:
    raise InputError("error of all processes")


def fail_in_one(group: Group) -> None:
    if group.rank == 1:
        raise InputError("error of process 1")
    group.barrier()  # waits forever, unless the error ends it


def killed(group: Group) -> None:
    if group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    group.barrier()


def silent(group: Group) -> None:
    if group.rank == 1:
        time.sleep(300)
    group.barrier()


def die_in_second_epoch() -> None:
    """Lets this process die in the middle of the second epoch of a training, after it has saved a checkpoint."""
    save = Checkpoint.save

    def save_and_die(self, state):
        save(self, state)
        if (state.position.epoch, state.position.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoint.save = save_and_die


def freeze_in_second_epoch() -> None:
    """Lets process 1 stop answering in the middle of the second epoch of a training; the limit is ten seconds."""
    after_step = Checkpoint.after_step
    distributed.TIMEOUT = timedelta(seconds=10)

    def freeze(self, state):
        after_step(self, state)
        if self.group.rank == 1 and (state.position.epoch, state.position.step) == (2, 2):
            os.kill(os.getpid(), signal.SIGSTOP)

    Checkpoint.after_step = freeze


def find_copies_slowly() -> None:
    """Lets the search for copies of images take longer than the processes wait for each other in a step."""
    distributed.TIMEOUT = timedelta(seconds=10)
    stages.log_copies = lambda *arguments: time.sleep(15)


ACTIONS = {
    "gradients": gradients,
    "accumulated": lambda group: gradients(group, 2),
    "outputs": outputs,
    "computed": computed_outputs,
    "stop": stop,
    "fail everywhere": fail_everywhere,
    "fail in one": fail_in_one,
    "killed": killed,
    "silent": silent,
}


def main(action: str, folder: str) -> None:
    if action == "silent":
        distributed.TIMEOUT = timedelta(seconds=5)
    with init_distributed("cpu") as group:
        for name in action.split(","):
            torch.save(ACTIONS[name](group), Path(folder, f"{name}-{group.rank}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        if str(error):
            print(f"longtail: {error}", file=sys.stderr)
        sys.exit(2)

"""What each of several processes runs in test_distribution.py: torchrun --nproc-per-node N together.py WHAT FOLDER."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.evaluation.outputs import collect_outputs
from longtail.losses import RIDELoss
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runtime.device import Runtime
from longtail.runtime.distributed import SINGLE_PROCESS, Group, init_distributed
from longtail.runtime.process import Signals, Stopped
from longtail.training.cached_outputs import FrozenOutputs
from longtail.training.loop import fit
from longtail.training.tasks import TrainExperts
from longtail.utils.errors import InputError

CPU = torch.device("cpu")
COUNTS = [20, 9, 5, 3]


def split() -> ImageSplit:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (sum(COUNTS), 16, 16, 3), dtype=torch.uint8, generator=draw)
    return ImageSplit(torch.arange(4).repeat_interleave(torch.tensor(COUNTS)).numpy(), pixels=pixels.numpy())


def network(name: str) -> MultiExpert:
    torch.manual_seed(1)
    if name == "resnet20":
        return create_model(name, 4, 2)
    return create_model(name, 4, 2, width="full", image_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3)


def loader(group: Group, batch_size: int = 10, whole_batches: bool = False, **options) -> MemoryLoader:
    shard = group.eval_shard if whole_batches else group.shard
    normalise = Normalise([0.5] * 3, [0.25] * 3, CPU)
    return MemoryLoader(split(), batch_size, device=CPU, normalise=normalise, shard=shard, **options)


class Watched(torch.optim.SGD):
    """Keeps the gradients of every step."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, 1.0)
        self.gradients: list[torch.Tensor] = []

    def step(self, closure=None):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        self.gradients.append(torch.cat(gradients).clone())
        return super().step(closure)


class Exactly(TrainExperts):
    """In float64, so that differences are mistakes and not rounding."""

    def forward(self, images, *others, **known):
        return super().forward(images.double(), *others, **known)


def gradients(group: Group = SINGLE_PROCESS, accumulation: int = 1) -> list[torch.Tensor]:
    """Of two epochs, the second of them with class weights, of a network without batch norm."""
    model = network("vit_tiny_patch16_224")
    task = Exactly(model, RIDELoss(COUNTS, reweight_after=1, reweight_beta=0.95)).double()
    optimizer = Watched(list(task.parameters()))
    images = loader(group, shuffle=True, padding=1, flip=True, rotation=5.0)
    options = {"accumulation": accumulation, "runtime": Runtime(CPU, group=group)}
    losses = [record["loss"] for record in fit(task, images, optimizer, lambda epoch: 0.01, 2, **options)]
    return [*optimizer.gradients, torch.tensor(losses)]


def answered(group: Group = SINGLE_PROCESS) -> list[torch.Tensor]:
    """What a network says, and what the router's training is made of."""
    model = network("resnet20").eval()
    said = collect_outputs(model, loader(group, batch_size=5, whole_batches=True), group)
    source = loader(group, batch_size=5, whole_batches=True, shuffle=True)
    found = [said.logits, said.labels]
    for cache in (1.0, 0.0):
        frozen = FrozenOutputs(model, source, batch_size=8, cache_gib=cache, seed=3, group=group)
        for epoch in (1, 2):
            for batch in frozen.epoch(epoch):
                # The shares of one batch, one after the other.
                for part in batch:
                    whole = [torch.empty(0)] * group.size
                    if group.size > 1:
                        torch.distributed.all_gather_object(whole, part)
                        part = torch.cat(whole)
                    found.append(part)
    return found


def asked_to_stop(group: Group) -> list[torch.Tensor]:
    """Of one process only: whether this one has stopped, too."""
    signals = Signals()
    signals.asked_to_stop = group.rank == 1
    source = loader(group, batch_size=5, whole_batches=True, shuffle=True)
    options = {"batch_size": 8, "cache_gib": 1.0, "seed": 3}
    frozen = FrozenOutputs(network("resnet20").eval(), source, signals=signals, group=group, **options)
    try:
        list(frozen.epoch(1))
    except Stopped:
        return [torch.tensor(1)]
    return [torch.tensor(0)]


def main(what: str, folder: str) -> None:
    with init_distributed("cpu") as group:
        if what == "fails everywhere":
            raise InputError("everything is wrong")
        if what == "fails in one" and group.rank == 1:
            raise InputError("process 1 has bad luck")
        if what == "is killed" and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what.startswith(("fails", "is killed")):
            group.barrier()  # for ever, if nobody tells
        ways = {
            "gradients": gradients,
            "accumulated": lambda group: gradients(group, 2),
            "answered": answered,
            "asked": asked_to_stop,
        }
        made = ways[what](group)
        torch.save(made, Path(folder, f"{what}-{group.rank}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        if str(error):
            print(f"longtail: {error}", file=sys.stderr)
        sys.exit(2)

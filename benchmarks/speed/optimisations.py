"""What each thing that makes CIFAR RIDE-3 faster on a CPU is worth: processor time before and after it.

    python benchmarks/speed/optimisations.py

Each row of a table is the row above and one thing more. All rows take turns in one process, on one batch of 128 images
in memory; the median of each counts. Processor time instead of time, so that it may be measured beside other work.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from baseline import plain
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS
from result import report
from torch import Tensor

from longtail.losses import RIDELoss
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.resnet_cifar import BasicBlock, PaddedShortcut
from longtail.runtime.device import Runtime
from longtail.training.tasks import TrainExperts

CPU = torch.device("cpu")


def kept(self: BasicBlock, x: Tensor) -> Tensor:
    """Keeps what its ReLUs are given."""
    out = F.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    out += self.shortcut(x)
    return F.relu(out)


def sliced(self: PaddedShortcut, x: Tensor) -> Tensor:
    x = x[:, :, :: self.stride, :: self.stride]
    return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


NOW = {BasicBlock: BasicBlock.forward, PaddedShortcut: PaddedShortcut.forward}
BEFORE = {BasicBlock: kept, PaddedShortcut: sliced}


def running(forwards: Mapping[type, Callable[..., Tensor]], run: Callable[[], object]) -> Callable[[], None]:
    """``run`` with other code in the classes of the network."""

    def with_them() -> None:
        for kind, forward in forwards.items():
            kind.forward = forward
        run()

    return with_them


def networks() -> tuple[MultiExpert, MultiExpert, Tensor]:
    """The plain one, the same in channels-last memory, and images in contiguous memory."""
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS)
    layout = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return plain(model), layout, torch.randn(BATCH_SIZE, 3, 32, 32)


def training(precision: str) -> dict[str, Callable[[], None]]:
    before, model, images = networks()
    labels = torch.randint(0, NUM_CLASSES, (BATCH_SIZE,))
    runtime = Runtime(CPU, precision)  # type: ignore[arg-type]
    counts = [max(5, 500 - 5 * number) for number in range(NUM_CLASSES)]

    def step(model: MultiExpert, images: Tensor, fused: bool | None) -> Callable[[], None]:
        task = TrainExperts(model.train(), RIDELoss(counts))
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": fused}
        optimizer = torch.optim.SGD(task.parameters(), 1e-4, **options)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                loss, _ = task(images, labels, 1)
            loss.backward()
            optimizer.step()

        return run

    last = images.contiguous(memory_format=torch.channels_last)
    ours = step(model, last, True)
    return {
        "plain": step(before, images, None),
        "+ channels-last": running(BEFORE, step(model, last, None)),
        "+ fused optimiser": running(BEFORE, ours),
        "+ ReLUs in place": running(BEFORE | {BasicBlock: NOW[BasicBlock]}, ours),
        "+ subsampling without zeros": running(NOW, ours),
    }


def inference(precision: str) -> dict[str, Callable[[], None]]:
    before, model, images = networks()
    model.eval()
    runtime = Runtime(CPU, precision)  # type: ignore[arg-type]

    def answer(model: MultiExpert, images: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), runtime.autocast():
                model(images)

        return run

    last = images.contiguous(memory_format=torch.channels_last)
    return {
        "plain": answer(before.eval(), images),
        "+ channels-last": running(BEFORE, answer(model, last)),
        "+ ReLUs in place": running(BEFORE | {BasicBlock: NOW[BasicBlock]}, answer(model, last)),
        "+ subsampling": running(NOW, answer(model, last)),
        "+ batch norms fuse_batch_norms": running(NOW, answer(fuse_batch_norms(model, 32), last)),
    }


def table(given: argparse.Namespace) -> Iterator[str]:
    yield f"CIFAR RIDE-{NUM_EXPERTS}, a batch of {BATCH_SIZE}, median of {given.rounds} rounds"
    for name, variants in {"training": training, "inference": inference}.items():
        for precision in ("float32", "bf16"):
            runs = variants(precision)
            seconds: dict[str, list[float]] = {row: [] for row in runs}
            for round_number in range(given.rounds + 1):
                for row, run in runs.items():
                    start = time.process_time()
                    run()
                    if round_number > 0:  # the first one allocates
                        seconds[row].append(time.process_time() - start)
            yield ""
            yield f"{name + ', ' + precision:30}{'images/CPU s':>13}{'ratio':>8}{'of the row above':>18}"
            rates = {row: BATCH_SIZE / statistics.median(own) for row, own in seconds.items()}
            first = above = rates["plain"]
            for row, rate in rates.items():
                yield f"  {row:28}{rate:>13.1f}{rate / first:>8.2f}{rate / above:>18.3f}"
                above = rate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report(table(given), "speed-optimisations-cpu.txt")

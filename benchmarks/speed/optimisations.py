"""The gain of each optimisation of CIFAR RIDE on a CPU, measured in processor time.

    python benchmarks/speed/optimisations.py

Each row of a table adds one optimisation to the row above. All rows take turns in one process, on one batch of 128
images in memory; the table shows the median of each. Processor time depends less on other work of the machine than
elapsed time.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from baseline import to_plain
from machine import BATCH_SIZE, NUM_CLASSES, NUM_EXPERTS
from result import report
from torch import Tensor

from longtail.data.loaders import Batch
from longtail.losses import RIDELoss
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.resnet_cifar import BasicBlock, PaddedShortcut
from longtail.runtime.device import Runtime
from longtail.training.tasks import TrainExperts
from longtail.utils.choices import Precision

CPU = torch.device("cpu")


def block_without_in_place_relus(self: BasicBlock, x: Tensor) -> Tensor:
    out = F.relu(self.bn1(self.conv1(x)))
    out = self.bn2(self.conv2(out))
    out += self.shortcut(x)
    return F.relu(out)


def shortcut_by_slicing(self: PaddedShortcut, x: Tensor) -> Tensor:
    x = x[:, :, :: self.stride, :: self.stride]
    return F.pad(x, (0, 0, 0, 0, self.padding, self.padding))


Forwards = Mapping[type, Callable[..., Tensor]]
OPTIMISED: Forwards = {BasicBlock: BasicBlock.forward, PaddedShortcut: PaddedShortcut.forward}
UNOPTIMISED: Forwards = {BasicBlock: block_without_in_place_relus, PaddedShortcut: shortcut_by_slicing}
IN_PLACE_RELUS: Forwards = {**UNOPTIMISED, BasicBlock: BasicBlock.forward}


def with_forwards(forwards: Forwards, run: Callable[[], object]) -> Callable[[], None]:
    """Returns ``run`` with other forward functions in the classes of the model."""

    def run_with_forwards() -> None:
        for kind, forward in forwards.items():
            kind.forward = forward
        run()

    return run_with_forwards


def models_and_images() -> tuple[MultiExpert, MultiExpert, Tensor]:
    """Returns the plain model, the same model in channels-last memory, and images in contiguous memory."""
    torch.manual_seed(0)
    model = create_model("resnet32", NUM_CLASSES, NUM_EXPERTS)
    channels_last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return to_plain(model), channels_last, torch.randn(BATCH_SIZE, 3, 32, 32)


def training(precision: Precision) -> dict[str, Callable[[], None]]:
    plain, model, images = models_and_images()
    labels = torch.randint(0, NUM_CLASSES, (BATCH_SIZE,))
    runtime = Runtime(CPU, precision)
    counts = [max(5, 500 - 5 * number) for number in range(NUM_CLASSES)]

    def step(model: MultiExpert, images: Tensor, fused: bool | None) -> Callable[[], None]:
        task, batch = TrainExperts(model.train(), RIDELoss(counts)), Batch(images, labels)
        optimizer = torch.optim.SGD(
            task.parameters(), 1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused
        )

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with runtime.autocast():
                loss, _ = task(batch, 1)
            loss.backward()
            optimizer.step()

        return run

    channels_last = images.contiguous(memory_format=torch.channels_last)
    fused = step(model, channels_last, True)
    return {
        "plain": step(plain, images, None),
        "+ channels-last": with_forwards(UNOPTIMISED, step(model, channels_last, None)),
        "+ fused optimizer": with_forwards(UNOPTIMISED, fused),
        "+ in-place ReLUs": with_forwards(IN_PLACE_RELUS, fused),
        "+ subsampling without zeros": with_forwards(OPTIMISED, fused),
    }


def inference(precision: Precision) -> dict[str, Callable[[], None]]:
    plain, model, images = models_and_images()
    model.eval()
    runtime = Runtime(CPU, precision)

    def forward(model: MultiExpert, images: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), runtime.autocast():
                model(images)

        return run

    channels_last = images.contiguous(memory_format=torch.channels_last)
    return {
        "plain": forward(plain.eval(), images),
        "+ channels-last": with_forwards(UNOPTIMISED, forward(model, channels_last)),
        "+ in-place ReLUs": with_forwards(IN_PLACE_RELUS, forward(model, channels_last)),
        "+ subsampling without zeros": with_forwards(OPTIMISED, forward(model, channels_last)),
        "+ fused batch norms": with_forwards(OPTIMISED, forward(fuse_batch_norms(model, 32), channels_last)),
    }


def table(rounds: int) -> Iterator[str]:
    yield f"CIFAR RIDE-{NUM_EXPERTS}, a batch of {BATCH_SIZE}, median of {rounds} rounds"
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for name, variants in {"training": training, "inference": inference}.items():
        for precision in precisions:
            runs = variants(precision)
            seconds: dict[str, list[float]] = {row: [] for row in runs}
            for round_number in range(rounds + 1):
                for row, run in runs.items():
                    start = time.process_time()
                    run()
                    if round_number > 0:  # the first round allocates memory
                        seconds[row].append(time.process_time() - start)
            yield ""
            yield f"{name + ', ' + precision:30}{'images/CPU s':>13}{'ratio':>8}{'to the row above':>18}"
            rates = {row: BATCH_SIZE / statistics.median(times) for row, times in seconds.items()}
            first = above = rates["plain"]
            for row, rate in rates.items():
                yield f"  {row:28}{rate:>13.1f}{rate / first:>8.2f}{rate / above:>18.3f}"
                above = rate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report(table(options.rounds), "speed-optimisations-cpu.txt")

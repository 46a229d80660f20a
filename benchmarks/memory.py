"""Memory and time of a training step (forward, RIDE loss, backward, SGD), with and without activation checkpointing.

    python benchmarks/memory.py                                 # Swin-T with three experts; a few minutes on a CPU
    python benchmarks/memory.py resnet50 --batch 16 --device cuda

Each line is a process of its own. "kept" is what autograd holds between forward and backward; "peak" the most that all
tensors of a step take at once, gradients included, without weights, momentum and images (on CUDA: what the allocator
hands out); "resident" by how much the process grows at most from before the first step, which also has the momentum,
the memory inside the operations and what the allocator does not give back. The first step warms up, the second is
timed ("CPU seconds" are this process's alone: on a busy machine go by these), in the third tensors are pluralize;
"loss" is the third's, the same with and without.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from helpers.saved_tensors import saved_bytes
from result import report
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longtail.data.imbalance import imbalanced_counts
from longtail.losses import RIDELoss
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.multi_expert import create_model

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside take at once; storages that are there before are left out."""

    def __init__(self, *before: torch.Tensor):
        super().__init__()
        self._live: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in before}
        self._now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return results

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._live:
            self._live[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self._now -= self._live.pop(key)


def resident() -> int:
    """The most bytes that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(backbone: str, settings: argparse.Namespace) -> dict[str, float]:
    device = torch.device(settings.device)
    torch.manual_seed(0)
    model = create_model(
        backbone, settings.classes, settings.experts, width=settings.width, image_size=settings.size
    ).to(device)
    blocks = checkpoint_activations(model) if settings.measure == "checkpointed" else 0
    criterion = RIDELoss(imbalanced_counts("exponential", 1280, settings.classes, 0.01)).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(settings.batch, 3, settings.size, settings.size, device=device)
    labels = torch.randint(settings.classes, (settings.batch,), device=device)
    known = (images, labels, *model.parameters(), *model.buffers(), *criterion.buffers())
    cuda = device.type == "cuda"
    figures: dict[str, float] = {"blocks": blocks, "parameters": model.num_parameters}
    resident_before = resident()
    for kind in ("warm up", "time", "memory"):
        pluralize = kind == "memory"
        momentum = [state["momentum_buffer"] for state in optimiser.state.values()]
        live = LiveBytes(*known, *momentum) if pluralize and not cuda else nullcontext()
        optimiser.zero_grad()
        if cuda:
            allocated_before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        began, cpu_began = time.perf_counter(), time.process_time()
        with live:
            with saved_bytes(model) if pluralize else nullcontext() as saved:
                loss = criterion(model(images).logits, labels, epoch=0)
            if pluralize:
                figures["kept"] = saved.total
            loss.backward()
            optimiser.step()
        figures["loss"] = loss.item()  # waits for the device
        if kind == "time":
            figures["seconds"] = time.perf_counter() - began
            figures["CPU seconds"] = time.process_time() - cpu_began
        if pluralize:
            figures["peak"] = torch.cuda.max_memory_allocated() - allocated_before if cuda else live.peak
    figures["resident"] = resident() - resident_before
    return figures


def table(settings: argparse.Namespace) -> Iterator[str]:
    yield (
        f"{settings.experts} experts, {settings.width} width, batch of {settings.batch}, {settings.size} px, "
        f"{settings.classes} classes, float32 on {device_name(settings.device)}; memory in MiB"
    )
    width = max(map(len, settings.backbones))
    columns = ("parameters", "checkpointed blocks", "kept", "peak", "resident", "seconds", "CPU seconds", "loss")
    yield "  ".join(["backbone".ljust(width), *columns])
    for backbone in settings.backbones:
        rows = [in_its_own_process(backbone, kind) for kind in ("plain", "checkpointed")]
        for row in rows:
            cells = [
                f"{row['parameters']:{len(columns[0])},}",
                f"{row['blocks']:{len(columns[1])}}",
                *(f"{row[name] / MIB:{len(name)}.0f}" for name in ("kept", "peak", "resident")),
                *(f"{row[name]:{len(name)}.1f}" for name in ("seconds", "CPU seconds")),
                f"{row['loss']:.6f}",
            ]
            yield "  ".join([backbone.ljust(width), *cells])
        shares = (f"{name} {rows[1][name] / rows[0][name]:.2f}" for name in columns[2:-1])
        yield f"checkpointed / plain: {', '.join(shares)}"


def in_its_own_process(backbone: str, kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind, "--only", backbone]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "the CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=["swin_tiny_patch4_window7_224"])
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--width", choices=("narrow", "full"), default="narrow")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--note", default="", help="goes into the file")
    parser.add_argument("--measure", choices=("plain", "checkpointed"), help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.measure:
        print(json.dumps(measure(settings.only, settings)))
    else:
        report(table(settings), "activation_checkpointing.txt", settings.note)


if __name__ == "__main__":
    main()

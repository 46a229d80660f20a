"""Memory and time of a training step (forward, RIDE loss, backward, SGD), with and without activation checkpointing.

    python benchmarks/memory.py                                 # Swin-T with three experts; a few minutes on a CPU
    python benchmarks/memory.py resnet50 --batch 16 --device cuda

Each row is measured in its own process, which trains three steps. Columns:

- saved: bytes that autograd keeps between forward and backward.
- peak: largest size of all tensors of a step together, with gradients, without weights, momentum and images. On CUDA it
  is counted by the allocator.
- resident: growth of the process from before the first step. It includes momentum, the memory inside operations, and
  memory that the allocator does not return.
- seconds, CPU seconds: of the second step, after a warm-up step. CPU seconds are those of this process. Prefer them if
  the machine is busy.
- loss: of the third step, in which memory is counted. It is the same with and without checkpointing.
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
    """Counts the bytes of the tensors that are made within it, without the storages that exist before."""

    def __init__(self, *before: torch.Tensor):
        super().__init__()
        self._live: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in before}
        self._bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._live:
            self._live[storage._cdata] = storage.nbytes()
            self._bytes += storage.nbytes()
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(storage, self._remove, storage._cdata)

    def _remove(self, key: int) -> None:
        self._bytes -= self._live.pop(key)


def peak_resident() -> int:
    """Returns the largest size of this process in memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(backbone: str, options: argparse.Namespace) -> dict[str, float]:
    """Measures a row in this process."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = create_model(backbone, options.classes, options.experts, width=options.width, image_size=options.size).to(
        device
    )
    blocks = checkpoint_activations(model) if options.measure == "checkpointed" else 0
    criterion = RIDELoss(imbalanced_counts("exponential", 1280, options.classes, 0.01)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device)
    labels = torch.randint(options.classes, (options.batch,), device=device)
    existing = (images, labels, *model.parameters(), *model.buffers(), *criterion.buffers())
    is_cuda = device.type == "cuda"
    results: dict[str, float] = {"blocks": blocks, "parameters": model.num_parameters}
    resident_before = peak_resident()
    for step in ("warm-up", "time", "memory"):
        counts_memory = step == "memory"
        momentum = [state["momentum_buffer"] for state in optimizer.state.values()]
        live = LiveBytes(*existing, *momentum) if counts_memory and not is_cuda else nullcontext()
        optimizer.zero_grad()
        if is_cuda:
            allocated_before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        start, cpu_start = time.perf_counter(), time.process_time()
        with live:
            with saved_bytes(model) if counts_memory else nullcontext() as saved:
                loss = criterion(model(images).logits, labels, epoch=0)
            if counts_memory:
                results["saved"] = saved.total
            loss.backward()
            optimizer.step()
        results["loss"] = loss.item()  # waits for the device
        if step == "time":
            results["seconds"] = time.perf_counter() - start
            results["CPU seconds"] = time.process_time() - cpu_start
        if counts_memory:
            results["peak"] = torch.cuda.max_memory_allocated() - allocated_before if is_cuda else live.peak
    results["resident"] = peak_resident() - resident_before
    return results


def table(options: argparse.Namespace) -> Iterator[str]:
    yield (
        f"{options.experts} experts, {options.width} width, batch of {options.batch}, {options.size} px, "
        f"{options.classes} classes, float32 on {device_name(options.device)}; memory in MiB"
    )
    width = max(map(len, options.backbones))
    columns = ("parameters", "checkpointed blocks", "saved", "peak", "resident", "seconds", "CPU seconds", "loss")
    yield "  ".join(["backbone".ljust(width), *columns])
    for backbone in options.backbones:
        rows = [measure_in_new_process(backbone, kind) for kind in ("plain", "checkpointed")]
        for row in rows:
            cells = [
                f"{row['parameters']:{len(columns[0])},}",
                f"{row['blocks']:{len(columns[1])}}",
                *(f"{row[name] / MIB:{len(name)}.0f}" for name in ("saved", "peak", "resident")),
                *(f"{row[name]:{len(name)}.1f}" for name in ("seconds", "CPU seconds")),
                f"{row['loss']:.6f}",
            ]
            yield "  ".join([backbone.ljust(width), *cells])
        ratios = (f"{name} {rows[1][name] / rows[0][name]:.2f}" for name in columns[2:-1])
        yield f"checkpointed / plain: {', '.join(ratios)}"


def measure_in_new_process(backbone: str, kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", kind, "--only", backbone]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    results: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return results


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
    parser.add_argument("--note", default="", help="text for the header of the table")
    parser.add_argument("--measure", choices=("plain", "checkpointed"), help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.only, options)))
    else:
        report(table(options), "activation_checkpointing.txt", options.note)


if __name__ == "__main__":
    main()

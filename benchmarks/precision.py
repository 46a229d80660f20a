"""What half precision changes in the answers of trained models, on their runs' test images.

    python benchmarks/precision.py runs/cifar100-lt-ride [more runs] [--data.root FOLDER] [--device cuda]

Batch norms are fuse_batch_norms into convolutions, as `longtail predict` does it. "other answers" and "other experts" are the
shares of the images that get another class, or are shown to another number of experts, than in float32. fp16 is for
GPUs: few CPUs have instructions for it. Writes benchmarks/results/precision-cpu.txt, or -cuda.txt.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from result import report

from longtail.config.recipes import resolve
from longtail.data import build as data_build
from longtail.evaluation.metrics import score
from longtail.evaluation.outputs import collect_outputs
from longtail.evaluation.routing import prefix_predictions
from longtail.models.fuse import fuse_batch_norms
from longtail.models.router import experts_used
from longtail.runs.model_file import MODEL_FILE
from longtail.runs.run import Run
from longtail.runtime.device import Runtime, pick_device
from longtail.utils.format import percent


def table(run: Run, settings: list[str]) -> Iterator[str]:
    config = resolve(str(run.config_path), {}, settings)
    device = pick_device(config.device)
    model, metadata = run.load_model()
    model = fuse_batch_norms(model, metadata.image_size).to(device, memory_format=torch.channels_last)
    dataset = data_build.load_data(config)
    loader = data_build.eval_loader(config, dataset, dataset.test, Runtime(device))
    yield f"{config.name}: {metadata.architecture['name']}, {model.num_experts} experts, {len(dataset.test):,} test images"
    yield f"{'':20}{'overall':>8}{'many':>7}{'medium':>8}{'few':>7}{'other answers':>15}{'other experts':>15}"
    first = {}
    for precision in ("float32", "bf16") if device.type == "cpu" else ("float32", "bf16", "fp16"):
        with Runtime(device, precision).autocast():
            given = collect_outputs(model, loader)
        predicted = prefix_predictions(given.logits, given.average)
        asked = {"all experts": torch.full_like(given.labels, model.num_experts)}
        if model.router is not None and given.router_logits is not None:
            asked["routed"] = experts_used(given.router_logits, model.router.threshold)
        for way, used in asked.items():
            classes = predicted.gather(1, used[:, None] - 1).squeeze(1)
            right = first.setdefault(way, (classes, used))
            apart = [(now != before).float().mean().item() for now, before in zip((classes, used), right, strict=True)]
            found = score(classes, given.labels, dataset.class_counts)
            numbers = [found.accuracy, found.many, found.medium, found.few]
            shown = "".join(f"{percent(n):>{w}}" for n, w in zip(numbers, (8, 7, 8, 7), strict=True))
            yield f"{precision + ', ' + way:20}{shown}{apart[0]:>15.2%}{apart[1]:>15.2%}"
    yield ""


if __name__ == "__main__":
    folders = [word for word in sys.argv[1:] if (Path(word) / MODEL_FILE).is_file()]
    if not folders:
        raise SystemExit(__doc__)
    settings = [word for word in sys.argv[1:] if word not in folders]
    kind = resolve(str(Run.open(folders[0]).config_path), {}, settings).device
    lines = (line for folder in folders for line in table(Run.open(folder), settings))
    report(lines, f"precision-{pick_device(kind).type}.txt")

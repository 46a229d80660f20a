"""Changes of the predictions of trained models in half precision, on their test images.

    python benchmarks/precision.py runs/cifar100-lt-ride [more runs] [--data.root FOLDER] [--device cuda]

Batch norms are fused into convolutions, as in `longtail predict`. "other classes" and "other experts" are the shares of
images with another predicted class or another number of experts than in float32. fp16 is for GPUs; few CPUs have
instructions for it. Writes benchmarks/results/precision-cpu.txt or precision-cuda.txt.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from result import report
from run_contexts import run_contexts

from longtail.evaluation.metrics import score
from longtail.evaluation.outputs import collect_outputs
from longtail.evaluation.routing import prefix_predictions
from longtail.models.fuse import fuse_batch_norms
from longtail.models.router import experts_used
from longtail.runs.context import RunContext
from longtail.utils.choices import Precision
from longtail.utils.format import percent


def table(context: RunContext) -> Iterator[str]:
    model, metadata = context.run.load_model()
    model = context.to_device(fuse_batch_norms(model, metadata.image_size))
    loader = context.eval_loader(context.dataset.test)
    backbone, num_images = metadata.architecture["name"], len(context.dataset.test)
    yield f"{context.config.name}: {backbone}, {model.num_experts} experts, {num_images:,} test images"
    yield f"{'':20}{'overall':>8}{'many':>7}{'medium':>8}{'few':>7}{'other classes':>15}{'other experts':>15}"
    precisions: tuple[Precision, ...] = ("float32", "bf16", "fp16")
    reference = {}
    for precision in precisions[:2] if context.runtime.device.type == "cpu" else precisions:
        with replace(context.runtime, precision=precision).autocast():
            outputs = collect_outputs(model, loader)
        predictions = prefix_predictions(outputs.logits, outputs.average)
        experts = {"all experts": torch.full_like(outputs.labels, model.num_experts)}
        if model.router is not None and outputs.router_logits is not None:
            experts["routed"] = experts_used(outputs.router_logits, model.router.threshold)
        for name, used in experts.items():
            classes = predictions.gather(1, used[:, None] - 1).squeeze(1)
            expected = reference.setdefault(name, (classes, used))
            changed = [(a != b).float().mean().item() for a, b in zip((classes, used), expected, strict=True)]
            scores = score(classes, outputs.labels, context.dataset.class_counts)
            numbers = [scores.accuracy, scores.many, scores.medium, scores.few]
            cells = "".join(f"{percent(n):>{width}}" for n, width in zip(numbers, (8, 7, 8, 7), strict=True))
            yield f"{precision + ', ' + name:20}{cells}{changed[0]:>15.2%}{changed[1]:>15.2%}"
    yield ""


def main() -> None:
    device = next(run_contexts(sys.argv[1:])).runtime.device
    report((line for context in run_contexts(sys.argv[1:]) for line in table(context)), f"precision-{device.type}.txt")


if __name__ == "__main__":
    main()

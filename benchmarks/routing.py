"""Time saved by routing: images per second of few experts, all experts and the router, on a run's test images.

    python benchmarks/routing.py runs/cifar100-lt-ride [more runs] [--data.root FOLDER]

In batches of 64 images and of one. "time/all" is the time of an image relative to all experts, "MACs/all" the same for
multiply-accumulates, and "ratio" their quotient: at 1.00, routing saves as much time as arithmetic. All rows of a table
take turns on the same images. Below the table: seconds of two epochs of the router's training, with and without a cache
for the experts' outputs. Writes benchmarks/results/routing.txt.
"""

import sys
import time
from collections.abc import Iterator

import torch
from result import report
from run_contexts import run_contexts

from longtail.evaluation.flops import cost
from longtail.evaluation.throughput import images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.training.cached_outputs import CachedOutputs, ComputedOutputs

SECONDS = 10.0
NUM_IMAGES = {64: 1024, 1: 200}
"""Batch size -> number of images"""


def table(context: RunContext) -> Iterator[str]:
    run, config = context.run, context.config
    model, metadata = run.load_model()
    assert model.router is not None, f"{run.folder} has no router"
    threshold = model.router.threshold
    context.to_device(model)
    loader = context.eval_loader(context.dataset.test)
    images = torch.cat([batch.inputs for batch, _ in zip(loader.epoch(0), range(8), strict=False)])
    # In random order, and in one block of channels-last memory.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images[order.to(images.device)].contiguous(memory_format=torch.channels_last)
    model_cost, num_experts = cost(model, metadata.image_size), model.num_experts
    with torch.inference_mode():
        used = torch.cat([model.route(batch).experts_used for batch in torch.split(images, 64)])
    yield f"{config.name}: {metadata.architecture['name']}, {num_experts} experts, threshold {threshold:.4g}"
    yield "batch  experts           MACs     mean  images/s  time/all  MACs/all  ratio"
    for batch_size, number in NUM_IMAGES.items():
        subset = images[:number]
        speed = images_per_second(model, subset, batch_size, SECONDS)
        shares = torch.bincount(used[:number] - 1, minlength=num_experts).tolist()
        rows = [
            (f"{k} of {num_experts}", model_cost.prefix(k), float(k), speed.prefixes[k - 1])
            for k in range(1, num_experts + 1)
        ]
        assert speed.routed is not None
        rows.append(("routed", model_cost.expected(shares), model_cost.mean_experts(shares), speed.routed))
        for name, macs, experts, rate in rows:
            time_share, macs_share = speed.prefixes[-1] / rate, macs / model_cost.total
            start = f"{batch_size:5}  {name:9} {macs / 1e6:9.2f} M  {experts:7.2f}  {rate:8.1f}"
            yield f"{start}  {time_share:8.3f}  {macs_share:8.3f}  {time_share / macs_share:5.3f}"
        yield f"       {len(subset)} images, median of {speed.rounds} rounds"
    yield from caching(context, model.eval())
    yield ""


def caching(context: RunContext, model: MultiExpert) -> Iterator[str]:
    size, seed = context.config.router.batch_size, context.config.seed
    cached = CachedOutputs(
        model, context.loaders.shuffled(context.config.training.batch_size), batch_size=size, seed=seed
    )
    computed = ComputedOutputs(model, context.loaders.balanced(size), context.config.evaluation.batch_size)
    for kind, outputs in (("cached", cached), ("computed in each epoch", computed)):
        seconds = []
        for epoch in (1, 2):
            start = time.perf_counter()
            for _ in outputs.epoch(epoch):
                pass
            seconds.append(time.perf_counter() - start)
        yield f"outputs of the experts {kind}: first epoch {seconds[0]:.2f} s, second epoch {seconds[1]:.3f} s"


if __name__ == "__main__":
    report((line for context in run_contexts(sys.argv[1:]) for line in table(context)), "routing.txt")

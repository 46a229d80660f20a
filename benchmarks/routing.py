"""What routing saves in time: images a second of few experts, all experts and the router, on a run's test images.

    python benchmarks/routing.py runs/cifar100-lt-ride [more runs] [--data.root FOLDER]

At 64 images a time and at one. "ratio" compares the time an image takes with all experts' time, and that with what the
multiply-accumulates say: 1.00 would be as much time saved as arithmetic. All rows of a table take turns on the same
images. Also: seconds of an epoch of the router's training with and without keeping what the experts say.
Writes benchmarks/results/routing.txt.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from result import report

from longtail.config.recipes import resolve
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.data.splits import DataSplits
from longtail.evaluation.flops import cost
from longtail.evaluation.throughput import images_per_second
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import MODEL_FILE
from longtail.runs.run import Run
from longtail.runtime.device import Runtime, pick_device
from longtail.training.cached_outputs import FrozenOutputs

SECONDS = 10.0
BATCHES = {64: 1024, 1: 200}
"""Images at a time -> images in all"""


def main() -> None:
    folders = [word for word in sys.argv[1:] if (Path(word) / MODEL_FILE).is_file()]
    settings = [word for word in sys.argv[1:] if word not in folders]
    if not folders:
        raise SystemExit(__doc__)
    report((line for folder in folders for line in table(Run.open(folder), settings)), "routing.txt")


def table(run: Run, settings: list[str]) -> Iterator[str]:
    config = resolve(str(run.config_path), {}, settings)
    device = pick_device(config.device)
    model, metadata = run.load_model()
    assert model.router is not None, f"{run.folder} has no router"
    model.to(device, memory_format=torch.channels_last)
    dataset = data_build.load_data(config)
    loader = data_build.eval_loader(config, dataset, dataset.test, Runtime(device))
    images = torch.cat([batch[0] for batch, _ in zip(loader.epoch(0), range(8), strict=False)])
    # In an order of no meaning, as images come; and in one piece of channels-last memory.
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images = images[order.to(device)].contiguous(memory_format=torch.channels_last)
    price, num = cost(model, metadata.image_size), model.num_experts
    with torch.inference_mode():
        used = torch.cat([model.route(part).experts_used for part in torch.split(images, 64)])
    yield f"{config.name}: {metadata.architecture['name']}, {num} experts, threshold {model.router.threshold:.4g}"
    yield "batch  answer           MACs  experts  images/s  time/all  MACs/all  ratio"
    for batch, number in BATCHES.items():
        some = images[:number]
        speed = images_per_second(model, some, batch, SECONDS, threshold=model.router.threshold)
        shares = torch.bincount(used[:number] - 1, minlength=num).tolist()
        rows = [(f"{k} of {num}", price.prefix(k), float(k), speed.prefixes[k - 1]) for k in range(1, num + 1)]
        assert speed.routed is not None
        rows.append(("routed", price.expected(shares), price.mean_experts(shares), speed.routed))
        for name, macs, experts, rate in rows:
            times, arithmetic = speed.prefixes[-1] / rate, macs / price.total
            first = f"{batch:5}  {name:8} {macs / 1e6:10.2f} M  {experts:7.2f}  {rate:8.1f}"
            yield f"{first}  {times:8.3f}  {arithmetic:8.3f}  {times / arithmetic:5.3f}"
        yield f"       {len(some)} images, median of {speed.rounds} rounds"
    yield from caching(config, model, dataset, device)
    yield ""


def caching(config: Config, model: MultiExpert, dataset: DataSplits, device: torch.device) -> Iterator[str]:
    for gib in (config.router.cache_gib, 0.0):
        settings = replace(config.router, cache_gib=gib)
        source = data_build.shuffled_loader(config, dataset, Runtime(device))
        outputs = FrozenOutputs(model.eval(), source, batch_size=settings.batch_size, cache_gib=gib, seed=config.seed)
        seconds = []
        for epoch in (1, 2):
            start = time.perf_counter()
            for _ in outputs.epoch(epoch):
                pass
            seconds.append(time.perf_counter() - start)
        kept = "kept" if outputs.is_cached else "computed anew"
        yield f"what experts say is {kept}: first epoch {seconds[0]:.2f} s, second {seconds[1]:.3f} s"


if __name__ == "__main__":
    main()

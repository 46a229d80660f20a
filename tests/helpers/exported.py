"""Small models to export: a convolution as the trunk, and experts of a convolution each."""

import numpy as np
import torch
from torch import nn

from longtail.interop.export import Source
from longtail.interop.export_model import describe
from longtail.models.heads import create_heads
from longtail.models.multi_expert import MultiExpert, create_router
from longtail.runs.model_file import ModelMetadata

SIZE, CLASSES = 8, ("ant", 'bee, "large"', "naïve café", "鳥", "line\nend", "</script>")


def small_model(num_experts=3, *, routed=True, seed=0, head="cosine", **options):
    """A model for images of `SIZE` pixels, with batch norms and random weights."""
    torch.manual_seed(seed)
    branches = [
        nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for _ in range(num_experts)
    ]
    model = MultiExpert(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        branches,
        create_heads(num_experts, 8, len(CLASSES), head),
        **options,
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    if routed:
        model.router = create_router(model).eval()
        images = normalised(pixels(64))
        with torch.no_grad():  # some images continue, at each step
            scores = model.router(*model(images)[:2]).sigmoid()
        # Between two images each, so that no decision is close.
        first = float(scores[:, 0].sort().values[20:22].mean())
        others = scores[scores[:, 0] > first, 1:].sort(dim=0).values
        model.router.threshold = [first, *others[20:22].mean(dim=0).tolist()]
    return model


def metadata(num_experts=3, **changes):
    """Metadata that fit a small model."""
    architecture = {"name": "small", "num_classes": len(CLASSES), "num_experts": num_experts}
    values = {"class_names": CLASSES, "class_counts": (), "image_size": SIZE, "resize": SIZE + 1}
    values |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    return ModelMetadata(architecture, **(values | changes))


def source(model, **changes):
    """What the exporters get."""
    data = metadata(model.num_experts)
    return Source(model, data, describe(model, data), **changes)


def pixels(number, seed=1):
    """Noise of different contrast: (N, 3, S, S), uint8."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (number, 3, SIZE, SIZE)) * random.uniform(0, 1, (number, 3, 1, 1))
    return (noise + (255 - noise.max(axis=(2, 3), keepdims=True)) * random.uniform(0, 1, (number, 1, 1, 1))).astype(
        np.uint8
    )


def normalised(images):
    """Pixels to network inputs, computed here."""
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    return (torch.from_numpy(images).float() / 255 - mean) / std

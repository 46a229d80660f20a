"""Losses and samplers of longtail in a training loop of your own, with any model that outputs logits.

    python examples/own_loop.py

Trains four small models on a long-tailed subset of handwritten digits, and prints the balanced accuracy of each.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from longtail.data.imbalance import choose_subset, imbalanced_counts
from longtail.data.samplers import LongTailSampler
from longtail.data.sources.digits import digits
from longtail.data.splits import ImageSplit
from longtail.evaluation.metrics import evaluate_logits
from longtail.losses import Criterion, CrossEntropyLoss, LDAMLoss, LogitAdjustedLoss
from longtail.utils.choices import Sampling

EPOCHS, BATCH_SIZE = 30, 64


def train(images: Tensor, labels: Tensor, criterion: Criterion, sampling: Sampling) -> nn.Module:
    """Trains a small model. You can use any other model here, for example one of torchvision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    sampler = LongTailSampler(labels, sampling, epochs=EPOCHS)
    loader = DataLoader(TensorDataset(images, labels), BATCH_SIZE, sampler=sampler)
    for epoch in range(1, EPOCHS + 1):
        for batch, targets in loader:
            loss = criterion(model(batch), targets, epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def tensors(split: ImageSplit) -> tuple[Tensor, Tensor]:
    """Returns grey images (N, 8, 8), from 0 to 1, and labels (N,)."""
    return torch.from_numpy(split.pixels[..., 0]) / 255, torch.from_numpy(split.labels)


def main() -> dict[str, float]:
    """Trains with each method; returns the balanced accuracies on test images."""
    # From 114 images of the most frequent digit to 2 of the rarest.
    data, counts = digits(), imbalanced_counts("exponential", 114, 10, 0.02)
    long_tailed = data.train.take(choose_subset(data.train.labels, counts))
    images, labels = tensors(long_tailed)
    test_images, test_labels = tensors(data.test)
    methods: dict[str, tuple[Criterion, Sampling]] = {
        "cross-entropy": (CrossEntropyLoss(counts), "instance"),
        "progressively balanced": (CrossEntropyLoss(counts), "progressive"),
        "LDAM-DRW": (LDAMLoss(counts, scale=10, reweight_after=EPOCHS // 2), "instance"),
        "balanced softmax": (LogitAdjustedLoss(counts), "instance"),
    }
    scores = {}
    for name, (criterion, sampling) in methods.items():
        logits = train(images, labels, criterion, sampling)(test_images).detach()
        scores[name] = evaluate_logits(logits[:, None], test_labels, counts).balanced
        print(f"{name:24}{scores[name]:.1%}")
    return scores


if __name__ == "__main__":
    main()

"""Losses and samplers in a training loop of one's own: any network that yields logits, no settings, no run folder.

python examples/own_loop.py
"""

import torch
from torch import Tensor, nn

from longtail.data.imbalance import choose_subset, imbalanced_counts
from longtail.data.samplers import class_draws, class_probabilities, progressively_balanced
from longtail.data.sources.digits import digits
from longtail.evaluation.metrics import evaluate_logits
from longtail.losses import Criterion, CrossEntropyLoss, LDAMLoss, LogitAdjustedLoss

EPOCHS, BATCH_SIZE = 30, 64


def train(images: Tensor, labels: Tensor, criterion: Criterion, progressive: bool) -> nn.Module:
    """A small network; put your own here, or one of torchvision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    counts, generator = labels.bincount(), torch.Generator().manual_seed(0)
    chances = class_probabilities(counts, 1)  # 1/2: square-root; 0: class-balanced
    for epoch in range(1, EPOCHS + 1):
        if progressive:
            chances = progressively_balanced(counts, (epoch - 1) / (EPOCHS - 1))
        for batch in class_draws(labels, chances, len(labels), generator).split(BATCH_SIZE):
            logits = model(images[batch])
            loss = criterion(logits[:, None], labels[batch], epoch)  # one expert: (B, C) as (B, 1, C)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> dict[str, float]:
    """Accuracies with every class pluralize once, by method."""
    data, counts = digits(), imbalanced_counts("exponential", 114, 10, 0.02)  # from 114 images of a digit down to 2
    tail = data.train.take(choose_subset(data.train.labels, counts))
    (images, labels), (test_images, test_labels) = (
        (torch.from_numpy(split.pixels[..., 0]) / 255, torch.from_numpy(split.labels)) for split in (tail, data.test)
    )
    methods: dict[str, tuple[Criterion, bool]] = {
        "cross-entropy": (CrossEntropyLoss(counts), False),
        "progressively balanced": (CrossEntropyLoss(counts), True),
        "LDAM-DRW": (LDAMLoss(counts, scale=10, reweight_after=EPOCHS // 2), False),
        "balanced softmax": (LogitAdjustedLoss(counts), False),
    }
    scores = {}
    for name, method in methods.items():
        logits = train(images, labels, *method)(test_images).detach()
        scores[name] = evaluate_logits(logits[:, None], test_labels, counts).balanced
        print(f"{name:24}{scores[name]:.1%}")
    return scores


if __name__ == "__main__":
    main()

"""What scikit-learn reaches on the features of the frozen backbone of the recipe `folder`: logistic regression.

    python benchmarks/accuracy/frozen_features.py photos/ --image_size 192

The images are split as by `longtail train photos/`. Logistic regression with `class_weight="balanced"` is trained on
the standardised features of the unmodified network. Its regularisation is chosen on the validation images.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `result`
from result import report

from longtail.config.recipes import load_recipe
from longtail.data.build import LoaderFactory, load_data, preprocessing
from longtail.data.splits import ImageSplit
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import collect_features
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import create_model
from longtail.runtime.device import Runtime

STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
"""Values of scikit-learn's C"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--name", default="frozen-features", help="of the file with the result")
    options = parser.parse_args()
    config = load_recipe(
        "folder",
        {"data.root": options.folder, "data.image_size": options.image_size, "data.val_fraction": 0.1},
    )
    dataset = load_data(config.data)
    form = preprocessing(config.data, config.model.backbone, dataset)
    loaders = LoaderFactory(dataset, config.data, config.augmentation, form, Runtime(), config.seed)
    model = create_model(config.model.backbone, dataset.num_classes, num_experts=1, width="full", pretrained=True)
    model = fuse_batch_norms(model.eval(), options.image_size)

    def features(split: ImageSplit) -> tuple[np.ndarray, np.ndarray]:
        found = collect_features(model, loaders.eval(split, 8, "one"))
        return found.features[:, 0].numpy(), found.labels.numpy()

    start = time.perf_counter()
    assert dataset.val is not None
    (train, labels), (val, val_labels), (test, test_labels) = map(features, (dataset.train, dataset.val, dataset.test))
    seconds = time.perf_counter() - start
    scaler = StandardScaler().fit(train)
    train, val, test = (scaler.transform(part) for part in (train, val, test))

    def scores(classifier: LogisticRegression, inputs: np.ndarray, targets: np.ndarray):
        logits = torch.from_numpy(classifier.decision_function(inputs)).float()[:, None]
        return evaluate_logits(logits, torch.from_numpy(targets), dataset.class_counts)

    header = (
        ("C", 8),
        ("validation", 12),
        ("overall", 9),
        ("balanced", 10),
        ("many", 7),
        ("medium", 8),
        ("few", 6),
        ("ECE", 6),
    )
    lines = [
        f"{len(labels):,} training images, {len(test_labels):,} test images; features in {seconds:.0f} s",
        "",
        "".join(f"{name:>{width}}" for name, width in header),
    ]
    found = []
    for strength in STRENGTHS:
        classifier = LogisticRegression(C=strength, class_weight="balanced", max_iter=500).fit(train, labels)
        found.append((scores(classifier, val, val_labels).balanced, strength, scores(classifier, test, test_labels)))
    best = max(found)[1]
    for balanced, strength, test_scores in found:
        shots = test_scores.accuracy, test_scores.balanced, test_scores.many, test_scores.medium, test_scores.few
        values = [100 * (value or 0) for value in (balanced, *shots, test_scores.ece)]
        row = "".join(f"{value:>{width}.1f}" for value, (_, width) in zip(values, header[1:], strict=True))
        lines.append(f"{strength:>8g}{row}{'  chosen' if strength == best else ''}")
    report(lines, f"{options.name}.txt")


if __name__ == "__main__":
    main()

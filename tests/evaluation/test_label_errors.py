"""Wrong labels are found by what a model knows of the other images, and no class is accused as a whole."""

import math

import numpy as np
import pytest
import torch

from longtail.evaluation.label_errors import label_doubts, leave_one_out_logits, most_doubtful


@pytest.fixture
def clusters():
    """Features (N, 2, 8) of a long tail of four classes, true labels, and labels of which five are wrong."""
    random = torch.Generator().manual_seed(0)
    true = torch.arange(4).repeat_interleave(torch.tensor([100, 40, 12, 4]))
    centres = 8 * torch.randn(4, 2, 8, generator=random)
    features = centres[true] + torch.randn(len(true), 2, 8, generator=random)
    given = true.clone()
    given[[3, 50, 110, 141, 20]] = torch.tensor([1, 2, 3, 0, 1])
    return features, true, given


def test_each_image_is_left_out_of_its_class(clusters):
    features, _, labels = clusters
    logits = leave_one_out_logits(features, labels, 5)
    flat = features.flatten(1)
    flat = (flat - flat.mean(0)) / flat.std(0, unbiased=False)
    flat = flat / flat.norm(dim=1, keepdim=True)
    for image in (0, 3, 120, 155):
        for label in range(4):
            others = [k for k in range(len(labels)) if labels[k] == label and k != image]
            mean = flat[others].mean(dim=0)
            assert float(logits[image, label]) == pytest.approx(float(flat[image] @ mean / mean.norm()), abs=1e-5)
    assert (logits[:, 4] == 0).all()  # a class without images


def test_wrong_labels_are_found(clusters):
    features, true, given = clusters
    doubts = label_doubts(leave_one_out_logits(features, given, 4), given)
    found = most_doubtful(doubts.log_odds.numpy(), given.numpy())
    assert set(found.tolist()) == set(torch.nonzero(given != true).flatten().tolist())
    assert doubts.suggested[found].tolist() == true[found].tolist()


def test_labels_are_judged_relative_to_their_class():
    """With the same logits, a label of a class that the model does not know is less doubtful."""
    logits = torch.zeros(40, 3)
    labels = torch.arange(2).repeat_interleave(20)
    logits[torch.arange(20), 0] = 3.0  # class 0 is recognised, except for one image
    logits[20:, 2] = 3.0  # class 1 is taken for class 2
    logits[0] = torch.tensor([0.0, 0.0, 3.0])
    log_odds = label_doubts(logits, labels).log_odds
    assert log_odds[0] > log_odds[20]
    # By the definition: temperature scaling does not change which one is larger.
    assert log_odds[1] < 0


def test_of_each_class_only_a_share_is_reported():
    labels = np.array([0] * 20 + [1] * 4 + [2] * 6)
    log_odds = np.full(30, math.log(1e6), dtype=np.float32)
    log_odds[5] += 1
    log_odds[26:] = 0
    assert most_doubtful(log_odds, labels).tolist() == [5, 0, 1, 2, 24]
    assert most_doubtful(np.full(30, math.log(29), dtype=np.float32), labels).tolist() == []

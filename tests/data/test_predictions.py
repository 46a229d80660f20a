"""Classification of files: in order, whatever the batches and threads are, and reading no more than it must."""

from pathlib import Path

import numpy as np
import pytest

from longtail.data import predictions
from longtail.data.predictions import ClassProbability, Prediction, classify_files, pick_batch_size
from longtail.utils.errors import InputError

PATHS = [Path(str(number)) for number in range(11)]
WRONG = ("3", "4", "5", "10")


def read(path):
    if path.name in WRONG:
        raise InputError(f"{path}: wrong")
    return np.array([int(path.name)], dtype=np.uint8)


def classify(pixels):
    assert pixels
    return [[ClassProbability(f"class {number}", 0.5), ClassProbability("other", 0.1)] for (number,) in pixels]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_predictions_are_in_order(batch_size, threads, ahead, monkeypatch):
    """With groups of 3, one has only wrong files."""
    monkeypatch.setattr(predictions, "FILES_AT_ONCE", 3)
    sizes, results = [], []
    with pytest.raises(InputError) as error:
        # += keeps what comes before the error.
        results += classify_files(
            PATHS,
            read,
            lambda pixels: sizes.append(len(pixels)) or classify(pixels),
            batch_size=batch_size,
            threads=threads,
            ahead=ahead,
        )
    others = (ClassProbability("other", 0.1),)
    right = [path for path in PATHS if path.name not in WRONG]
    assert results == [Prediction(path, f"class {path.name}", 0.5, others) for path in right]
    assert str(error.value).splitlines() == [f"{name}: wrong" for name in WRONG]
    assert max(sizes) <= batch_size


@pytest.mark.parametrize(("ahead", "num_read"), [(False, 4), (True, 8)])
def test_no_more_than_the_next_group_is_read(ahead, num_read, monkeypatch):
    monkeypatch.setattr(predictions, "FILES_AT_ONCE", 5)  # groups of two batches
    started = []

    def watched(path):
        started.append(path)
        return np.zeros(1, dtype=np.uint8)

    results = classify_files(PATHS, watched, classify, batch_size=2, threads=2, ahead=ahead)
    assert next(results).path == PATHS[0]
    results.close()  # waits for what has been started
    assert set(PATHS[:4]) <= set(started) <= set(PATHS[:num_read])


def test_an_unexpected_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(classify_files(PATHS, lambda path: 1 / 0, classify, batch_size=2, threads=2, ahead=True))


def test_no_files():
    assert list(classify_files([], read, classify, batch_size=2, threads=2, ahead=True)) == []


@pytest.mark.parametrize(
    ("image_size", "processors", "expected"),
    [(32, 2, 64), (192, 2, 10), (192, 8, 43), (5000, 2, 1), (224, None, 64)],
)
def test_batch_size(image_size, processors, expected):
    assert pick_batch_size(None, image_size, processors) == expected
    assert pick_batch_size(7, image_size, processors) == 7

"""Classification of files: in order, whatever the batches and threads are, and reading no more than it must."""

from pathlib import Path

import numpy as np
import pytest

from longtail.utils.errors import InputError
from longtail.utils.predictions import ClassProbability, Prediction, best_batch_size, classify_files

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
@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
def test_answers_are_in_order(batch_size, threads, ahead):
    """With batches of 3, one has only wrong files."""
    answers = []
    with pytest.raises(InputError) as error:
        # += keeps what comes before the error.
        answers += classify_files(PATHS, read, classify, batch_size=batch_size, threads=threads, ahead=ahead)
    others = (ClassProbability("other", 0.1),)
    right = [path for path in PATHS if path.name not in WRONG]
    assert answers == [Prediction(path, f"class {path.name}", 0.5, others) for path in right]
    assert str(error.value).splitlines() == [f"{name}: wrong" for name in WRONG]


@pytest.mark.parametrize(("ahead", "num_read"), [(False, 2), (True, 4)])
def test_no_more_than_the_next_batch_is_read(ahead, num_read):
    started = []

    def watched(path):
        started.append(path)
        return np.zeros(1, dtype=np.uint8)

    answers = classify_files(PATHS, watched, classify, batch_size=2, threads=2, ahead=ahead)
    assert next(answers).path == PATHS[0]
    answers.close()  # waits for what has been started
    assert set(PATHS[:2]) <= set(started) <= set(PATHS[:num_read])


def test_an_unexpected_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(classify_files(PATHS, lambda path: 1 / 0, classify, batch_size=2, threads=2, ahead=True))


def test_no_files():
    assert list(classify_files([], read, classify, batch_size=2, threads=2, ahead=True)) == []


@pytest.mark.parametrize(
    ("image_size", "is_on_cpu", "expected"), [(32, True, 64), (224, True, 7), (5000, True, 1), (224, False, 64)]
)
def test_batch_size(image_size, is_on_cpu, expected):
    assert best_batch_size(image_size, is_on_cpu) == expected

"""How certain accuracies are: confidence intervals, and tests of the difference between two models.

Letters in shapes: K numbers, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

Z = norm.ppf(0.975)
"""Of intervals with 95 % confidence"""

Floats = NDArray[np.float64]


def wilson_interval(hits: ArrayLike, totals: ArrayLike) -> tuple[Floats, Floats]:
    """Returns the limits of Wilson's score interval (Wilson, 1927) of proportions: (K,) and (K,) -> (K,) and (K,).

    Unlike the interval of the normal approximation, it is inside 0 to 1 and not empty if all images are correct.

    Args:
        hits: correct images.
        totals: images; the limits are nan where there are none.
    """
    hits, totals = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = hits / totals
        center = (hits + Z**2 / 2) / (totals + Z**2)
        half = Z / (totals + Z**2) * np.sqrt(totals * share * (1 - share) + Z**2 / 4)
    # Rounding must not put the proportion itself outside.
    return np.minimum(center - half, share).clip(0), np.maximum(center + half, share).clip(None, 1)


def balanced_interval(hits: ArrayLike, totals: ArrayLike) -> tuple[float, float]:
    """Returns the limits of a confidence interval of the balanced accuracy, the mean of the classes' accuracies.

    Combines the classes' Wilson intervals by their squared distances from the accuracies: Zou, Huang and Zhang (2009),
    "A note on confidence interval estimation for a linear function of binomial proportions".

    Args:
        hits: correct images of each class, (C,).
        totals: images of each class, (C,); classes without images are left out.
    """
    hits, totals = np.asarray(hits, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    hits, totals = hits[totals > 0], totals[totals > 0]
    low, high = wilson_interval(hits, totals)
    shares = hits / totals
    down, up = (float(np.sqrt(((shares - limit) ** 2).sum())) / len(shares) for limit in (low, high))
    balanced = float(shares.mean())
    return max(0.0, balanced - down), min(1.0, balanced + up)


def mcnemar(only_first: ArrayLike, only_second: ArrayLike) -> Any:
    """Returns the p-values of McNemar's exact test (1947), two-sided: (K,) and (K,) -> (K,).

    Under the hypothesis that both models are equally accurate, an image that one of them classifies correctly is as
    likely to be of the first as of the second.

    Args:
        only_first: images that the first model alone classifies correctly.
        only_second: images that the second model alone classifies correctly.
    """
    first, second = np.asarray(only_first), np.asarray(only_second)
    return np.minimum(1.0, 2 * binom.cdf(np.minimum(first, second), first + second, 0.5))


def holm(p_values: ArrayLike) -> Floats:
    """Returns p-values adjusted for their number (Holm, 1979): (K,) -> (K,).

    If all differences are chance, an adjusted value is below 0.05 with a probability of at most 5 %.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


def difference_interval(only_first: int, only_second: int, num_images: int) -> tuple[float, float]:
    """Returns the limits of the difference of two accuracies on the same images, first minus second.

    Adds half an image to each of the four cells of the table, as Agresti and Min (2005) propose.

    Args:
        only_first: images that the first model alone classifies correctly.
        only_second: images that the second model alone classifies correctly.
        num_images: of the test.
    """
    first, second, total = only_first + 0.5, only_second + 0.5, num_images + 2
    difference = (first - second) / total
    half = Z * np.sqrt((first + second) / total - difference**2) / np.sqrt(total)
    return float(difference - half), float(difference + half)

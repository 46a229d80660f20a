"""Texts of the pages: names that may hold anything, and numbers."""

import math

from longtail.evaluation.significance import wilson_interval

MAX_LENGTH = 80


def clean(text: object, limit: int = MAX_LENGTH) -> str:
    """Returns a text as one line without control characters and broken bytes, shortened to the limit.

    The templates escape it, and isolate its direction of writing.
    """
    line = " ".join(str(text).encode(errors="replace").decode().split())
    line = "".join(c if c.isprintable() or c in _DIRECTIONS else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if len(line) <= limit else line[: limit - 1] + "…"


_DIRECTIONS = "\u200c\u200d\u200e\u200f"
"""Marks that are part of ordinary words in some scripts. The stronger ones, such as U+202E, are made visible"""


def interval(low: float, high: float) -> str:
    """Returns an interval of fractions in percent: "67.4 to 74.7"."""
    return f"{100 * low:.1f} to {100 * high:.1f}"


def accuracy_interval(accuracy: float, num_images: int) -> str:
    """Returns the confidence interval of an accuracy, in percent."""
    low, high = wilson_interval(round(accuracy * num_images), num_images)
    return interval(float(low), float(high))


def p_value(p: float) -> str:
    """Returns a p-value with two digits; a tiny one as its bound."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def points(difference: float) -> str:
    """Returns a difference of fractions in percentage points, with its sign."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "\N{MINUS SIGN}")


def probability(value: float) -> str:
    """Returns a probability in percent; close to 100 with more digits."""
    if not math.isfinite(value):
        return "n/a"
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%" if value < 0.9995 else "> 99.9\N{NO-BREAK SPACE}%"

"""Numbers and texts for people."""

import pytest

from longtail.utils.format import duration, escape, exact, macs, percent, pluralize, shortened_list


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(49.4e6, "49.4 M"), (100.2e6, "100 M"), (4.104e9, "4.10 G"), (1e6, "1.00 M"), (2.5e12, "2.50 T")],
        *[(1500, "1.50 k"), (37, "37.0"), (0.5, "0.50")],
    ],
)
def test_macs(number, text):
    assert macs(number) == text


def test_other_numbers():
    assert [exact(100.36e6), exact(1626), exact(0)] == ["100.36 M", "1.63 k", "0"]
    assert [percent(0.1234), percent(None)] == ["12.3", "n/a"]
    assert [duration(119), duration(120), duration(7200)] == ["119 s", "2 min", "2.0 h"]
    assert [pluralize(1, "class", "classes"), pluralize(2000, "epoch")] == ["1 class", "2,000 epochs"]


def test_texts():
    assert shortened_list(["a", "b", "c"], limit=2) == "a, b and 1 more"
    assert escape("two\nlines | `code`") == r"two lines \| \`code\`"
    assert escape("x" * 100) == "x" * 59 + "…"

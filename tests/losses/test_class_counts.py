"""Constants from class counts: what they refuse. Their values are compared in the tests of the criteria."""

import math

import pytest

from longtail.losses import RIDELoss, class_counts
from longtail.utils.errors import InputError

FUNCTIONS = ("ldam_margins", "effective_number_weights", "class_temperatures", "log_prior", "inverse_log_prior")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("count", [0, -3, math.nan])
def test_class_without_images(name, count):
    with pytest.raises(InputError, match=f"class 1 has {count:g} training images"):
        getattr(class_counts, name)([5, count, 1])


def test_losses_refuse_it_too():
    with pytest.raises(InputError, match="class 2 has 0"):
        RIDELoss([5, 3, 0])

"""What an ONNX file of longtail says about itself: text by key, each value as JSON. Needs no PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np

from longtail.utils.choices import Interpolation
from longtail.utils.errors import InputError

FORMAT_KEY, FORMAT = "longtail_format", 1
"""Key that marks a file of longtail, and the version of names, shapes and keys"""

MAX_SIDE = 8192
"""Pixels of the resized image, at most"""


@dataclass(frozen=True)
class OnnxMetadata:
    """The metadata of an exported model. The keys in the file are the names of the fields."""

    class_names: tuple[str, ...]
    """C names, in the order of the logits"""

    image_size: int
    """Height and width of the input, pixels"""

    resize: int
    """Shorter side before the central crop to ``image_size``, pixels"""

    interpolation: str
    """Of the resize, as Pillow does it, with averaging: bilinear or bicubic"""

    num_experts: int

    average: str
    """What the ensemble averages: logits or probabilities"""

    temperature: float
    """Divides the logits before probabilities are computed"""

    thresholds: tuple[float, ...]
    """Of the router, for each expert but the last; empty without a router"""

    macs: tuple[int, ...]
    """Multiply-accumulates of an image that uses 1, 2, ... experts, with the router"""

    mean: tuple[float, ...]
    """Of red, green and blue, from 0 to 1. The graph subtracts it and divides by ``std``: its inputs are pixels"""

    std: tuple[float, ...]

    precision: str = "float32"
    """float32 or int8"""

    backbone: str = ""

    version: str = ""
    """Of longtail that wrote the file"""

    def properties(self) -> dict[str, str]:
        """Returns the texts for the file."""
        return {FORMAT_KEY: str(FORMAT)} | {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def parse(cls, properties: Mapping[str, str]) -> "OnnxMetadata":
        """Reads the texts of a file.

        Raises:
            ValueError: they are missing or damaged, or of a newer version of longtail.
        """
        if FORMAT_KEY not in properties:
            raise ValueError("it has no metadata of longtail")
        if properties[FORMAT_KEY] != str(FORMAT):
            raise ValueError(f"its {FORMAT_KEY} is {properties[FORMAT_KEY][:20]}, and this version reads {FORMAT}")
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name in properties:
                value = json.loads(properties[field.name])
                values[field.name] = tuple(value) if isinstance(value, list) else value
        metadata = cls(**values)
        metadata._check()
        return metadata

    def _check(self) -> None:
        sizes, names = (self.image_size, self.resize, self.num_experts), self.class_names
        valid = (
            all(type(size) is int for size in sizes)
            and 1 <= self.image_size <= self.resize <= MAX_SIDE
            and self.interpolation in get_args(Interpolation)
            and isinstance(names, tuple)
            and all(isinstance(name, str) for name in names)
            and isinstance(self.temperature, int | float)
            and self.temperature > 0
            and isinstance(self.thresholds, tuple)
            and len(self.thresholds) in (0, self.num_experts - 1)
            and all(isinstance(number, int | float) for number in self.thresholds)
        )
        if not valid:
            raise ValueError("its metadata are damaged")


def as_thresholds(thresholds: Any, metadata: OnnxMetadata) -> list[float]:
    """Returns one threshold for each step of the router.

    Args:
        thresholds: one for all steps, or one for each; None: those of the model.
        metadata: of the model.

    Raises:
        InputError: there is no router, or the number of thresholds is wrong.
    """
    defaults = metadata.thresholds
    if thresholds is None:
        return list(defaults)
    if not defaults:
        raise InputError("the model has no router, so no thresholds")
    steps = [float(threshold) for threshold in (thresholds if np.ndim(thresholds) else [thresholds] * len(defaults))]
    if len(steps) != len(defaults):
        raise InputError(f"{len(steps)} thresholds {steps}: give one for all steps, or one for each of {len(defaults)}")
    return steps

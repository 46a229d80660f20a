"""AutoAugment (Cubuk et al., 2019) and Cutout (DeVries & Taylor, 2017) of small images, for many images at once.

The random choices are made on the CPU, for a full epoch. So the host knows which images need which operation: each
operation runs on its own images, and nothing waits for the device.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from longtail.data import image_ops
from longtail.utils.choices import Policy

NUM_LEVELS = 10
"""Of magnitudes in the policies"""

NUM_VALUES = 6
"""Numbers that describe an operation on an image"""

NONE = -1
"""Instead of the number of an operation"""

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (N, H, W, 3) and their values (N, 6) to images"""

OPERATIONS: dict[str, Operation] = {
    "affine": image_ops.transform_affine,
    "blend": lambda images, values: image_ops.blend_with_grey(images, values[:, :3]),
    "sharpen": lambda images, values: image_ops.sharpen(images, values[:, 0]),
    "posterize": lambda images, values: image_ops.posterize(images, values[:, 0]),
    "solarize": lambda images, values: image_ops.solarize(images, values[:, 0]),
    "autocontrast": lambda images, _: image_ops.stretch_contrast(images),
    "equalize": lambda images, _: image_ops.equalize(images),
}


class StrongParams(NamedTuple):
    """Random choices for N images."""

    operations: Tensor
    """(N, 2), numbers of the first and of the second operation in `OPERATIONS`, or `NONE`"""

    values: Tensor
    """(N, 2, 6), of the operations"""

    centres: Tensor
    """(N, 2), row and column of the centre of the square that is cut out"""

    def take(self, positions: Tensor) -> "StrongParams":
        """Returns the parameters of the images at these positions."""
        return StrongParams(*(part[positions] for part in self))


def draw_strong_params(num: int, policy: Policy, size: tuple[int, int], generator: torch.Generator) -> StrongParams:
    """Draws parameters of ``num`` images, on the CPU, with the distribution of torchvision's AutoAugment.

    Args:
        num: N.
        policy: of AutoAugment.
        size: height and width of the images.
        generator: on the CPU.
    """
    centres = torch.stack([torch.randint(0, side, (num,), generator=generator) for side in size], dim=1)
    if policy == "none":
        return StrongParams(torch.full((num, 2), NONE), torch.zeros(num, 2, NUM_VALUES), centres)
    probabilities, operations, values = _policy_tables(policy, size)
    chosen = torch.randint(0, len(operations), (num,), generator=generator)
    is_done = torch.rand(num, 2, generator=generator) < probabilities[chosen]
    sign = torch.randint(0, 2, (num, 2), generator=generator)
    drawn = values[sign, chosen[:, None], torch.arange(2)]
    return StrongParams(operations[chosen].masked_fill(~is_done, NONE), drawn, centres)


class StrongAugmentation:
    """AutoAugment and Cutout of the images of an epoch, in order.

    Args:
        params: of the images (M, ...), on the CPU.
        cutout: side of the square, pixels; 0: none.
        device: of the images. Everything that it needs is sent here, once.
        chunks: the parts of the epoch that are augmented at once.
    """

    def __init__(self, params: StrongParams, cutout: int, device: torch.device, chunks: list[slice]):
        self._cutout, self._counts = cutout, dict[int, Tensor]()
        order = torch.empty_like(params.operations)
        for chunk in chunks:
            operations = params.operations[chunk]
            order[chunk] = operations.argsort(dim=0, stable=True)
            self._counts[chunk.start] = torch.stack(
                [(operations == number).sum(0) for number in range(NONE, len(OPERATIONS))], dim=1
            )
        self._order, self._values, self._centres = (part.to(device) for part in (order, params.values, params.centres))

    def __call__(self, images: Tensor, chunk: slice) -> Tensor:
        """Augments the images (N, H, W, 3) of one of the chunks, perhaps in place."""
        values = self._values[chunk]
        for stage, counts in enumerate(self._counts[chunk.start].tolist()):
            groups = torch.split(self._order[chunk, stage], counts)
            for operation, positions in zip(OPERATIONS.values(), groups[1:], strict=True):
                if len(positions):
                    changed = operation(images[positions], values[positions, stage])
                    images.index_copy_(0, positions, changed)
        return image_ops.cut_out(images, self._centres[chunk], self._cutout) if self._cutout else images


@cache
def _policy_tables(policy: Policy, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the P pairs of operations: their probabilities and numbers (P, 2), and their values (2, P, 2, 6).

    The first dimension of the values is the sign of the magnitude: plus, minus.
    """
    pairs = AutoAugment(AutoAugmentPolicy(policy)).policies
    names = list(OPERATIONS)
    probabilities, operations = torch.zeros(len(pairs), 2), torch.zeros(len(pairs), 2, dtype=torch.int64)
    values = torch.zeros(2, len(pairs), 2, NUM_VALUES)
    for number, pair in enumerate(pairs):
        for stage, (name, probability, level) in enumerate(pair):
            probabilities[number, stage] = probability
            for row, sign in enumerate((1, -1)):
                operation, numbers = _describe(name, level, sign, *size)
                operations[number, stage] = names.index(operation)
                values[row, number, stage, : len(numbers)] = torch.tensor(numbers)
    return probabilities, operations, values


def _describe(name: str, level: int | None, sign: int, height: int, width: int) -> tuple[str, tuple[float, ...]]:
    """Returns the key of an operation of a policy in `OPERATIONS`, and its values.

    The largest magnitudes are those of torchvision, which follow Cubuk et al., 2019, table 6.

    Args:
        name: of the operation in torchvision.
        level: of its magnitude, from 0 to 9; None: it has no magnitude.
        sign: of the magnitude, 1 or -1.
        height: of the images, pixels.
        width: of the images, pixels.
    """

    def magnitude(largest: float) -> float:
        return sign * float(torch.linspace(0.0, largest, NUM_LEVELS)[level])

    match name:
        case "ShearX":
            return "affine", _matrix(1, magnitude(0.3), 0, 0, 1, 0)
        case "ShearY":
            return "affine", _matrix(1, 0, 0, magnitude(0.3), 1, 0)
        case "TranslateX":
            return "affine", _matrix(1, 0, -int(magnitude(150 / 331 * width)), 0, 1, 0)
        case "TranslateY":
            return "affine", _matrix(1, 0, 0, 0, 1, -int(magnitude(150 / 331 * height)))
        case "Rotate":
            radians = math.radians(magnitude(30))
            cos, sin, x, y = math.cos(radians), math.sin(radians), width / 2, height / 2
            return "affine", _matrix(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
        case "Brightness":
            return "blend", (1 + magnitude(0.9), 0, 0)
        case "Color":
            return "blend", (1 + magnitude(0.9), 1, 0)
        case "Contrast":
            return "blend", (1 + magnitude(0.9), 0, 1)
        case "Sharpness":
            return "sharpen", (1 + magnitude(0.9),)
        case "Posterize":
            assert level is not None
            bits = 8 - round(level * 4 / (NUM_LEVELS - 1))
            return "posterize", (256 - 2 ** (8 - bits),)
        case "Solarize":
            return "solarize", (math.ceil(255 - abs(magnitude(255))),)
        case "Invert":
            return "solarize", (0,)
        case "AutoContrast" | "Equalize":
            return name.lower(), ()
    raise ValueError(f"operation '{name}' of AutoAugment is not known")


def _matrix(a: float, b: float, c: float, d: float, e: float, f: float) -> tuple[float, ...]:
    """Returns the matrix of `image_ops.transform_affine` from that of the centres of pixels, in pixels.

    As in Pillow, numbers have 16 bits after the binary point. So float32 is exact, up to about 256 pixels.
    """
    numbers = a, b, c + (a + b) / 2, d, e, f + (d + e) / 2
    return tuple(math.floor(number * 2**16 + 0.5) / 2**16 for number in numbers)

"""Random changes of brightness, contrast and saturation, as torchvision's ColorJitter makes them, a batch at a time.

The numbers are torchvision's own. They are drawn with the picture, and go with its bytes to the device, which changes
the colours: PIL would take a fifth of the time that a worker has for a picture. Between the changes values are kept as
they are, where PIL cuts them to whole numbers after each: PIL's results are some one level lower on average.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

GREY = (0.299, 0.587, 0.114)
"""How bright red, green and blue are (ITU-R BT.601)."""

NONE = torch.empty(0, 3)
"""Changes of a picture that is to keep its colours."""


def draw_changes(jitter: v2.ColorJitter) -> Tensor:
    """What a ColorJitter without hue would do next, drawn by itself from torch's global generator.

    Returns:
        (3, 3): a row for each change, in their order, with the weights of a pixel's old value, of its grey and of the
        picture's mean grey in its new value.
    """
    drawn = jitter.make_params([])
    factors = [drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation")]
    brightness, contrast, saturation = (1.0 if factor is None else factor for factor in factors)
    rows = [[brightness, 0, 0], [contrast, 0, 1 - contrast], [saturation, 1 - saturation, 0]]
    return torch.tensor([rows[i] for i in drawn["fn_idx"].tolist() if i < len(rows)])


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Applies changes one after the other, each limited to 0 to 255.

    Args:
        images: (B, 3, H, W), 0 to 255, of any type.
        changes: (B, K, 3), as `draw_changes` makes them, on the same device.

    Returns:
        (B, 3, H, W) float32; ``images`` themselves where there is nothing to change.
    """
    if not changes.shape[1]:
        return images
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    red, green, blue = images.unbind(1)  # views, which see each change
    for change in changes.unbind(1):
        of_value, of_grey, of_mean = change.view(-1, 3, 1, 1).unbind(1)
        grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
        mean = grey.mean((1, 2), keepdim=True)
        other = grey.mul_(of_grey).add_(mean * of_mean)
        images.mul_(of_value[:, None]).add_(other[:, None]).clamp_(0, 255)
    return images

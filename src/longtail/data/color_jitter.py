"""torchvision's ColorJitter without hue, by batch on the device.

torchvision draws the changes with the image, and the device applies them: in a worker, PIL would take a fifth of the
time of an image. Values are not rounded between the changes. PIL rounds them down, so its results are about one level
lower on average.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)"""

NONE = torch.empty(0, 3)
"""The changes of an image that keeps its colours"""


def draw_changes(jitter: v2.ColorJitter) -> Tensor:
    """Draws the next changes of a ColorJitter without hue, from torch's global generator.

    Returns:
        (3, 3): one row for each change, in their order. A new pixel value is a weighted sum of the old value, the grey
        value and the mean grey value of the image; the row has the weights.
    """
    drawn = jitter.make_params([])
    factors = [drawn[f"{name}_factor"] for name in ("brightness", "contrast", "saturation")]
    brightness, contrast, saturation = (1.0 if factor is None else factor for factor in factors)
    rows = [[brightness, 0, 0], [contrast, 0, 1 - contrast], [saturation, 1 - saturation, 0]]
    return torch.tensor([rows[i] for i in drawn["fn_idx"].tolist() if i < len(rows)])


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Applies color changes one by one; clips to 0 to 255 after each.

    Args:
        images: (B, 3, H, W), 0 to 255, of any type.
        changes: (B, K, 3), from `draw_changes`, on the same device.

    Returns:
        (B, 3, H, W) float32; ``images`` itself if K is 0.
    """
    if not changes.shape[1]:
        return images
    images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    red, green, blue = images.unbind(1)  # views, so they see each change
    for change in changes.unbind(1):
        value_weight, grey_weight, mean_weight = change.view(-1, 3, 1, 1).unbind(1)
        grey = (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
        mean = grey.mean((1, 2), keepdim=True)
        offset = grey.mul_(grey_weight).add_(mean * mean_weight)
        images.mul_(value_weight[:, None]).add_(offset[:, None]).clamp_(0, 255)
    return images

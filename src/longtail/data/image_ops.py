"""Changes to small images by batch, on their device, as Pillow makes them one image at a time.

All functions take uint8 images (N, H, W, 3) and numbers for each of them, and return new images. They do not wait for
the device. They compute with whole numbers, also where these are stored as float32, so every device gives the same
pixels.
"""

import torch
from torch import Tensor

GREY = (19595.0, 38470.0, 7471.0)
"""Pillow's weights of red, green and blue in grey (ITU-R BT.601), times 65,536: products are exact in float32"""

LEVELS = 256


def gather_pixels(images: Tensor, positions: Tensor, row: Tensor, column: Tensor, inside: Tensor) -> Tensor:
    """Returns images of pixels of other images; pixels from outside an image are black.

    Args:
        images: all images (N, H, W, C), contiguous.
        positions: the image of each result, (B,).
        row: of each pixel of the results, (B, H', W'), of type int64. Changed in place.
        column: of each pixel, likewise.
        inside: whether row and column are in the image, (B, H', W').

    Returns:
        (B, H', W', C).
    """
    _, height, width, channels = images.shape
    row, column = row.clamp_(0, height - 1), column.clamp_(0, width - 1)
    pixel = (positions[:, None, None] * height + row) * width + column
    gathered = images.view(-1, channels)[pixel.flatten()].view(*pixel.shape, channels)
    return gathered * inside[..., None]


def transform_affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Shifts, shears or rotates images; nearest pixel, black outside.

    Args:
        images: (N, H, W, 3), contiguous.
        matrices: (N, 6), numbers a to f. The pixel in column x and row y of the result is the one in column
            a x + b y + c and row d x + e y + f of the image, both rounded down.
    """
    num, height, width, _ = images.shape
    device = images.device
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    a, b, c, d, e, f = matrices[:, :, None, None].unbind(1)
    column, row = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return gather_pixels(images, torch.arange(num, device=device), row, column, inside)


def blend_with_grey(images: Tensor, weights: Tensor) -> Tensor:
    """Changes brightness, saturation or contrast, by a blend with black, the grey image or its mean.

    Args:
        images: (N, H, W, 3).
        weights: (N, 3): of the image, as in Pillow's ImageEnhance; 1 for its grey values, or 0; 1 for their mean, or 0.
    """
    pixels = images.float()
    factor, with_grey, with_mean = weights.view(-1, 3, 1, 1).unbind(1)
    red, green, blue = (channel * weight for channel, weight in zip(pixels.unbind(3), GREY, strict=True))
    grey = red.add_(green).add_(blue).add_(0.5 * 65536).div_(65536).floor_()
    num_pixels = grey[0].numel()
    # Integers, so that the order of the sum does not matter.
    mean = grey.long().sum((1, 2), keepdim=True).mul_(2).add_(num_pixels).div_(2 * num_pixels, rounding_mode="floor")
    return _blend((grey * with_grey).add_(mean * with_mean)[..., None], pixels, factor[..., None])


def sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """Sharpens images (factors above 1) or smooths them (below 1).

    Args:
        images: (N, H, W, 3).
        factors: (N,), as in Pillow's ImageEnhance: 0 gives the 3 x 3 filter with 5 in its centre and 1 elsewhere.
    """
    pixels = images.float()
    three_rows = (pixels[:, :-2] + pixels[:, 1:-1]).add_(pixels[:, 2:])
    total = (three_rows[:, :, :-2] + three_rows[:, :, 1:-1]).add_(three_rows[:, :, 2:])
    total.add_(pixels[:, 1:-1, 1:-1], alpha=4)
    smooth = pixels.clone()  # pixels at the border stay
    smooth[:, 1:-1, 1:-1] = total.add_(6).div_(13).floor_()
    return _blend(smooth, pixels, factors.view(-1, 1, 1, 1))


def posterize(images: Tensor, masks: Tensor) -> Tensor:
    """Keeps the bits of each value that are set in ``masks`` (N,)."""
    return images & masks.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Inverts values from ``thresholds`` (N,) on; 0 inverts all of them."""
    return torch.where(images >= thresholds.to(torch.uint8).view(-1, 1, 1, 1), 255 - images, images)


def stretch_contrast(images: Tensor) -> Tensor:
    """Stretches the values of each channel to 0 to 255 (autocontrast).

    Rounds down the exact value. Pillow computes with rounding errors and is one level lower where the exact value is an
    integer and the errors happen to be negative.
    """
    pixels = images.float()
    lowest, highest = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    has_one_level = highest == lowest  # and stays as it is
    lowest.masked_fill_(has_one_level, 0)
    span = (highest - lowest).masked_fill_(has_one_level, 255)
    return pixels.sub_(lowest).mul_(255).div_(span).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Makes the levels of each channel about equally common (histogram equalisation)."""
    num, height, width, channels = images.shape
    device, num_tables = images.device, num * channels
    first = (torch.arange(num_tables, device=device) * LEVELS).view(num, 1, 1, channels)
    entries = (images + first).flatten()
    counts = torch.zeros(num_tables * LEVELS, dtype=torch.int64, device=device)
    counts.scatter_add_(0, entries, torch.ones((), dtype=torch.int64, device=device).expand_as(entries))
    up_to = counts.view(num_tables, LEVELS).cumsum(1)
    # Of the levels below the highest one that occurs, as Pillow does.
    num_pixels = height * width
    below_highest = up_to.masked_fill(up_to == num_pixels, 0).amax(1, keepdim=True)
    step = below_highest.div_(255, rounding_mode="floor")
    below = up_to - counts.view(num_tables, LEVELS)
    table = (
        below.add_(step.div(2, rounding_mode="floor")).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    )
    table = torch.where(step > 0, table, torch.arange(LEVELS, device=device)).to(torch.uint8)
    return table.flatten()[entries].view(images.shape)


def cut_out(images: Tensor, centres: Tensor, length: int) -> Tensor:
    """Blackens a square in each image, as far as it is inside: Cutout (DeVries & Taylor, 2017), section 3.2.

    Args:
        images: (N, H, W, 3).
        centres: rows and columns (N, 2).
        length: of the sides, pixels.
    """
    _, height, width, _ = images.shape
    top, left = (centres - length // 2).view(-1, 2, 1).unbind(1)
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    in_rows, in_columns = ((at >= start) & (at < start + length) for at, start in ((rows, top), (columns, left)))
    return images * ~(in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def _blend(base: Tensor, pixels: Tensor, factors: Tensor) -> Tensor:
    """``base`` plus factors times the difference of the pixels to it, rounded down: uint8. Changes pixels."""
    return pixels.sub_(base).mul_(factors).add_(base).clamp_(0, 255).to(torch.uint8)

"""Resize and central crop of test images, as torchvision's ``Resize`` and ``CenterCrop``; needs no PyTorch."""

from PIL import Image


def resize_shorter(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """Resizes an image so that its shorter side has this many pixels; the longer side is rounded down.

    Args:
        image: of any size.
        side: pixels.
        interpolation: bilinear or bicubic; pixels are averaged if the image becomes smaller.
    """
    width, height = image.size
    shorter, longer = sorted((width, height))
    other = int(side * longer / shorter)
    size = (side, other) if width <= height else (other, side)
    return image if size == image.size else image.resize(size, Image.Resampling[interpolation.upper()])


def crop_centre(image: Image.Image, side: int) -> Image.Image:
    """Returns the central square of an image that is at least as large."""
    left, top = (round((length - side) / 2) for length in image.size)
    return image.crop((left, top, left + side, top + side))

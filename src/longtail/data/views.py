"""Test-time views: crops and mirror images of an image, over which a model's outputs are averaged.

Letters in shapes: B images, V views, S height and width of the network's input.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import five_crop

from longtail.data.loaders import Batch, Loader
from longtail.utils.choices import Views
from longtail.utils.errors import InputError

NUM_VIEWS: dict[Views, int] = {"one": 1, "flip": 2, "five-crop": 5, "ten-crop": 10}


def source_size(views: Views, image_size: int, resize: int) -> int:
    """Returns height and width of the images that views are made of.

    Args:
        views: kind of the views.
        image_size: S, pixels.
        resize: shorter side before the central crop, pixels.

    Raises:
        InputError: all crops would be the same.
    """
    if "crop" not in views:
        return image_size
    if resize == image_size:
        raise InputError(
            f"views '{views}': images have {resize} pixels, as the network's input, so all crops would be equal; use "
            "'flip', or, for image files, train with a larger data.resize"
        )
    return resize


def make_views(images: Tensor, views: Views, image_size: int) -> Tensor:
    """Returns views of images in channels-last memory, all images of one view after those of another.

    Crops are those of AlexNet (Krizhevsky et al., 2012), section 4.1: the four corners and the centre of the central
    square, and for ten-crop their mirror images.

    Args:
        images: (B, 3, H, H), with H from `source_size`.
        views: kind of the views.
        image_size: S, pixels.

    Returns:
        (V * B, 3, S, S).
    """
    if views == "one":
        return images
    parts = list(five_crop(images, [image_size, image_size])) if "crop" in views else [images]
    if views in ("flip", "ten-crop"):
        parts += [part.flip(3) for part in parts]
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


class ViewsLoader:
    """A `Loader` whose inputs are views of the images of another one: (V * B, 3, S, S), see `make_views`.

    Args:
        loader: of images (B, 3, H, H).
        views: kind of the views.
        image_size: S, pixels.
    """

    def __init__(self, loader: Loader, views: Views, image_size: int):
        self.num_images, self.batch_size, self.shard = loader.num_images, loader.batch_size, loader.shard
        self.num_views = NUM_VIEWS[views]
        self._loader, self._views, self._image_size = loader, views, image_size

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches of views; the labels are those of the images (B,)."""
        for batch in self._loader.epoch(epoch, first):
            yield batch._replace(inputs=make_views(batch.inputs, self._views, self._image_size))


def num_views(loader: Loader) -> int:
    """Returns the number of views of each image in a loader's batches."""
    return getattr(loader, "num_views", 1)

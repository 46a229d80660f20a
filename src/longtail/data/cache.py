"""Picture files decoded once and kept in memory: small ones are then trained on as CIFAR is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from longtail.data.pictures import decode
from longtail.data.splits import Split
from longtail.data.transforms import Transform
from longtail.errors import InputError, raise_all


def fits(num_images: int, image_size: int, gib: float) -> bool:
    """Whether images of (image_size, image_size, 3) bytes take at most ``gib`` GiB of memory."""
    return num_images * image_size**2 * 3 <= gib * 2**30


def decode_all(split: Split, transform: Transform) -> Split:
    """The same images, decoded and framed: pixels (N, S, S, 3) in place of paths.

    ``transform`` must not be random: it runs in several threads, in no certain order.

    Raises:
        InputError: pictures do not decode, each on a line of its own.
    """
    paths = split.paths
    assert paths is not None
    _, height, width = transform(Image.new("RGB", (1, 1))).shape
    pixels = np.empty((len(split), height, width, 3), dtype=np.uint8)

    def fill(position: int) -> InputError | None:
        try:
            pixels[position] = transform(decode(paths[position])).permute(1, 2, 0).numpy()
        except InputError as error:
            return error
        return None

    # Decoding and resizing let go of Python's lock, so threads do: nothing has to be sent between processes.
    with ThreadPoolExecutor() as pool:
        raise_all([str(error) for error in pool.map(fill, range(len(split))) if error])
    return Split(split.labels, pixels)

"""Near copies: the same picture encoded again, resized or slightly cropped. Found by thumbnails; needs only NumPy."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Thumbnails = NDArray[np.uint8]
"""(N, SIDE, SIDE, 3), RGB"""

SIDE = 16
"""Height and width of a thumbnail, pixels"""

MAX_BITS = 24
"""Pairs of images whose hashes of 128 bits differ in more bits are not compared. Of unrelated photos, about one pair in
10,000 differs in fewer"""

MIN_CORRELATION = 0.97
"""Of the thumbnails of near copies"""

ROUGH_CORRELATION = 0.8
"""Of thumbnails that are compared in all alignments"""

MARGIN = 0.06
"""Part of a side that a crop may have cut off: at one end, at both together, or at each end"""

TILE = 2048
"""Images that are compared with as many others at a time: 4 million pairs, 64 MB"""

CHUNK = 8192
"""Pairs of thumbnails that are compared at a time: 50 MB"""


class NearCopies(NamedTuple):
    """Pairs of near copies."""

    first: NDArray[np.int64]
    """(M,), positions"""
    second: NDArray[np.int64]
    """(M,), larger positions"""
    correlation: NDArray[np.float32]
    """(M,), of the thumbnails, from `MIN_CORRELATION` to 1"""


def near_copies(thumbnails: Thumbnails) -> Iterator[NearCopies]:
    """Yields all pairs of near copies, up to four million at a time.

    Every pair of images is compared by a difference hash (dHash) of 128 bits, a tile of pairs at a time. Pairs with
    similar hashes are compared by the correlation of their thumbnails, as they are and as if one of them was cropped.
    The time grows with the square of the number of images: 100,000 take about a minute.
    """
    hashes = difference_hashes(thumbnails)
    starts = range(0, len(hashes), TILE)

    def compare(tile: tuple[int, int]) -> NearCopies:
        row, column = tile
        rows, columns = hashes[row : row + TILE], hashes[column : column + TILE]
        bits = sum(np.bitwise_count(rows[:, None, k] ^ columns[None, :, k]) for k in range(hashes.shape[1]))
        first, second = np.nonzero(bits <= MAX_BITS)
        first, second = first + row, second + column
        each_once = first < second
        return _confirmed(thumbnails, first[each_once], second[each_once])

    # Threads: NumPy releases Python's lock.
    with ThreadPoolExecutor() as pool:
        yield from pool.map(compare, combinations_with_replacement(starts, 2))


def num_tiles(num_images: int) -> int:
    """Returns how many times `near_copies` yields."""
    tiles = -(-num_images // TILE)
    return tiles * (tiles + 1) // 2


def difference_hashes(thumbnails: Thumbnails) -> NDArray[np.uint64]:
    """Returns hashes of 128 bits (N, 2): whether a pixel of 8 x 8 is brighter than the one on its left, or above it."""
    brightness = thumbnails @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    nine = _window(0, 1, 9)
    small = nine @ brightness @ nine.T
    right, below = small[:, :8, 1:] > small[:, :8, :-1], small[:, 1:, :8] > small[:, :-1, :8]
    bits = np.concatenate([right.reshape(-1, 64), below.reshape(-1, 64)], axis=1)
    return np.packbits(bits, axis=1).view(np.uint64)


def _confirmed(thumbnails: Thumbnails, first: NDArray[np.int64], second: NDArray[np.int64]) -> NearCopies:
    correlation = np.zeros(len(first), dtype=np.float32)
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        a, b = (_standardised(thumbnails[positions[part]].astype(np.float32)) for positions in (first, second))
        correlation[part] = np.einsum("nhwc,nhwc->n", a, b)
        rough = np.flatnonzero((correlation[part] >= ROUGH_CORRELATION) & (correlation[part] < MIN_CORRELATION))
        best = correlation[part][rough]
        for originals, crops in ((a[rough], b[rough]), (b[rough], a[rough])):
            for rows, columns in CROPS:
                aligned = np.einsum("ph,nhwc,qw->npqc", rows, originals, columns, optimize=True)
                best = np.maximum(best, np.einsum("nhwc,nhwc->n", _standardised(aligned), crops))
        correlation[start + rough] = best
    near = correlation >= MIN_CORRELATION
    return NearCopies(first[near], second[near], correlation[near])


def _standardised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns images with mean 0 and norm 1. So another brightness or contrast does not matter; other colours do."""
    images = images - images.mean(axis=(1, 2, 3), keepdims=True)
    norms = np.sqrt(np.einsum("nhwc,nhwc->n", images, images))
    standardised: NDArray[np.float32] = np.divide(
        images, np.maximum(norms, 1e-3)[:, None, None, None], dtype=np.float32
    )
    return standardised


def _window(start: float, stop: float, size: int) -> NDArray[np.float32]:
    """Returns a matrix (size, SIDE) that resizes a part of a side, from 0 to 1, to ``size`` pixels by mean values."""
    edges = SIDE * np.linspace(start, stop, size + 1)[:, None]
    pixels = np.arange(SIDE)
    overlap = (np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)).clip(0)
    matrix: NDArray[np.float32] = (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _crops() -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Matrices that crop and resize the rows and the columns of thumbnails."""
    windows = [_window(start, start + 1 - MARGIN, SIDE) for start in (0, MARGIN / 2, MARGIN)]
    central = _window(MARGIN, 1 - MARGIN, SIDE)
    return [(central, central), *((rows, columns) for rows in windows for columns in windows)]


CROPS = _crops()

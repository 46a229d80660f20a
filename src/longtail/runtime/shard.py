"""How several processes divide the images of an epoch when they train or evaluate one model together."""

from typing import NamedTuple


class BatchSlice(NamedTuple):
    """A batch in the order of an epoch, and this process's images in it."""

    batch: slice
    """The N images of the batch, in the order of the epoch"""

    rows: slice
    """The images of this process among these N"""

    @property
    def epoch_rows(self) -> slice:
        """The images of this process, in the order of the epoch."""
        return slice(self.batch.start + self.rows.start, self.batch.start + self.rows.stop)


class Shard(NamedTuple):
    """The share of process number ``rank`` (from 0) of ``size``."""

    rank: int = 0
    size: int = 1
    full_batches: bool = False
    """Processes take full batches in turn, as for evaluation, with the arithmetic of a single process. Otherwise each
    process takes a part of every batch, as for training."""

    def batches(self, num_images: int, batch_size: int, first: int = 0) -> list[BatchSlice]:
        """The batches of this process, from its batch number ``first`` (from 0) on."""
        starts = range(0, num_images, batch_size)
        if self.full_batches:
            starts = starts[self.rank :: self.size]
        return [self._slice(start, min(start + batch_size, num_images)) for start in starts[first:]]

    def _slice(self, start: int, stop: int) -> BatchSlice:
        length = stop - start
        rank, size = (0, 1) if self.full_batches else (self.rank, self.size)
        # Shares differ by at most one image.
        return BatchSlice(slice(start, stop), slice(length * rank // size, length * (rank + 1) // size))


SINGLE_SHARD = Shard()
"""A process that works alone"""


def images_per_epoch(num_images: int, batch_size: int, min_batch: int = 1) -> int:
    """All images, less those of a last batch with fewer than ``min_batch``, unless it is the only batch."""
    rest = num_images % batch_size
    return num_images - rest if rest < min_batch and num_images > batch_size else num_images

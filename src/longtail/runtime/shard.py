"""Which images each of several processes has, when they train or test one model together."""

from typing import NamedTuple


class Shard(NamedTuple):
    """The part of the work of process number ``rank`` (from 0) of ``size``."""

    rank: int = 0
    size: int = 1
    whole_batches: bool = False
    """Batches in turn, whole, as for a test, which then does the very arithmetic of one process; otherwise a part of
    every batch, as for training."""

    def batches(self, num_images: int, batch_size: int, first: int = 0) -> list[slice]:
        """Where this process's batches lie in the order of an epoch; from number ``first`` on, counting from 0."""
        starts = range(0, num_images, batch_size)
        if self.whole_batches:
            return [slice(start, min(start + batch_size, num_images)) for start in starts[self.rank :: self.size]][
                first:
            ]
        return [self.part(start, min(start + batch_size, num_images)) for start in starts[first:]]

    def part(self, start: int, stop: int) -> slice:
        """This process's part of a batch; parts differ by one image at most."""
        images = stop - start
        return slice(start + images * self.rank // self.size, start + images * (self.rank + 1) // self.size)


ALL = Shard()
"""One process alone."""


def images_per_epoch(num_images: int, batch_size: int, least: int = 1) -> int:
    """All images, but for a last batch with fewer than ``least``, unless it is the only one."""
    rest = num_images % batch_size
    return num_images - rest if rest < least and num_images > batch_size else num_images

"""Work in threads that can be interrupted."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

CHUNK = 1024
"""Items queued at a time: a million queued images would take a gigabyte and could not be interrupted"""

Result = TypeVar("Result")


def map_in_threads(function: Callable[[Any], Result], items: Sequence[Any]) -> Iterator[Result]:
    """Yields the results in the order of the items."""
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(items), CHUNK):
            yield from pool.map(function, items[start : start + CHUNK])

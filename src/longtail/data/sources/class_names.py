"""Names of classes, in folders and in lists."""

import logging
import unicodedata
from collections.abc import Collection

from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)


def find_similar(name: str, others: Collection[str]) -> str | None:
    """Returns the first name that differs from a name only in case, spaces, accents or Unicode form; None if none does.

    Example:
        >>> find_similar("Café ", ["tea", "cafe"])
        'cafe'
    """
    simple = _simplify(name)
    return next((other for other in others if other != name and _simplify(other) == simple), None)


def log_left_out(split: str, names: Collection[str], num_images: int) -> None:
    """Logs the classes of a split that are left out because they have no training images."""
    classes, images = pluralize(len(names), "class of", "classes of"), pluralize(num_images, "image")
    shown = shortened_list([f"'{name}'" for name in names], 5)
    logger.info("Left out %s the %s split (%s) without training images: %s", classes, split, images, shown)


def describe_difference(name: str, other: str) -> str:
    """Returns in what two similar names differ."""
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other):
        return "in their Unicode form (NFC or NFD)"
    return "in upper and lower case, spaces or accents"


def _simplify(name: str) -> str:
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return " ".join("".join(letters).casefold().split())

"""Finds the images to classify: files, and folders that are searched."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from longtail.data.sources.image_files import find_images_below, log_skipped_files
from longtail.utils.errors import InputError


def find_images(locations: str | Path | Sequence[str | Path]) -> list[Path]:
    """Returns image files, and those in folders, in order.

    Raises:
        InputError: a location is neither an image nor a folder with images.
    """
    if isinstance(locations, str | PathLike):  # one location; its letters are none
        locations = [locations]
    return [path for location in locations for path in _images_at(location)]


def _images_at(location: str | Path) -> list[Path]:
    path = Path(location)
    if not os.fspath(location):  # for pathlib the current folder
        raise InputError("'' is neither an image nor a folder")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"'{path}' is neither an image nor a folder")
    images, skipped = find_images_below(path)
    log_skipped_files(path, skipped)
    if not images:
        raise InputError(f"no images in '{path}'")
    return images

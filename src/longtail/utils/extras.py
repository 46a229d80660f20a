"""Packages that an extra of longtail installs."""

from importlib.util import find_spec

from longtail.utils.errors import InputError


def check_extra(extra: str, *packages: str) -> None:
    """Checks that packages are installed, without importing them.

    Raises:
        InputError: one is not.
    """
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # without an origin it is a folder that has the package's name
            raise InputError(f"{package} is not installed: pip install 'longtail[{extra}]'")

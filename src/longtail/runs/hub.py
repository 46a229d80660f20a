"""Models on the Hugging Face Hub: addresses ``hf://owner/name``, and the download of their files."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from longtail.utils.console import log_level
from longtail.utils.errors import InputError, one_line

SCHEME = "hf://"
REPOSITORY = "/".join(2 * [r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"])
"""Pattern of owner/name"""

SECONDS = 20.0
"""How long the server may take for its first answer. Later pauses have the limit of HF_HUB_DOWNLOAD_TIMEOUT, 10 s"""


class HubAddress(NamedTuple):
    """A model on the Hub, such as ``hf://owner/name`` or ``hf://owner/name@revision``."""

    repository: str
    """owner/name"""

    revision: str | None = None
    """Branch, tag or commit; None is the main branch"""

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(source: str | Path) -> bool:
    """Whether a text is meant as an address on the Hub; a path never is."""
    return isinstance(source, str) and source.startswith("hf:")


def parse_address(text: str) -> HubAddress:
    """Returns the parts of an address.

    Raises:
        InputError: it has another form.

    Example:
        >>> parse_address("hf://owner/name@v1")
        HubAddress(repository='owner/name', revision='v1')
    """
    match = re.fullmatch(rf"hf://({REPOSITORY})(?:@([^\s@]+))?", text)
    if match is None:
        raise InputError(f"'{text}' is not a model on the Hub; it must be hf://owner/name or hf://owner/name@revision")
    return HubAddress(*match.groups())


def download(address: HubAddress, name: str) -> Path:
    """Downloads a file into the cache of the Hub's client, or finds it there. Without a network it uses the cached one.

    Returns:
        The file, in a folder that has the name of the commit.

    Raises:
        InputError: there is no such repository, revision or file; access is denied; or the network fails.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(str(address)):
        return Path(
            hf_hub_download(
                address.repository, name, revision=address.revision, etag_timeout=SECONDS, library_name="longtail"
            )
        )


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns errors of the Hub's client within it into one line about ``what``, and hides the client's own lines.

    Raises:
        InputError: the client failed.
    """
    import huggingface_hub.utils  # noqa: F401  # sets the level of its logger

    try:
        with log_level(logging.ERROR, "huggingface_hub"):  # it announces each retry
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {_explanation(error)}") from error


def _explanation(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the Hub did answer
    if isinstance(error, errors.GatedRepoError):
        return "access must be asked for on its page first; then log in with: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):  # the server does not say which
        return "does not exist, or is private; log in with 'hf auth login', or set HF_TOKEN, to use private models"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the Hub cannot be reached, and the model is not in the cache; check the network, or use a local folder"
    if isinstance(error, errors.EntryNotFoundError):
        return "is not a model of longtail: it has no such file as longtail push writes"
    response = getattr(error, "response", None)
    if (status := getattr(response, "status_code", None)) in (401, 403):
        return f"access denied ({status}); log in with 'hf auth login', or set HF_TOKEN to a token with this permission"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "no login; run 'hf auth login', or set HF_TOKEN"
    reason = one_line(str(error).strip().partition("\n")[0][:200]) or type(error).__name__
    if status is not None:
        return f"the Hub answered {status} ({reason}); try again later"
    if isinstance(error, OSError) and error.errno is not None:  # the disk
        return f"cannot be written to the cache: {error.strerror}"
    return f"the connection to the Hub failed ({reason}); the same command tries again"

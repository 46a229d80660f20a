"""Locks on folders, so that two processes do not write to the same one."""

import errno
import logging
import os
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # on Windows, where filelock uses other locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of file systems without locks, such as some network file systems"""


def acquire_lock(folder: Path) -> FileLock | None:
    """Locks a folder until ``release()`` of the result or the end of this process.

    Returns:
        The lock; None if the file system has no locks, after a warning.

    Raises:
        filelock.Timeout: another process has locked it.
        OSError: the folder is not writable.
    """
    if reason := _why_no_locks(folder):
        # Not a soft lock, which a killed process would leave behind for good.
        logger.warning("'%s': no file locks here (%s); do not use this run in two processes at a time", folder, reason)
        return None
    lock = FileLock(folder / LOCK_FILE)
    lock.acquire(timeout=0)
    return lock


def is_locked(folder: Path) -> bool:
    """Whether another process has locked the folder. In a folder that is not writable none can be seen."""
    if not (folder / LOCK_FILE).exists() or _why_no_locks(folder):
        return False
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _why_no_locks(folder: Path) -> str:
    if fcntl is None:
        return ""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing it removes the lock
    except OSError as error:
        return str(error.strerror) if error.errno in NO_LOCKS else ""
    finally:
        os.close(descriptor)
    return ""

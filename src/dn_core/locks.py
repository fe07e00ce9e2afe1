"""File locks: one process at a time, if the drive supports locking."""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["locked"]

_CANNOT_LOCK = {
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.EBADF,
    errno.ENOTTY,
}


@contextlib.contextmanager
def locked(path: Path, seconds: float, busy: str) -> Iterator[None]:
    """Keep other processes out of a ``with`` block.

    The lock file stays; the system releases the lock when the process ends. Drives that cannot lock
    (some network drives and FUSE) keep nobody out, which is a RuntimeWarning.

    Parameters
    ----------
    path : Path
        The lock file; its folder must exist.
    seconds : float
        How long to wait for another process.
    busy : str
        The error message if the lock is still held after that time.

    Raises
    ------
    BlockingIOError
        When another process still holds the lock.
    """
    lock = FileLock(path, timeout=seconds, thread_local=False)  # any thread may release it
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, busy, str(path.parent)) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _CANNOT_LOCK:
            raise
        warnings.warn(
            f"the drive of {path.parent} cannot lock files ({error}). Make sure that nothing else "
            "writes there at the same time.",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()

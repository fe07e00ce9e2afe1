"""One process at a time in a folder, as far as its drive can lock files."""

from __future__ import annotations

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["locked"]

_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOTTY}


@contextlib.contextmanager
def locked(path: Path, seconds: float, busy: str) -> Iterator[None]:
    """Keep other processes out for the ``with`` block, by a lock file that stays; the system lets go of the lock when a process dies.

    On drives that cannot lock (some network drives and FUSE) nobody is kept out, with a RuntimeWarning that says so.

    Raises
    ------
    BlockingIOError
        With the words `busy`, when another process still has it after so many seconds.
    """
    lock = FileLock(path, timeout=seconds, thread_local=False)  # whichever thread lets go of it
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, busy, str(path.parent)) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _CANNOT_LOCK:
            raise
        warnings.warn(
            f"the drive of {path.parent} cannot lock files ({error}): take care that nothing else writes there meanwhile.",
            RuntimeWarning,
            stacklevel=3,
        )
    try:
        yield
    finally:
        lock.release()

"""Temporary folders that do not stay behind: who is killed cannot remove its own, so the next one does."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["scratch_folder"]

PREFIX = "dn-resnet-scratch-"
LOCK = "lock"
GRACE_SECONDS = 60.0
"""A folder that is younger may not have its lock yet."""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder of this machine, removed at the end; with it those of our processes that were killed before."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            _remove_abandoned(old)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name:
        outer = Path(name).resolve()
        with FileLock(outer / LOCK, timeout=0):
            (outer / "files").mkdir()
            yield outer / "files"


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder whose lock nobody holds: the system lets go of it when a process dies."""
    status = folder.lstat()
    if (os.name != "nt" and status.st_uid != os.getuid()) or time.time() - status.st_mtime < GRACE_SECONDS:
        return
    if (folder / LOCK).is_file():
        with FileLock(folder / LOCK, timeout=0):
            shutil.rmtree(folder / "files", ignore_errors=True)
        shutil.rmtree(folder)

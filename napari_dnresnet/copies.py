"""Copies of layers on disk for a training in a process of its own; they are there only as long as it runs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

__all__ = ["Copy", "remove_abandoned"]

LOCK_FILE = "in-use.lock"
ENDING = "-images"


class Copy:
    """A folder for the images of the training `name`, which is this program's until it is removed.

    Raises
    ------
    BlockingIOError
        When another program uses it.
    """

    def __init__(self, trainings: Path, name: str) -> None:
        from filelock import FileLock, Timeout

        self.folder = trainings / f"{name}{ENDING}"
        self.folder.mkdir(parents=True, exist_ok=True)
        # The system lets go of the lock when the program dies; threads share it.
        self._lock = FileLock(self.folder / LOCK_FILE, timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise BlockingIOError(11, f"another window is training {name}; choose another name", str(self.folder)) from None

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._lock.release()  # first: Windows keeps files that are open
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_abandoned(trainings: Path) -> None:
    """Remove the copies of programs that ended without doing so."""
    for folder in trainings.glob(f"*{ENDING}"):
        with contextlib.suppress(OSError):  # another program's
            Copy(trainings, folder.name.removesuffix(ENDING)).remove()

"""Copies of layers on disk for a training in a process of its own; they are there only as long as it runs."""

from __future__ import annotations

import contextlib
import shutil
import warnings
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
        from dn_core.locks import locked

        self.folder = trainings / f"{name}{ENDING}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(locked(self.folder / LOCK_FILE, 0, f"another window is training {name}; choose another name"))

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        self._lock.close()  # first: Windows keeps files that are open
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_abandoned(trainings: Path) -> None:
    """Remove the copies of programs that ended without doing so, as far as that can be told."""
    for folder in trainings.glob(f"*{ENDING}"):
        # Another program's, or on a drive without locks, where all may be.
        with warnings.catch_warnings(), contextlib.suppress(OSError, RuntimeWarning):
            warnings.simplefilter("error", RuntimeWarning)
            Copy(trainings, folder.name.removesuffix(ENDING)).remove()

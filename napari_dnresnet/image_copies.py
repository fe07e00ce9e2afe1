"""Temporary copies of layers on disk, for the process that trains on them."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

__all__ = ["ImageCopies", "remove_abandoned"]

LOCK_FILE = "in-use.lock"
SUFFIX = "-images"


class ImageCopies:
    """A folder for the images of the training run `name`, locked until it is removed.

    Parameters
    ----------
    folder : Path
        Where training runs keep their files.
    name : str
        Name of the model that is trained.

    Raises
    ------
    BlockingIOError
        When another program uses the folder.
    """

    def __init__(self, folder: Path, name: str) -> None:
        from dn_core.locks import locked

        self.folder = folder / f"{name}{SUFFIX}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(
            locked(
                self.folder / LOCK_FILE,
                0,
                f"Another window is training {name}. Choose another name",
            )
        )

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        self._lock.close()  # first: Windows does not delete open files
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove the copies that programs left behind when they were killed."""
    for copies in folder.glob(f"*{SUFFIX}"):
        # A lock that is held (OSError), or a drive without locks (RuntimeWarning), where every
        # copy may still be in use.
        with warnings.catch_warnings(), contextlib.suppress(OSError, RuntimeWarning):
            warnings.simplefilter("error", RuntimeWarning)
            ImageCopies(folder, copies.name.removesuffix(SUFFIX)).remove()

"""Temporary folders that are cleaned up even when the process that made them was killed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dn_core.safe_write import clear_leftovers, named_by_process

__all__ = ["temporary_folder"]

PREFIX = "dnresnet"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make an empty folder on this machine and remove it at the end.

    A killed process cannot remove its own folder, so folders of processes that no longer run are
    removed first.

    Yields
    ------
    pathlib.Path
        The folder, readable by this user only.
    """
    parent = Path(tempfile.gettempdir()).resolve()
    clear_leftovers(parent, PREFIX)
    folder = named_by_process(parent, PREFIX, "scratch")
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

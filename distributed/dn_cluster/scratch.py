"""Temporary folders that do not stay behind: who is killed cannot remove its own, so the next one does."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dn_core.safe_write import clear_leftovers, named_by_process

__all__ = ["scratch_folder"]

WORD = "dnresnet"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder of this machine, removed at the end; with it those of processes that were killed before."""
    place = Path(tempfile.gettempdir()).resolve()
    clear_leftovers(place, WORD)
    folder = named_by_process(place, WORD, "scratch")
    folder.mkdir(0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

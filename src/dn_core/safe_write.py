"""Files appear whole or not at all: written beside their target under a temporary name, flushed, renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["replaced_file", "replaced_folder"]


@contextlib.contextmanager
def replaced_file(target: Path, *, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a temporary path in the target's folder; on success flush it, `check` it and rename it to `target`.

    The temporary name keeps all extensions (``.part-XXXX.name.ome.tif``), as writers decide by them. A link is followed: what it
    points to is replaced. On any exception, KeyboardInterrupt included, the temporary file is removed and the target is as before.

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        When the target cannot be written, before anything is computed.
    """
    target = _writable(target)
    temporary = _beside(target, "part")
    try:
        yield temporary
        _flush_file(temporary)
        if check is not None:
            check(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@contextlib.contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """As `replaced_file`, for a folder such as an OME-Zarr."""
    target = _writable(target, folder=True)
    temporary, old = _beside(target, "part"), _beside(target, "old")
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush_file(path)
        if target.exists():
            os.replace(target, old)
            try:
                os.replace(temporary, target)
            except BaseException:
                os.replace(old, target)
                raise
        else:
            os.replace(temporary, target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():  # interrupted between the two renames
            os.replace(old, target)


def _writable(target: Path, *, folder: bool = False) -> Path:
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"the folder of the output is missing; create it first: {target.parent}", str(target))
    if target.is_dir() and not folder:
        raise IsADirectoryError(21, "the output is a folder, a file name is expected; add a file name", str(target))
    if not os.access(target.parent, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise PermissionError(13, "the output may not be written; choose another place or change its permissions", str(target))
    return target


def _beside(target: Path, word: str) -> Path:
    """A hidden name in the target's folder with the target's extensions, at most 255 bytes long as file systems ask."""
    ending = os.fsencode(target.name)[-200:].decode(errors="ignore")
    return target.with_name(f".{word}-{secrets.token_hex(4)}.{ending}")


def _flush_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder to flush it
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Synchronisation of a local folder with the storage, for tasks that Ray may retry elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from dn_cluster.error_messages import replace_path_in_errors
from dn_cluster.storage import Storage
from dn_cluster.temporary_folders import temporary_folder

__all__ = ["StorageSync", "synced_folder"]


class StorageSync:
    """A local folder and the storage that holds a copy of its files.

    Parameters
    ----------
    folder : Path
        The local folder.
    storage : Storage
        Where its files are kept.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self._pushed: dict[str, int] = {}  # modification times of the files that the storage has

    def pull(self) -> None:
        """Download all files of the storage."""
        from pyarrow import fs

        filesystem, root = self.storage.filesystem()
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        for entry in filesystem.get_file_info(selector):
            if entry.is_file:
                name = entry.path.removeprefix(root).lstrip("/")
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.storage.read(name) or b"")
                self._pushed[name] = path.stat().st_mtime_ns

    def push(self) -> None:
        """Upload the files that have changed, oldest first.

        A file that refers to another one is younger, so the storage never has only the first.
        """
        paths = [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"
        ]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            name, time = path.relative_to(self.folder).as_posix(), path.stat().st_mtime_ns
            if self._pushed.get(name) != time:
                self.storage.write(name, path.read_bytes())
                self._pushed[name] = time


@contextlib.contextmanager
def synced_folder(storage: Storage) -> Iterator[StorageSync]:
    """A temporary folder with the storage's files; `StorageSync.push` uploads its changes.

    Errors raised in the block name the storage instead of the folder.

    Parameters
    ----------
    storage : Storage
        The folder or address to synchronise with.

    Yields
    ------
    StorageSync
        After its first `StorageSync.pull`.
    """
    with temporary_folder() as folder, replace_path_in_errors(folder, storage.address):
        sync = StorageSync(folder, storage)
        sync.pull()
        yield sync

"""A folder of this machine that lasts: kept up to date in the storage, for tasks that may be tried again on another node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs

from dn_cluster.scratch import scratch_folder
from dn_cluster.storage import Storage
from dn_cluster.words import named_after

__all__ = ["Mirror", "mirrored"]


class Mirror:
    """The files in `folder`, as they are in the storage."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self.seen: dict[str, int] = {}

    def pull(self) -> None:
        """Bring what the storage has."""
        system, root = self.storage.filesystem()
        for entry in system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
            if entry.is_file:
                name = entry.path.removeprefix(root).lstrip("/")
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.storage.read(name) or b"")
                self.seen[name] = path.stat().st_mtime_ns

    def push(self) -> None:
        """Put what has changed there, oldest first: what a file speaks of is there before it."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".") and path.suffix != ".lock"]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns):
            name, time = path.relative_to(self.folder).as_posix(), path.stat().st_mtime_ns
            if self.seen.get(name) != time:
                self.storage.write(name, path.read_bytes())
                self.seen[name] = time


@contextlib.contextmanager
def mirrored(storage: Storage) -> Iterator[Mirror]:
    """A folder with what the storage holds, removed at the end; `Mirror.push` keeps it. Errors name the storage."""
    with scratch_folder() as folder, named_after(storage.address, folder):
        mirror = Mirror(folder, storage)
        mirror.pull()
        yield mirror

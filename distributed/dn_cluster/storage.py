"""The place that all nodes reach, where a run keeps its settings, checkpoints and models: a folder, or an address such as s3://."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from dn_core.safe_write import free_bytes, replaced_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["FullDiskError", "Storage", "WholeFiles"]


class FullDiskError(OSError):
    """The storage has no room for what is to be written next."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder by its absolute path, or an address that pyarrow knows (``s3://``, ``gs://`` ...); names in it have / between parts."""

    address: str

    @classmethod
    def at(cls, place: str) -> Storage:
        """The storage at a path, made absolute, or at an address."""
        return cls(place.rstrip("/") if "://" in place else os.path.abspath(place))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return "://" not in self.address

    def within(self, name: str) -> Storage:
        """The folder `name` in it."""
        return Storage(f"{self.address}/{name}")

    def filesystem(self) -> tuple[FileSystem, str]:
        """For pyarrow and Ray: the file system, and the path in it.

        Raises
        ------
        ValueError
            When the address is of no kind that pyarrow knows.
        """
        from pyarrow import fs

        if self.is_local:
            return fs.PyFileSystem(fs.FSSpecHandler(WholeFiles())), self.address
        kind, _, path = self.address.partition("://")
        if kind == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL")
            # Without a delayed open every small file is a multipart upload, which some servers of the protocol refuse.
            return fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True), path
        try:
            return fs.FileSystem.from_uri(self.address)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"storage is {self.address!r}, which cannot be used ({error}); a folder or an address such as s3://bucket/folder is "
                "expected. Change --storage."
            ) from error

    def read(self, name: str) -> bytes | None:
        """What is there under `name`; None where nothing is."""
        if self.is_local:
            path = Path(self.address, name)
            return path.read_bytes() if path.is_file() else None
        system, root = self.filesystem()
        try:
            with system.open_input_stream(f"{root}/{name}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put it there, whole or not at all."""
        if self.is_local:
            path = Path(self.address, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replaced_file(path) as temporary:
                temporary.write_bytes(content)
            return
        system, root = self.filesystem()
        with system.open_output_stream(f"{root}/{name}") as file:  # visible when it is closed
            file.write(content)

    def folders(self) -> list[str]:
        """The names of the folders in it."""
        if self.is_local:
            place = Path(self.address)
            return [path.name for path in place.iterdir() if path.is_dir()] if place.is_dir() else []
        from pyarrow import fs

        system, root = self.filesystem()
        found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
        return [entry.base_name for entry in found if entry.type == fs.FileType.Directory]

    def remove(self, name: str) -> None:
        """Take it away; nothing where there is none."""
        if self.is_local:
            Path(self.address, name).unlink(missing_ok=True)
        elif self.exists(name):
            system, root = self.filesystem()
            system.delete_file(f"{root}/{name}")

    def check_room(self, needed: int) -> None:
        """Refuse a disk that is about to be full; only a folder's is known.

        Raises
        ------
        FullDiskError
            When fewer bytes are free.
        """
        if self.is_local and (free := free_bytes(Path(self.address))) < needed:
            advice = "make room and give the same command again"
            raise FullDiskError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free; {advice}", self.address)

    def exists(self, name: str) -> bool:
        """Whether a file of this name is there."""
        if self.is_local:
            return Path(self.address, name).is_file()
        system, root = self.filesystem()
        return bool(system.get_file_info(f"{root}/{name}").is_file)


class WholeFiles(LocalFileSystem):
    """Files of this machine for Ray, which appear whole or not at all: it would write its list of checkpoints over the old one."""

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **options)
        return _WholeFile(Path(path))


class _WholeFile(io.FileIO):
    """Takes its name when it is closed, if all could be written."""

    def __init__(self, path: Path) -> None:
        self._whole = contextlib.ExitStack()
        super().__init__(self._whole.enter_context(replaced_file(path)), "w")

    def write(self, content: Any) -> int:
        """Write all of it; an error leaves what was there before."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError:
            with self._whole:
                raise
        return size

    def close(self) -> None:
        """Put it in its place."""
        with self._whole:
            super().close()

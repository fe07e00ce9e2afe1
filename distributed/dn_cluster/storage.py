"""Run storage: a folder that all nodes mount, or an object store such as s3://bucket/runs."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from dn_core.safe_write import atomic_write, free_bytes

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["AtomicLocalFileSystem", "FullDiskError", "Storage"]


class FullDiskError(OSError):
    """The storage has too little free space for what is written next."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A folder or an object store address; file names in it have / between their parts.

    Attributes
    ----------
    address : str
        Absolute path of a folder, or an address that pyarrow knows (``s3://``, ``gs://`` ...).
    """

    address: str

    @classmethod
    def at(cls, location: str) -> Storage:
        """The storage at a path or address.

        Parameters
        ----------
        location : str
            A path, which is made absolute, or an address.

        Returns
        -------
        Storage
            Nothing is created or read yet.
        """
        return cls(location.rstrip("/") if "://" in location else os.path.abspath(location))

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return "://" not in self.address

    def subfolder(self, name: str) -> Storage:
        """The storage at a folder in this one.

        Parameters
        ----------
        name : str
            The folder's name.

        Returns
        -------
        Storage
            The folder need not exist.
        """
        return Storage(f"{self.address}/{name}")

    def filesystem(self) -> tuple[FileSystem, str]:
        """The file system and the path in it, for pyarrow and Ray.

        Returns
        -------
        filesystem : pyarrow.fs.FileSystem
            Of a folder, one whose files appear complete or not at all.
        path : str
            Path of this storage in the file system.

        Raises
        ------
        ValueError
            When the address is of a kind that pyarrow does not know.
        """
        from pyarrow import fs

        if self.is_local:
            return fs.PyFileSystem(fs.FSSpecHandler(AtomicLocalFileSystem())), self.address
        scheme, _, path = self.address.partition("://")
        if scheme == "s3":
            endpoint = os.environ.get("AWS_ENDPOINT_URL")
            # Without a delayed open every small file is a multipart upload, which some servers of
            # the protocol refuse.
            return fs.S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True), path
        try:
            found: tuple[FileSystem, str] = fs.FileSystem.from_uri(self.address)
        except (ValueError, OSError) as error:
            raise ValueError(
                "storage must be a folder or an address such as s3://bucket/folder, got "
                f"{self.address!r} ({error}). Change --storage."
            ) from error
        return found

    def read(self, name: str) -> bytes | None:
        """Read a file.

        Parameters
        ----------
        name : str
            The file's name in the storage.

        Returns
        -------
        bytes or None
            The content; None where there is no such file.
        """
        if self.is_local:
            path = Path(self.address, name)
            return path.read_bytes() if path.is_file() else None
        filesystem, root = self.filesystem()
        try:
            with filesystem.open_input_stream(f"{root}/{name}") as file:
                content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, complete or not at all.

        Parameters
        ----------
        name : str
            The file's name in the storage; missing folders are created.
        content : bytes
            The file's content.
        """
        if self.is_local:
            path = Path(self.address, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            return
        filesystem, root = self.filesystem()
        # An object appears when its stream is closed.
        with filesystem.open_output_stream(f"{root}/{name}") as file:
            file.write(content)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name.

        Parameters
        ----------
        name : str
            The file's name in the storage.

        Returns
        -------
        bool
            False also where the name is a folder's.
        """
        if self.is_local:
            return Path(self.address, name).is_file()
        filesystem, root = self.filesystem()
        return bool(filesystem.get_file_info(f"{root}/{name}").is_file)

    def list_folders(self) -> list[str]:
        """List the names of the folders in it, in any order.

        Returns
        -------
        list of str
            Empty where the storage itself is missing.
        """
        if self.is_local:
            root = Path(self.address)
            return [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        from pyarrow import fs

        filesystem, path = self.filesystem()
        entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return [entry.base_name for entry in entries if entry.type == fs.FileType.Directory]

    def delete(self, name: str) -> None:
        """Delete a file if it exists.

        Parameters
        ----------
        name : str
            The file's name in the storage.
        """
        if self.is_local:
            Path(self.address, name).unlink(missing_ok=True)
        elif self.exists(name):
            filesystem, root = self.filesystem()
            filesystem.delete_file(f"{root}/{name}")

    def check_free_space(self, needed: int) -> None:
        """Refuse a disk that is about to be full; the space of object stores is not known.

        Parameters
        ----------
        needed : int
            Bytes that must be free.

        Raises
        ------
        FullDiskError
            When fewer bytes are free.
        """
        if self.is_local and (free := free_bytes(Path(self.address))) < needed:
            raise FullDiskError(
                errno.ENOSPC,
                f"the storage must have {needed} bytes free, got {free}. Free disk space and run "
                "the same command again",
                self.address,
            )


class AtomicLocalFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Local files for Ray that appear complete or not at all.

    Ray by itself would write its list of checkpoints over the old one.
    """

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any
    ) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **options)
        return _AtomicFile(Path(path))


class _AtomicFile(io.FileIO):
    """A file that gets its name when it is closed, if everything could be written."""

    def __init__(self, path: Path) -> None:
        self._atomic_write = contextlib.ExitStack()
        super().__init__(self._atomic_write.enter_context(atomic_write(path)), "w")

    def write(self, content: Any) -> int:
        """Write all bytes; an error leaves the old file."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError:
            with self._atomic_write:
                raise
        return size

    def close(self) -> None:
        """Close the file and give it its name."""
        with self._atomic_write:
            super().close()

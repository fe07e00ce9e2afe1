"""Registry writer: add models to a registry in a folder or object store that others read and write.

Model files are named after their content and never changed. The index that lists them is replaced
last and as a whole, so that a reader sees the old state or the new one, whenever a publisher is
killed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from dn_cluster.conditional_writes import (
    PreconditionFailedError,
    read_version,
    supports_conditional_writes,
    write_if_version,
)
from dn_core.checkpoints import Card
from dn_core.errors import RegistryError
from dn_core.locks import locked
from dn_core.models.index import FILE as INDEX_FILE
from dn_core.models.index import MAX_INDEX_BYTES, Index, content_name, index_bytes, parse_index
from dn_core.models.sources import check_address, read_whole
from dn_core.safe_write import atomic_write, clear_leftovers

__all__ = [
    "Candidate",
    "Release",
    "open_registry",
    "publish",
    "read_index",
    "write_model_file",
]

LOCK_FILE = ".publish.lock"
LOCK_SECONDS = 60.0
MAX_ATTEMPTS = 40
"""How often an index is made again because another publisher was first; one succeeds each time."""
MAX_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to publish. Its file is read once, so that what is checked is what is published.

    Attributes
    ----------
    name : str
        The model's name, from its card.
    content : bytes
        The model file's bytes.
    sha256 : str
        Hash of `content`.
    card : Card
        The model's card.
    """

    name: str
    content: bytes
    sha256: str
    card: Card

    def record(self, version: int, more: dict[str, Any]) -> dict[str, Any]:
        """The model's record in the index.

        Parameters
        ----------
        version : int
            Its version number.
        more : dict of str to object
            Further keys, such as scores.

        Returns
        -------
        dict
            Plain data.
        """
        return {
            "name": self.name,
            "version": version,
            "file": content_name(self.name, self.sha256),
            "sha256": self.sha256,
            "bytes": len(self.content),
            "license": self.card.license,
            "terms": self.card.terms,
            "description": self.card.description,
            "noise": self.card.noise,
            **more,
        }


Release = tuple[Candidate, dict[str, Any]]
"""A model and its record in the index."""


def open_registry(address: str) -> str:
    """Check that a registry can be written to; make its folder where it is missing.

    Parameters
    ----------
    address : str
        A folder, or an address of fsspec.

    Returns
    -------
    str
        The absolute path, or the address without a slash at its end.

    Raises
    ------
    ValueError
        When it is a web address.
    """
    kind = check_address(address)
    if kind == "web":
        raise ValueError(
            f"a registry to publish to must be a folder or a store such as s3://, got {address}, "
            "which can only be read. Publish to the folder that the web server shows."
        )
    if kind == "folder":
        folder = Path(address).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        return str(folder)
    return address.rstrip("/")


def read_index(address: str) -> Index:
    """Read the index of a registry.

    Parameters
    ----------
    address : str
        The registry.

    Returns
    -------
    Index
        Empty, with sequence number 0, where there is no index yet.
    """
    try:
        return parse_index(read_whole(address, INDEX_FILE, MAX_INDEX_BYTES), address, "remote")
    except FileNotFoundError:
        return Index(0, (), ())


def publish(address: str, releases: Sequence[Release], seen: Index) -> int:
    """Write model files, then the index.

    Parameters
    ----------
    address : str
        The registry, as `open_registry` returns it.
    releases : sequence of Release
        The models and their records.
    seen : Index
        The index that the models were compared with.

    Returns
    -------
    int
        The new index's sequence number.

    Raises
    ------
    RegistryError
        When another publisher has replaced one of these models after `seen` was read.
    """
    for candidate, record in releases:
        write_model_file(address, record["file"], candidate)
    if check_address(address) == "store":
        smallest, record = min(releases, key=lambda release: len(release[0].content))
        if supports_conditional_writes(f"{address}/{record['file']}", smallest.content):
            return _publish_conditionally(address, releases, seen)
        print(
            f"{address}: this store cannot keep publishers from overwriting each other's index. "
            "Publish to it from one machine at a time.",
            file=sys.stderr,
        )
    with _publisher_lock(address):
        current = read_index(address)
        _check_unchanged(address, releases, seen, current)
        content = _next_index(current, releases)
        _write_file(address, INDEX_FILE, content)
        if read_whole(address, INDEX_FILE, MAX_INDEX_BYTES) != content:
            raise RegistryError(
                f"{address} was changed by another publisher at the same moment. Publish again."
            )
    return current.sequence + 1


def _publish_conditionally(address: str, releases: Sequence[Release], seen: Index) -> int:
    """Replace the index only if it is still the one that ours was made from; otherwise retry."""
    index_address = f"{address}/{INDEX_FILE}"
    for attempt in range(MAX_ATTEMPTS):
        # The version before the content: if the index is replaced in between, the write fails.
        version = read_version(index_address)
        current = read_index(address)
        if all(record in current.records for _, record in releases):
            return current.sequence  # our own write, whose answer was lost
        _check_unchanged(address, releases, seen, current)
        try:
            write_if_version(index_address, _next_index(current, releases), version)
        except PreconditionFailedError:
            time.sleep(random.uniform(0, min(MAX_PAUSE_SECONDS, 0.02 * 2**attempt)))
            continue
        return current.sequence + 1
    raise RegistryError(
        f"other publishers changed {address} {MAX_ATTEMPTS} times in a row, each time just before "
        "our index was written. Publish again."
    )


def _check_unchanged(
    address: str, releases: Sequence[Release], seen: Index, current: Index
) -> None:
    """Refuse to replace models that ours were not compared with."""
    names = {record["name"] for _, record in releases}
    before = [record for record in seen.records if record["name"] in names]
    now = [record for record in current.records if record["name"] in names]
    if before != now:
        raise RegistryError(
            f"{address} was changed by another publisher (sequence number {current.sequence}, "
            f"{seen.sequence} when scoring began). Publish again to compare the models with the "
            "new versions."
        )


def _next_index(current: Index, releases: Sequence[Release]) -> bytes:
    """The current index with these versions added; those before stay to be had."""
    new = [record for _, record in releases]
    added = {(record["name"], record["version"]) for record in new}
    kept = [
        record for record in current.records if (record["name"], record["version"]) not in added
    ]
    return index_bytes(current.sequence + 1, [*kept, *new])


def write_model_file(address: str, file: str, candidate: Candidate) -> None:
    """Write a model's file unless it is there already, and read it back.

    Parameters
    ----------
    address : str
        The registry.
    file : str
        The file's name in it.
    candidate : Candidate
        The model.

    Raises
    ------
    OSError
        When the file that is read back has another content.
    """
    if _has_model_file(address, file, candidate):
        return
    _write_file(address, file, candidate.content)
    if not _has_model_file(address, file, candidate):
        raise OSError(
            errno.EIO,
            "the file read back differs from the one written; the index is unchanged",
            f"{address}/{file}",
        )


def _has_model_file(address: str, file: str, candidate: Candidate) -> bool:
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = read_whole(address, file, len(candidate.content))
        return hashlib.sha256(content).hexdigest() == candidate.sha256
    return False


def _write_file(address: str, file: str, content: bytes) -> None:
    """Write or replace a file of the registry, complete or not at all."""
    if check_address(address) == "store":
        store, path = url_to_fs(f"{address}/{file}")
        store.pipe_file(path, content)
        return
    try:
        with atomic_write(Path(address) / file) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the file cannot be written ({error.strerror}); the index is unchanged. Free disk "
            "space, or change the permissions",
            f"{address}/{file}",
        ) from error


@contextlib.contextmanager
def _publisher_lock(address: str) -> Iterator[None]:
    """Keep other publishers out of a folder; object stores have no locks."""
    if check_address(address) == "store":
        yield
        return
    with locked(
        Path(address) / LOCK_FILE,
        LOCK_SECONDS,
        "another publisher is writing to the registry. Wait for it, or stop it",
    ):
        yield

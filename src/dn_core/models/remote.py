"""Downloading models from a registry: a folder, web address or store with an ``index.json``.

What is checked: the index (see `index`), that its sequence number never falls, each file's size
while it comes and its hash and content before it gets its name. A download that fails or is
cancelled leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import json
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from dn_core.errors import CheckpointError, RegistryError, UnknownModelError
from dn_core.models.folder import LOCK_SECONDS, models_folder, writable_models_folder
from dn_core.models.index import (
    FILE,
    MAX_INDEX_BYTES,
    Entry,
    content_name,
    parse_index,
    split_reference,
    versions_in_words,
)
from dn_core.models.placing import placed, present
from dn_core.models.sources import check_address, read_pieces, read_whole
from dn_core.models.web import Limits, shown
from dn_core.safe_write import atomic_write, free_bytes

__all__ = ["FetchProgress", "Limits", "fetch", "fetch_steps", "find_remote", "remote_entries"]

SEEN = "registries"
"""Folder in the models folder with the newest sequence number seen of each registry."""


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """Where a download is.

    Attributes
    ----------
    done : int
        Bytes downloaded.
    total : int
        Bytes of the model.
    path : Path or None
        The model's file, with the last one.
    """

    done: int
    total: int
    path: Path | None = None


def remote_entries(
    address: str | Path, limits: Limits | None = None, *, older: bool = False
) -> tuple[Entry, ...]:
    """The models that a registry offers.

    Parameters
    ----------
    address : str or Path
        A folder, ``https://...``, or an object store of fsspec such as ``s3://...``.
    limits : Limits, optional
        How long to wait for a web server.
    older : bool, default False
        Whether older versions are listed too; by default the newest of each model.

    Returns
    -------
    tuple of Entry
        In the order of its index, older versions after the newest ones; their `kind` is
        ``"remote"``.

    Raises
    ------
    OSError
        When it cannot be reached: FileNotFoundError, PermissionError, TimeoutError or
        ConnectionError.
    RegistryError
        When it is not a registry, is damaged, or is older than it was before.
    """
    address = _plain(address)
    # Looked up before: while this one reads, another program may see, and remember, a newer index.
    seen = _seen(_memory(address))
    content = read_whole(address, FILE, MAX_INDEX_BYTES, limits)
    index = parse_index(content, address, "remote", f"{shown(address).rstrip('/')}/{FILE}")
    _keep_sequence(address, index.sequence, seen)
    return index.versions if older else index.entries


def fetch(name: str, address: str | Path, limits: Limits | None = None) -> Path:
    """Download a model into the models folder, where it is found by its name from then on.

    Parameters
    ----------
    name : str
        A name that `remote_entries` lists, for the newest version, or a name with a version that
        the registry still has (``"lab@1"``).
    address : str or Path
        A folder, ``https://...``, or an object store of fsspec such as ``s3://...``.
    limits : Limits, optional
        How long to wait for a web server.

    Returns
    -------
    Path
        The model's file.

    Raises
    ------
    UnknownModelError, ValueError, RegistryError, OSError
        As `fetch_steps`.
    """
    path = Path()
    for step in fetch_steps(name, address, limits):
        path = step.path or path
    return path


def fetch_steps(
    name: str, address: str | Path, limits: Limits | None = None
) -> Generator[FetchProgress]:
    """Download a model into the models folder; close the generator to cancel.

    A model that is here already with the same content is not downloaded again. Older versions stay
    beside the new one: ``lab`` names the newest, ``lab@1`` the first.

    Parameters
    ----------
    name : str
        A name that `remote_entries` lists, for the newest version, or a name with a version that
        the registry still has (``"lab@1"``).
    address : str or Path
        A folder, ``https://...``, or an object store of fsspec such as ``s3://...``.
    limits : Limits, optional
        How long to wait for a web server.

    Yields
    ------
    FetchProgress
        With each piece, and at least twice a second; the last one has the model's path.

    Raises
    ------
    UnknownModelError
        When the registry does not have it, with similar names, or not this version, with those
        that it has.
    ValueError
        When the name is not allowed, or belongs to another model here.
    RegistryError
        As `remote_entries`, and when the file is not the one that the index names.
    OSError
        As `remote_entries`, and when it cannot be stored. On any error, and when cancelled, the
        models are unchanged.
    """
    address = _plain(address)
    plain, version = split_reference(name)
    offered = find_remote(plain, version, address, limits)
    entry = dataclasses.replace(
        offered,
        kind="downloaded",
        file=content_name(offered.name, offered.sha256),
        home=str(models_folder()),
        source=shown(address),
    )
    if there := present(entry):
        yield FetchProgress(entry.bytes, entry.bytes, there.path)
        return
    try:
        with placed(entry, any_version=version is not None) as temporary:
            _check_space(temporary.parent, entry.bytes)
            yield FetchProgress(0, entry.bytes)
            yield from _download(offered, temporary, address, limits)
    except CheckpointError as error:
        raise RegistryError(
            f"{shown(offered.location)} cannot be used, and was not kept: {error}"
        ) from error
    yield FetchProgress(entry.bytes, entry.bytes, entry.path)


def _plain(address: str | Path) -> str:
    """An address in one spelling, so that it is known again: folders as whole paths."""
    text = str(address)
    return (
        str(Path(text).expanduser().absolute())
        if check_address(text) == "folder"
        else text.rstrip("/")
    )


def find_remote(
    name: str, version: int | None, address: str | Path, limits: Limits | None = None
) -> Entry:
    """What a registry says of one of its models.

    Parameters
    ----------
    name : str
        A name that `remote_entries` lists.
    version : int or None
        Which version; None for the newest.
    address : str or Path
        A folder, ``https://...``, or an object store of fsspec such as ``s3://...``.
    limits : Limits, optional
        How long to wait for a web server.

    Returns
    -------
    Entry
        Its `kind` is ``"remote"``.

    Raises
    ------
    UnknownModelError
        When the registry does not have it, with similar names, or not this version, with those
        that it has.
    RegistryError, OSError
        As `remote_entries`.
    """
    address = _plain(address)
    offered = remote_entries(address, limits, older=True)
    found = [entry for entry in offered if entry.name == name]  # the newest is the first
    for entry in found:
        if version in (None, entry.version):
            return entry
    if found:
        raise UnknownModelError(
            f"there is no version {version} of {name} in {shown(address)}: it has "
            f"{versions_in_words(found)}. Name one of them."
        )
    names = sorted({entry.name for entry in offered})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(names) or 'none'}."
    raise UnknownModelError(f"there is no model {name!r} in {shown(address)}. {hint}")


def _download(
    offered: Entry, target: Path, address: str, limits: Limits | None
) -> Generator[FetchProgress]:
    """Write the file's bytes, with their number; its hash is checked when it gets its name."""
    done, digest, start = 0, hashlib.sha256(), b""
    pieces = read_pieces(address, offered.file, offered.bytes, limits)
    with contextlib.closing(pieces), open(target, "wb", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                with _writing(target):
                    rest = rest[file.write(rest) :]
            digest.update(piece)
            start = start or piece[:64].lstrip()
            done += len(piece)
            yield FetchProgress(done, offered.bytes)
    if done == offered.bytes and digest.hexdigest() == offered.sha256:
        return
    where = shown(offered.location)
    if start[:1] == b"<":
        raise RegistryError(
            f"{where} is a web page of {done} bytes, not a model. Does the server ask for a login?"
        )
    if done < offered.bytes:
        raise ConnectionError(
            errno.ECONNABORTED, f"got {done} of {offered.bytes} bytes; try again", where
        )
    raise RegistryError(
        f"{where} must have sha256 {offered.sha256}, got {digest.hexdigest()}: it is not the file "
        "that the index names, and was not kept. Ask who runs the registry."
    )


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        advice = "make room, or name another folder in DN_MODELS"
        raise OSError(
            error.errno,
            f"the model cannot be written ({error.strerror}); {advice}",
            str(target.parent),
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed:
        advice = "make room, or name another folder in DN_MODELS"
        raise OSError(
            errno.ENOSPC, f"the model needs {needed} bytes, {free} are free; {advice}", str(folder)
        )


def _memory(address: str) -> Path:
    """The file that remembers how new a registry was."""
    return models_folder() / SEEN / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"


def _keep_sequence(address: str, sequence: int, seen: int) -> None:
    """Refuse a registry that is older than it was `seen` before; remember how new it is."""
    path = _memory(address)
    if sequence < seen:
        raise RegistryError(
            f"{shown(address)} must have a sequence number of at least {seen}, as before, got "
            f"{sequence}: an old copy. Ask who runs the registry; if it was made anew, delete "
            f"{path}."
        )
    if sequence == seen:
        return
    try:
        writable_models_folder()
        path.parent.mkdir(exist_ok=True)
        from dn_core.locks import locked

        with locked(path.with_suffix(".lock"), LOCK_SECONDS, "another process has kept it locked"):
            if sequence > _seen(path):
                with atomic_write(path) as temporary:
                    temporary.write_text(
                        json.dumps({"address": shown(address), "sequence": sequence}),
                        encoding="utf-8",
                    )
    except OSError as error:
        warnings.warn(
            f"the sequence number of {shown(address)} cannot be remembered ({error}); an old copy "
            "of it would not be noticed.",
            stacklevel=4,
        )


def _seen(path: Path) -> int:
    try:
        return int(json.loads(path.read_text("utf-8"))["sequence"])
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"{path} must hold the newest sequence number seen, got damaged content. Delete it."
        ) from error

"""Sources of models: files of a registry from a folder, a web server or an object store."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dn_core.errors import RegistryError
from dn_core.models.web import Limits, check_url, download, missing, shown

__all__ = ["check_address", "read_pieces", "read_whole"]

PIECE = 2**18
STORES = ("abfs", "az", "gcs", "gs", "hf", "memory", "s3")
"""Object stores of fsspec that an address may name, where the package for them is installed."""


def check_address(address: str) -> str:
    """The kind of an address: ``"folder"``, ``"web"`` or ``"store"``.

    Raises
    ------
    RegistryError
        When it is none that is read from.
    """
    scheme, separator, _ = address.partition("://")
    if not separator:
        return "folder"
    if "::" in scheme:
        raise RegistryError(
            f"the address must be one folder or address, got one made of several, "
            f"{shown(address)}. Change it."
        )
    if scheme in STORES:
        return "store"
    check_url(address)
    if urlsplit(address).query or urlsplit(address).fragment:
        raise RegistryError(
            f"the address must be that of a folder, got {shown(address)[:200]}, which has a '?' or "
            "'#' in it. Change it."
        )
    return "web"


def read_whole(address: str, file: str, most: int, limits: Limits | None = None) -> bytes:
    """A small file of a registry as it was at one moment, whoever replaces it meanwhile.

    Parameters and errors are those of `read_pieces`.
    """
    if check_address(address) != "store":
        return b"".join(read_pieces(address, file, most, limits))
    content = _whole_from_store(address, file, most + 1)
    if len(content) > most:
        raise _longer(address, file, most)
    return content


def read_pieces(
    address: str, file: str, most: int, limits: Limits | None = None
) -> Generator[bytes]:
    """The bytes of a file of a registry, with ``b""`` now and then where none came.

    Closing the generator ends the transfer at once.

    Parameters
    ----------
    address : str
        The registry: a folder, a web address or a store.
    file : str
        The file's path in it.
    most : int
        How many bytes it may have.
    limits : Limits, optional
        How long to wait for a web server.

    Yields
    ------
    bytes
        A piece of the file.

    Raises
    ------
    FileNotFoundError, PermissionError, TimeoutError, ConnectionError
        When it is not there, may not be read, comes too slowly or not to its end.
    RegistryError
        When it is longer than `most`, or the server sends us where we do not go.
    """
    kind = check_address(address)
    pieces = {"folder": _from_folder, "store": _from_store, "web": _from_web}[kind](
        address, file, limits or Limits()
    )
    count = 0
    with contextlib.closing(pieces):
        for piece in pieces:
            count += len(piece)
            if count > most:
                raise _longer(address, file, most)
            yield piece


def _from_folder(address: str, file: str, limits: Limits) -> Generator[bytes]:
    folder = Path(address).expanduser()
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RegistryError(
            f"a file must be in its registry, got {path}, which lies outside its registry. Ask who "
            "runs the registry."
        )
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(PIECE):
                yield piece
    except FileNotFoundError:
        raise missing(str(path)) from None


def _from_web(address: str, file: str, limits: Limits) -> Generator[bytes]:
    yield from download(f"{address.rstrip('/')}/{file}", limits)


def _from_store(address: str, file: str, limits: Limits) -> Generator[bytes]:
    with (
        _opened_store(address, file) as (store, path),
        store.open(path, "rb", block_size=2**20) as stream,
    ):
        while piece := stream.read(PIECE):
            yield piece


def _whole_from_store(address: str, file: str, end: int) -> bytes:
    """The first `end` bytes by one request.

    Between two requests another program may replace the file, and stores refuse the second.
    """
    with _opened_store(address, file) as (store, path):
        try:
            return bytes(store.cat_file(path, start=0, end=end))
        except Exception:
            if store.info(path)["size"] == 0:  # in which no range is
                return b""
            raise


@contextlib.contextmanager
def _opened_store(address: str, file: str) -> Iterator[tuple[Any, str]]:
    """The store and the path in it; its library's errors become the built-in ones that fit."""
    from fsspec.core import url_to_fs

    url = f"{address.rstrip('/')}/{file}"
    try:
        store, path = url_to_fs(url)
        store.invalidate_cache()  # others may have written since it was listed
        yield store, path
    except FileNotFoundError:
        raise missing(url) from None
    except ImportError as error:
        raise ImportError(
            f"{url} needs a package that is not installed ({error}). Install it."
        ) from error
    except OSError:
        raise
    except Exception as error:  # what the stores' own libraries raise has no common base
        raise ConnectionError(
            errno.ECONNABORTED, f"the store did not answer as expected ({error})", url
        ) from error


def _longer(address: str, file: str, most: int) -> RegistryError:
    where = f"{shown(address).rstrip('/')}/{file}"
    return RegistryError(
        f"{where} must have at most {most} bytes, got more; the rest was not read. Ask who runs "
        "the registry."
    )

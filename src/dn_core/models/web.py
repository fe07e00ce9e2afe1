"""Reading files of a registry from a folder, a web server or an object store, piece by piece and with every limit kept.

A web server is never trusted: TLS only (plain http to this machine, or anywhere with ``DN_ALLOW_HTTP=1``), few redirects and only to such
places, no compression, no more bytes than expected, no waiting for ever. Proxies are taken from the usual variables (``HTTPS_PROXY``,
``NO_PROXY``), own certificate authorities from ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

from dn_core.errors import RegistryError

__all__ = ["Limits", "check_address", "read_pieces", "read_whole", "shown"]

PIECE = 2**18
HEARTBEAT = 0.5
"""Seconds after which a caller hears from a download even when no byte came, so that it can be cancelled."""
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
STORES = ("abfs", "az", "gcs", "gs", "hf", "memory", "s3")
"""Object stores of fsspec that an address may name, where the package for them is installed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for a web server: seconds to `connect` and to `read` something; after `patience`, bytes a second at least."""

    connect: float = 10.0
    read: float = 20.0
    patience: float = 20.0
    slowest: float = 2000.0


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
        raise RegistryError(f"the address {shown(address)} is made of several; one folder or address is expected. Change it.")
    if scheme in STORES:
        return "store"
    _check_url(address)
    if urlsplit(address).query or urlsplit(address).fragment:
        raise RegistryError(f"the address {shown(address)[:200]} has a '?' or '#' in it; that of a folder is expected. Change it.")
    return "web"


def shown(address: str) -> str:
    """An address without the user and password that may be in it."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def read_whole(address: str, file: str, most: int, limits: Limits | None = None) -> bytes:
    """A small file of a registry, as it was at one moment, whoever replaces it meanwhile; refused when it has more than `most` bytes."""
    if check_address(address) != "store":
        return b"".join(read_pieces(address, file, most, limits))
    content = _whole_from_store(address, file, most + 1)
    if len(content) > most:
        raise _longer(address, file, most)
    return content


def read_pieces(address: str, file: str, most: int, limits: Limits | None = None) -> Generator[bytes]:
    """The bytes of a file of a registry, with ``b""`` now and then where none came; closing the generator ends the connection.

    Raises
    ------
    FileNotFoundError, PermissionError, TimeoutError, ConnectionError
        When it is not there, may not be read, comes too slowly or not to its end.
    RegistryError
        When it is longer than `most`, or the server sends us where we do not go.
    """
    kind = check_address(address)
    pieces = {"folder": _from_folder, "store": _from_store, "web": _from_web}[kind](address, file, limits or Limits())
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
        raise RegistryError(f"{path} lies outside its registry; a file in it is expected. Ask who runs the registry.")
    try:
        with open(path, "rb") as stream:
            while piece := stream.read(PIECE):
                yield piece
    except FileNotFoundError:
        raise _missing(str(path)) from None


def _from_store(address: str, file: str, limits: Limits) -> Generator[bytes]:
    with _opened_store(address, file) as (store, path), store.open(path, "rb", block_size=2**20) as stream:
        while piece := stream.read(PIECE):
            yield piece


def _whole_from_store(address: str, file: str, end: int) -> bytes:
    """The first `end` bytes by one request: between two, another may replace the file, and stores refuse the second."""
    with _opened_store(address, file) as (store, path):
        try:
            return bytes(store.cat_file(path, start=0, end=end))
        except Exception:
            if store.info(path)["size"] == 0:  # in which no range is
                return b""
            raise


@contextlib.contextmanager
def _opened_store(address: str, file: str) -> Iterator[tuple[Any, str]]:
    """The store and the path in it; what its own library raises, as the built-in error that fits."""
    from fsspec.core import url_to_fs

    url = f"{address.rstrip('/')}/{file}"
    try:
        store, path = url_to_fs(url)
        store.invalidate_cache()  # others may have written since it was listed
        yield store, path
    except FileNotFoundError:
        raise _missing(url) from None
    except ImportError as error:
        raise ImportError(f"{url} needs a package that is not installed ({error}). Install it.") from error
    except OSError:
        raise
    except Exception as error:  # what the stores' own libraries raise has no common base
        raise ConnectionError(errno.ECONNABORTED, f"the store did not answer as expected ({error})", url) from error


def _from_web(address: str, file: str, limits: Limits) -> Generator[bytes]:
    url = f"{address.rstrip('/')}/{file}"
    with _explained(url), _answer(url, limits) as read:
        began = last = time.monotonic()
        count = 0
        while (piece := read()) != b"":
            now = time.monotonic()
            if piece:
                last, count = now, count + len(piece)
            if now - last > limits.read:
                raise TimeoutError(errno.ETIMEDOUT, f"no byte came for {limits.read:g} s; try again later", shown(url))
            if now - began > limits.patience and count < limits.slowest * (now - began):
                rate = count / (now - began)
                raise TimeoutError(errno.ETIMEDOUT, f"only {rate:.0f} bytes a second came; try again later or from elsewhere", shown(url))
            yield piece or b""


@contextlib.contextmanager
def _answer(url: str, limits: Limits) -> Iterator[Callable[[], bytes | None]]:
    """A function that reads from a web server, redirects followed where they may lead: ``b""`` at the end, None where no byte came."""
    import aiohttp
    import fsspec
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    options = {
        "headers": {"Accept-Encoding": "identity"},
        "auto_decompress": False,
        "timeout": aiohttp.ClientTimeout(
            total=None, connect=limits.connect, sock_connect=limits.connect, sock_read=limits.read + HEARTBEAT
        ),
        "trust_env": not _is_loopback(url),
    }
    web = fsspec.filesystem("http", client_kwargs=options, skip_instance_cache=True)
    session = sync(web.loop, web.set_session)
    try:
        response = sync(web.loop, session.get, url, allow_redirects=False, timeout=limits.connect + limits.read)
        for _ in range(MAX_REDIRECTS):
            if response.status not in REDIRECTS or "Location" not in response.headers:
                break
            web.loop.call_soon_threadsafe(response.close)
            url = _redirected(url, response.headers["Location"])
            response = sync(web.loop, session.get, url, allow_redirects=False, timeout=limits.connect + limits.read)
        try:
            _check_status(response.status, url)

            def read() -> bytes | None:
                try:
                    return bytes(sync(web.loop, response.content.read, PIECE, timeout=HEARTBEAT))
                except FSTimeoutError:
                    return None

            yield read
        finally:
            web.loop.call_soon_threadsafe(response.close)
    finally:
        sync(web.loop, session.close)


def _check_status(status: int, url: str) -> None:
    if status == 404:
        raise _missing(url)
    if status in (401, 403, 407):
        raise PermissionError(errno.EACCES, f"the server answered {status}; is a login needed?", shown(url))
    if status in REDIRECTS:
        raise RegistryError(f"{shown(url)} was reached after {MAX_REDIRECTS} redirects and redirects again. Is it the right address?")
    if status != 200:
        raise ConnectionError(errno.EPROTO, f"the server answered {status}; the file is expected, try again later", shown(url))


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads, when we go there: never to another scheme, from TLS to none, or from outside into this network."""
    try:
        target = urljoin(url, location)
        _check_url(target)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise RegistryError("from https to http")
        if _is_private(target) and not _is_private(url):
            raise RegistryError("into a private network")
    except ValueError as error:
        raise RegistryError(f"{shown(url)} redirects to {location[:200]!r}, where we do not go: {error}") from error
    return target


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise RegistryError(f"{url[:200]!r} is not an address ({error}). Change it.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise RegistryError(f"{shown(url)[:200]} is neither a folder nor an https:// address (nor one of {', '.join(STORES)}). Change it.")
    if parts.scheme == "http" and not _is_loopback(url) and os.environ.get("DN_ALLOW_HTTP") != "1":
        raise RegistryError(f"{shown(url)[:200]} is not encrypted; https:// is expected. Change it, or allow http with DN_ALLOW_HTTP=1.")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _is_private(url: str) -> bool:
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(urlsplit(url).hostname or "").is_global
    return _is_loopback(url)


def _longer(address: str, file: str, most: int) -> RegistryError:
    where = f"{shown(address).rstrip('/')}/{file}"
    return RegistryError(f"{where} is longer than the {most} bytes expected; the rest was not read. Ask who runs the registry.")


def _missing(where: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no such file in the registry; check its address", shown(where))


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """What aiohttp and fsspec raise, as the built-in error that fits, with a sentence."""
    import aiohttp
    from fsspec.exceptions import FSTimeoutError

    try:
        yield
    except FSTimeoutError as error:
        raise TimeoutError(errno.ETIMEDOUT, "the server did not answer in time; try again later", shown(url)) from error
    except aiohttp.ClientPayloadError as error:
        raise ConnectionError(
            errno.ECONNRESET, "the server ended the connection before the end of the file; try again", shown(url)
        ) from error
    except aiohttp.InvalidURL as error:
        raise RegistryError(f"{shown(url)[:200]} is not an address. Change it.") from error
    except aiohttp.ClientError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConnectionError(errno.ENOTCONN, f"the server cannot be reached ({reason}); is there a network?", shown(url)) from error

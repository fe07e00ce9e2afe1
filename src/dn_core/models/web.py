"""Downloads from web servers, piece by piece.

A web server is never trusted: TLS only (plain http to this machine, or anywhere with
``DN_ALLOW_HTTP=1``), few redirects and only to such places, no compression, no more bytes than
expected, no waiting forever. Proxies are taken from the usual variables (``HTTPS_PROXY``,
``NO_PROXY``), own certificate authorities from ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from dn_core.errors import RegistryError

if TYPE_CHECKING:
    import httpx

__all__ = ["Limits", "check_url", "download", "missing", "shown"]

HEARTBEAT = 0.5
"""Seconds after which a caller can cancel a download even when no byte came."""
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
LOCATION = "dn_core.location"

T = TypeVar("T")
_Start = Callable[[Coroutine[Any, Any, Any]], Future[Any]]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long to wait for a web server.

    Attributes
    ----------
    connect : float
        Seconds to connect.
    read : float
        Seconds without a byte.
    patience : float
        Seconds after which a download may be too slow.
    slowest : float
        Bytes a second that it must have reached by then.
    """

    connect: float = 10.0
    read: float = 20.0
    patience: float = 20.0
    slowest: float = 2000.0


def shown(address: str) -> str:
    """An address without the user and password that may be in it."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def download(url: str, limits: Limits) -> Generator[bytes]:
    """A file from a web server as it comes, with ``b""`` now and then where nothing came.

    Closing the generator ends the transfer at once.
    """
    with _explained(url), _background_loop() as start:
        client = _client(url, limits)
        try:
            response = yield from _answer(start, client, url, limits)
            yield from _body(start, response, limits)
        finally:
            start(_end_all(client)).result()


def _client(url: str, limits: Limits) -> httpx.AsyncClient:
    import httpx

    try:
        return httpx.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            # The system's certificate authorities, or those in SSL_CERT_FILE; httpx has its own.
            verify=ssl.create_default_context(),
            trust_env=not _is_loopback(url),  # proxies
            timeout=httpx.Timeout(None, connect=limits.connect),
            event_hooks={"response": [_set_location_aside]},
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:  # ImportError: no socksio
        reason = str(error).partition(". ")[0]
        raise RegistryError(
            "HTTPS_PROXY, HTTP_PROXY and ALL_PROXY must be addresses of proxies, got one that "
            f"cannot be used ({reason}). Change it; for a SOCKS proxy install socksio."
        ) from error


def _answer(
    start: _Start, client: httpx.AsyncClient, url: str, limits: Limits
) -> Generator[bytes, None, httpx.Response]:
    """The server's answer, redirects followed where they may lead; ``b""`` while it is awaited."""
    for number in range(MAX_REDIRECTS + 1):
        request = client.build_request("GET", url)
        late = TimeoutError(
            errno.ETIMEDOUT, "the server did not answer in time; try again later", shown(url)
        )
        response = yield from _awaited(
            start(client.send(request, stream=True)), limits.connect + limits.read, late
        )
        target = response.extensions.get(LOCATION)
        if target is None or number == MAX_REDIRECTS:
            break
        start(response.aclose()).result()
        url = _redirected(url, target)
    _check_status(response.status_code, url)
    return response  # type: ignore[no-any-return]  # a future's result has no type


def _body(start: _Start, response: httpx.Response, limits: Limits) -> Generator[bytes]:
    """The bytes of an answer as they come; ``b""`` where none came for a while."""
    import httpx

    url = shown(str(response.url))
    late = TimeoutError(
        errno.ETIMEDOUT, f"no byte came for {limits.read:g} s; try again later", url
    )
    pieces = response.aiter_raw()
    began, count = time.monotonic(), 0
    try:
        while piece := (yield from _awaited(start(_next_piece(pieces)), limits.read, late)):
            count += len(piece)
            seconds = time.monotonic() - began
            if seconds > limits.patience and count < limits.slowest * seconds:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"only {count / seconds:.0f} bytes a second came; try again later or from "
                    "elsewhere",
                    url,
                )
            yield piece
    except (httpx.RemoteProtocolError, httpx.ReadError) as error:
        raise ConnectionError(
            errno.ECONNRESET,
            "the server ended the connection before the end of the file; try again",
            url,
        ) from error


async def _set_location_aside(response: httpx.Response) -> None:
    """Hide where a redirect leads from httpx, which would parse it: `_redirected` checks it."""
    if response.status_code in REDIRECTS and "Location" in response.headers:
        response.extensions[LOCATION] = response.headers.pop("Location")


async def _next_piece(pieces: AsyncIterator[bytes]) -> bytes:
    return await anext(pieces, b"")


def _awaited(future: Future[T], seconds: float, late: TimeoutError) -> Generator[bytes, None, T]:
    """The future's result; until it is there, ``b""`` now and then, so that a caller can cancel.

    After this many seconds `late` is raised. A future that is no longer awaited is cancelled.
    """
    end = time.monotonic() + seconds
    try:
        while not wait([future], min(HEARTBEAT, max(end - time.monotonic(), 0))).done:
            if time.monotonic() >= end:
                raise late
            yield b""
        return future.result()
    finally:
        future.cancel()


@contextlib.contextmanager
def _background_loop() -> Iterator[_Start]:
    """A function that starts coroutines in an event loop of their own.

    It has a thread of its own too: in the caller's a loop may run already, as in a notebook.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="dn_core download", daemon=True)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_all(client: httpx.AsyncClient) -> None:
    """Cancel what still runs in the loop, and close all connections."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()
    await asyncio.get_running_loop().shutdown_asyncgens()


def _check_status(status: int, url: str) -> None:
    if status == 404:
        raise missing(url)
    if status in (401, 403, 407):
        raise PermissionError(
            errno.EACCES, f"the server answered {status}; is a login needed?", shown(url)
        )
    if status in REDIRECTS:
        raise RegistryError(
            f"{shown(url)} was reached after {MAX_REDIRECTS} redirects and redirects again. Is it "
            "the right address?"
        )
    if status != 200:
        raise ConnectionError(
            errno.EPROTO,
            f"the server answered {status} instead of the file; try again later",
            shown(url),
        )


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads, when it may be followed.

    Never to another scheme, from TLS to none, or from outside into this network.
    """
    import httpx

    try:
        target = str(httpx.URL(urljoin(url, location)))  # as httpx will read it
        check_url(target)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise RegistryError("from https to http")
        if _is_private(target) and not _is_private(url):
            raise RegistryError("into a private network")
    except (ValueError, httpx.InvalidURL) as error:
        raise RegistryError(
            f"{shown(url)} redirects to {location[:200]!r}, where we do not go: {error}"
        ) from error
    return target


def check_url(url: str) -> None:
    """Refuse a web address that is not read from.

    Raises
    ------
    RegistryError
        When it is no web address, or neither encrypted nor on this machine.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise RegistryError(f"{url[:200]!r} is not an address ({error}). Change it.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise RegistryError(
            f"the address must be a folder, https://... or an object store such as s3://..., got "
            f"{shown(url)[:200]}, which is neither a folder nor such an address. Change it."
        )
    if parts.scheme == "http" and not _is_loopback(url) and os.environ.get("DN_ALLOW_HTTP") != "1":
        raise RegistryError(
            f"the address must begin with https://, got {shown(url)[:200]}, which is not "
            "encrypted. Change it, or allow http with DN_ALLOW_HTTP=1."
        )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _is_private(url: str) -> bool:
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(urlsplit(url).hostname or "").is_global
    return _is_loopback(url)


def missing(where: str) -> FileNotFoundError:
    """The error to raise where a registry lacks a file."""
    return FileNotFoundError(
        errno.ENOENT, "there is no such file in the registry; check its address", shown(where)
    )


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """What httpx raises, as the built-in error that fits, with a sentence."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as error:
        raise TimeoutError(
            errno.ETIMEDOUT, "the server did not answer in time; try again later", shown(url)
        ) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise RegistryError(f"{shown(url)[:200]} is not an address. Change it.") from error
    except httpx.RemoteProtocolError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConnectionError(
            errno.EPROTO, f"the server gave an invalid answer ({reason}); try again", shown(url)
        ) from error
    except httpx.HTTPError as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConnectionError(
            errno.ENOTCONN,
            f"the server cannot be reached ({reason}); is there a network?",
            shown(url),
        ) from error

"""Replacing a file of an object store only where it is still the one that was read: what S3, Google's and Azure's stores can promise."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from fsspec.core import url_to_fs

from dn_core.checkpoints import MAX_FILE_BYTES

__all__ = ["ChangedError", "is_guarded", "mark_of", "replace_marked"]

MARKS = {"s3": "ETag", "gs": "generation", "gcs": "generation", "abfs": "etag", "az": "etag"}
"""What a store calls the mark that every content of a file has for itself."""


class ChangedError(Exception):
    """The file is not the one that was read: another program has replaced it."""


def is_guarded(address: str, content: bytes) -> bool:
    """Whether the store of `address`, a file that has this content already, does nothing where a condition is not met.

    Some servers of the S3 protocol overlook conditions, and so do old clients. That is tried with a condition that cannot be met.
    """
    kind = address.partition("://")[0]
    if kind != "s3":
        return kind in MARKS
    try:
        _put(address, content, '"0"')
    except ChangedError:
        return True
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return False


def mark_of(address: str) -> str | None:
    """The mark of the content that is there now; None where no file is."""
    store, path = url_to_fs(address)
    store.invalidate_cache()
    try:
        return str(store.info(path)[MARKS[address.partition("://")[0]]])
    except FileNotFoundError:
        return None


def replace_marked(address: str, content: bytes, mark: str | None) -> None:
    """Write the file if what is there has this mark; with None, if there is none.

    Raises
    ------
    ChangedError
        When that is not so, or another program writes it at the same moment. The file is then as that program left it.
    """
    try:
        _put(address, content, mark)
    except FileNotFoundError:
        if mark is None:  # the bucket is missing
            raise
        raise ChangedError(address) from None


def _put(address: str, content: bytes, mark: str | None) -> None:
    store, path = url_to_fs(address)
    put: dict[str, Callable[[Any, str, bytes, str | None], Any]] = {"s3": _put_s3, "gs": _put_google, "gcs": _put_google}
    try:
        put.get(address.partition("://")[0], _put_azure)(store, path, content, mark)
    except Exception as error:  # what the stores' own libraries raise has no common base
        if _status(error) in (409, 412) or isinstance(error, FileExistsError):
            raise ChangedError(address) from error
        raise


def _put_s3(store: Any, path: str, content: bytes, mark: str | None) -> None:
    condition = {"IfNoneMatch": "*"} if mark is None else {"IfMatch": mark}
    store.pipe_file(path, content, chunksize=MAX_FILE_BYTES, **condition)  # in one piece: only so does it keep conditions


def _put_google(store: Any, path: str, content: bytes, mark: str | None) -> None:
    bucket, name, _ = store.split_path(path)
    place = store.base.replace("/storage/", "/upload/storage/") + "b/{}/o"
    headers = {"Content-Type": "application/octet-stream"}
    store.call("POST", place, bucket, uploadType="media", name=name, ifGenerationMatch=mark or "0", headers=headers, data=content)


def _put_azure(store: Any, path: str, content: bytes, mark: str | None) -> None:
    if mark is None:
        store.pipe_file(path, content, overwrite=False)
        return
    from azure.core import MatchConditions

    store.pipe_file(path, content, overwrite=True, etag=mark, match_condition=MatchConditions.IfNotModified)


def _status(error: BaseException | None) -> int:
    """The number that a server answered with, from the errors of botocore, gcsfs and azure, also where another one hides them; or 0."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        for name in ("status_code", "code"):
            if str(found := getattr(error, name, "")).isdecimal():
                return int(found)
        error = error.__cause__
    return 0

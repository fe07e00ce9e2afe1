"""Conditional writes to object stores: replace a file only if it has not changed since it was read.

S3 checks an ETag, Google Cloud Storage a generation number, Azure Blob Storage an ETag.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from fsspec.core import url_to_fs

from dn_core.tensor_files import MAX_FILE_BYTES

__all__ = [
    "PreconditionFailedError",
    "read_version",
    "supports_conditional_writes",
    "write_if_version",
]

VERSION_FIELDS = {
    "s3": "ETag",
    "gs": "generation",
    "gcs": "generation",
    "abfs": "etag",
    "az": "etag",
}
"""By address scheme, the field of fsspec's file information that changes with every content."""

PRECONDITION_FAILED = (409, 412)
"""HTTP status codes: another write at the same moment, or a condition that is not met."""


class PreconditionFailedError(Exception):
    """The file was changed by another program after it was read."""


def supports_conditional_writes(address: str, content: bytes) -> bool:
    """Whether the store refuses a write whose condition is not met.

    Some servers of the S3 protocol ignore conditions, and so do old clients. On S3 this tries a
    write with a condition that cannot be met.

    Parameters
    ----------
    address : str
        Address of a file that already has this content, such as ``s3://bucket/models/a``.
    content : bytes
        The file's content; it is written again where the store ignores conditions.

    Returns
    -------
    bool
        False for stores of other kinds.
    """
    scheme = _scheme(address)
    if scheme != "s3":
        return scheme in VERSION_FIELDS
    try:
        _put(address, content, '"0"')
    except PreconditionFailedError:
        return True
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
    return False


def read_version(address: str) -> str | None:
    """The ETag or generation of a file.

    Parameters
    ----------
    address : str
        Address of the file.

    Returns
    -------
    str or None
        None where there is no such file.
    """
    store, path = url_to_fs(address)
    store.invalidate_cache()
    try:
        return str(store.info(path)[VERSION_FIELDS[_scheme(address)]])
    except FileNotFoundError:
        return None


def write_if_version(address: str, content: bytes, version: str | None) -> None:
    """Write a file if its current version is the expected one.

    Parameters
    ----------
    address : str
        Address of the file.
    content : bytes
        The new content.
    version : str or None
        What `read_version` returned; None: the file must not exist.

    Raises
    ------
    PreconditionFailedError
        When the file has another version, or another program writes it at the same moment. The
        file is then as that program left it.
    """
    try:
        _put(address, content, version)
    except FileNotFoundError:
        if version is None:  # the bucket is missing
            raise
        raise PreconditionFailedError(address) from None


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def _put(address: str, content: bytes, version: str | None) -> None:
    store, path = url_to_fs(address)
    put: dict[str, Callable[[Any, str, bytes, str | None], None]] = {
        "s3": _put_s3,
        "gs": _put_google,
        "gcs": _put_google,
        "abfs": _put_azure,
        "az": _put_azure,
    }
    try:
        put[_scheme(address)](store, path, content, version)
    except Exception as error:  # the stores' libraries raise errors without a common base class
        if _http_status(error) in PRECONDITION_FAILED or isinstance(error, FileExistsError):
            raise PreconditionFailedError(address) from error
        raise


def _put_s3(store: Any, path: str, content: bytes, version: str | None) -> None:
    condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    # In one piece: s3fs drops the condition from multipart uploads.
    store.pipe_file(path, content, chunksize=MAX_FILE_BYTES, **condition)


def _put_google(store: Any, path: str, content: bytes, version: str | None) -> None:
    bucket, name, _ = store.split_path(path)
    upload_address = store.base.replace("/storage/", "/upload/storage/") + "b/{}/o"
    store.call(
        "POST",
        upload_address,
        bucket,
        uploadType="media",
        name=name,
        ifGenerationMatch=version or "0",
        headers={"Content-Type": "application/octet-stream"},
        data=content,
    )


def _put_azure(store: Any, path: str, content: bytes, version: str | None) -> None:
    if version is None:
        store.pipe_file(path, content, overwrite=False)
        return
    from azure.core import MatchConditions

    unchanged = MatchConditions.IfNotModified
    store.pipe_file(path, content, overwrite=True, etag=version, match_condition=unchanged)


def _http_status(error: BaseException | None) -> int:
    """The HTTP status in an error of botocore, gcsfs or azure, or in one of its causes; 0: none."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if isinstance(response, dict):
            return int(response["ResponseMetadata"]["HTTPStatusCode"])
        for name in ("status_code", "code"):
            if str(found := getattr(error, name, "")).isdecimal():
                return int(found)
        error = error.__cause__
    return 0

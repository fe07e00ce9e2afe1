"""Messages of errors that name temporary folders or carry a traceback from another node."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["first_line", "last_line", "replace_path_in_errors"]


@contextlib.contextmanager
def replace_path_in_errors(temporary: Path, address: str) -> Iterator[None]:
    """Make errors raised in the block name an address that users know instead of a temporary path.

    Parameters
    ----------
    temporary : Path
        Temporary file or folder on this machine.
    address : str
        Path or address in the storage that has the same content.
    """
    try:
        yield
    except Exception as error:
        error.args = tuple(_replaced(part, temporary, address) for part in error.args)
        if isinstance(error, OSError):
            error.strerror = _replaced(error.strerror, temporary, address)
            error.filename = _replaced(error.filename, temporary, address)
        raise


def _replaced(part: Any, temporary: Path, address: str) -> Any:
    return part.replace(str(temporary), address) if isinstance(part, str) else part


def first_line(error: BaseException) -> str:
    """The first line of an error's message.

    Parameters
    ----------
    error : BaseException
        Any exception.

    Returns
    -------
    str
        The line without spaces around it; the type's name where there is no message.
    """
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """The last line of an error's message: in errors that Ray brings from another node, the cause.

    Parameters
    ----------
    error : BaseException
        Any exception.

    Returns
    -------
    str
        The line without spaces around it; the type's name where there is no message.
    """
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]

"""Errors in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["first_line", "last_line", "named_after", "sentence"]


def sentence(error: BaseException) -> str:
    """An error as a person should read it; one of a file says which."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


@contextlib.contextmanager
def named_after(place: str, temporary: Path) -> Iterator[None]:
    """Errors speak of `place`, which a user knows, where they would of a temporary folder or file with what is there."""
    try:
        yield
    except Exception as error:
        error.args = tuple(_renamed(part, place, temporary) for part in error.args)
        if isinstance(error, OSError):
            error.strerror, error.filename = (_renamed(part, place, temporary) for part in (error.strerror, error.filename))
        raise


def _renamed(part: Any, place: str, temporary: Path) -> Any:
    return part.replace(str(temporary), place) if isinstance(part, str) else part


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """What an error says last: the cause, in the errors that Ray brings from elsewhere."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]

"""Errors in words."""

from __future__ import annotations

__all__ = ["first_line", "last_line", "sentence"]


def sentence(error: BaseException) -> str:
    """An error as a person should read it; one of a file says which."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return _lines(error)[0]


def last_line(error: BaseException) -> str:
    """What an error says last: the cause, in the errors that Ray brings from elsewhere."""
    return _lines(error)[-1]


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]

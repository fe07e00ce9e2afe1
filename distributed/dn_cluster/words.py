"""Errors in words."""

from __future__ import annotations

__all__ = ["first_line", "sentence"]


def sentence(error: BaseException) -> str:
    """An error as a person should read it; one of a file says which."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)

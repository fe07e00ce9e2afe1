"""Exceptions of this library, and error messages for users.

Each exception is also a fitting built-in one, so that ``except ValueError`` catches it::

    DnError
    ├── CheckpointError (ValueError)    a model file that is damaged, unsafe or of another version
    ├── ImageFileError (ValueError)     an image file that cannot be read as an image
    ├── OtherRunError (ValueError)      a folder with a training run of other images or settings
    ├── OtherVersionError (ValueError)  a folder with a training run that another version began
    ├── RegistryError (ValueError)      a registry or download that fails a check; never retried
    └── UnknownModelError (ValueError)  a model name that is not known
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "DnError",
    "ImageFileError",
    "OtherRunError",
    "OtherVersionError",
    "RegistryError",
    "UnknownModelError",
    "error_message",
]


class DnError(Exception):
    """The base class of all exceptions that this library defines."""


class CheckpointError(DnError, ValueError):
    """A model file that is invalid, damaged, unsafe or written by a newer version."""


class ImageFileError(DnError, ValueError):
    """An image file whose content cannot be read safely as an image."""


class OtherRunError(DnError, ValueError):
    """A folder that holds a training run with other images or settings, which is not resumed."""


class OtherVersionError(DnError, ValueError):
    """A folder that holds a training run of another version's format, which is not resumed."""


class RegistryError(DnError, ValueError):
    """A registry or a download that fails a check: damaged, outdated, or not as in the index."""


class UnknownModelError(DnError, ValueError):
    """A model name that is neither a known model nor a file."""


def error_message(error: BaseException) -> str:
    """One line that tells a user what went wrong.

    Parameters
    ----------
    error : BaseException
        Any exception. Errors of the operating system become ``"reason: file"``.

    Returns
    -------
    str
        The message without line breaks; the type's name where there is no message.

    Examples
    --------
    >>> error_message(OSError(2, "No such file or directory", "a.tif"))
    'No such file or directory: a.tif'
    """
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__

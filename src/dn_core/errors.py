"""The few errors of our own; each is also the built-in that fits, so that callers who know nothing of us catch right.

::

    DnError
    ├── CheckpointError (ValueError)   a model file that is not one, or that is damaged or too new
    ├── ImageFileError (ValueError)    an image file whose content cannot be read as an image
    ├── RegistryError (ValueError)     a registry or a download that is not what it should be: never tried again by itself
    └── UnknownModelError (ValueError) a model name that is not known
"""

from __future__ import annotations

__all__ = ["CheckpointError", "DnError", "ImageFileError", "RegistryError", "UnknownModelError"]


class DnError(Exception):
    """Anything that this library raises on its own account and that a caller may want to catch."""


class CheckpointError(DnError, ValueError):
    """A model file that is not one, or that is damaged, unsafe or written by a newer version."""


class ImageFileError(DnError, ValueError):
    """An image file whose content cannot be read, or not safely, as an image."""


class RegistryError(DnError, ValueError):
    """A registry, or a file from it, that cannot be trusted: damaged, older than one seen before, or not what the index names."""


class UnknownModelError(DnError, ValueError):
    """A model name that is neither known nor a file."""

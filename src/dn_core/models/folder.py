"""The models folder: where downloaded and own models lie, and its index."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dn_core.models.index import FILE, Index, index_bytes, parse_index
from dn_core.safe_write import atomic_write, clear_leftovers

__all__ = [
    "LOCK_SECONDS",
    "NoHomeError",
    "change_index",
    "models_folder",
    "read_index",
    "writable_models_folder",
]

LOCK_FILE = ".lock"
LOCK_SECONDS = 60.0
"""How long to wait for another process that changes the models folder, which takes milliseconds."""


class NoHomeError(FileNotFoundError):
    """There is no home folder, and so no models folder, as for an unknown user in a container."""


def models_folder() -> Path:
    """Where downloaded and own models lie: ``DN_MODELS``, or a folder in the user's data.

    Returns
    -------
    Path
        It need not exist.

    Raises
    ------
    OSError
        When there is no such folder, as for a user without a home folder.
    """
    import platformdirs

    named = os.environ.get("DN_MODELS")
    try:
        if named:
            return Path(named).expanduser().absolute()
        folder = platformdirs.user_data_path("napari-dnresnet", appauthor=False) / "models"
        # Older versions of platformdirs give "~/..." where there is no home folder.
        if folder.is_absolute():
            return folder
    # What is relative to a home or working folder that is not there:
    except (OSError, RuntimeError) as error:
        if named:
            raise FileNotFoundError(
                errno.ENOENT,
                f"DN_MODELS cannot be followed ({error}); name a folder by its whole path",
                named,
            ) from error
    raise NoHomeError(
        errno.ENOENT,
        "there is no home folder to keep models in; set HOME to one, or name a folder in DN_MODELS",
        "~",
    )


def writable_models_folder() -> Path:
    """The models folder, made where it is missing, without what killed processes left in it.

    Raises
    ------
    OSError
        When it cannot be made or written to.
    """
    folder = models_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "make it, or name another one in DN_MODELS"
        raise type(error)(
            error.errno,
            f"the models folder cannot be made ({error.strerror}); {advice}",
            str(folder),
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            errno.EACCES,
            "the models folder may not be written to; change its permissions, or name another in "
            "DN_MODELS",
            str(folder),
        )
    clear_leftovers(folder)
    return folder


@contextlib.contextmanager
def change_index() -> Iterator[tuple[Index, Callable[[list[dict[str, Any]]], None]]]:
    """The models folder's index and a function that replaces it; other processes wait."""
    from dn_core.locks import locked

    folder = writable_models_folder()
    with locked(
        folder / LOCK_FILE,
        LOCK_SECONDS,
        "another process has kept the models folder locked; wait for it or stop it",
    ):
        index = read_index(folder)

        def write(records: list[dict[str, Any]]) -> None:
            with atomic_write(folder / FILE) as temporary:
                temporary.write_bytes(index_bytes(index.sequence + 1, records))

        yield index, write


def read_index(folder: Path) -> Index:
    """The index of a models folder; an empty one where there is none.

    Raises
    ------
    RegistryError
        When it is damaged.
    """
    try:
        content = (folder / FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Index(0, (), ())
    return parse_index(content, str(folder))

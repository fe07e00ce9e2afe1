"""The plugin's preferences, which napari shows and saves.

Versions of napari without preferences of plugins keep them as long as the program runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DEVICES",
    "PREVIEW_SIZES",
    "Preferences",
    "on_change",
    "preferences",
    "remember",
    "use_models_folder",
]

DEVICES = ("auto", "cpu", "cuda", "mps")
PREVIEW_SIZES = (64, 2048)
"""The smallest and the largest number of pixels on a side."""
FOLDER_VARIABLE = "DN_MODELS"


@dataclass(frozen=True, slots=True)
class Preferences:
    """The preferences; see ``configurations`` in the manifest.

    Attributes
    ----------
    device : str, default "auto"
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    preview : int, default 512
        The most pixels on a side that the preview shows.
    registry : str, default ""
        Folder or web address with models to download.
    models : str, default ""
        Folder for downloaded and own models; empty for the usual one.
    folder : str, default ""
        Folder for large results; empty for the system's temporary folder.
    """

    device: str = "auto"
    preview: int = 512
    registry: str = ""
    models: str = ""
    folder: str = ""


_session: dict[str, Any] = {}
_before: list[str | None] = []
"""What `FOLDER_VARIABLE` was before it was set from the preferences."""


def preferences() -> Preferences:
    """The current preferences."""
    general = _general()
    return (
        Preferences(**_session)
        if general is None
        else Preferences(**{name: getattr(general, name) for name in Preferences.__slots__})
    )


def remember(**values: Any) -> None:
    """Set preferences and save them."""
    general = _general()
    for name, value in values.items():
        if general is None:
            _session[name] = value
        else:
            setattr(general, name, value)


def on_change(changed: Callable[..., None]) -> None:
    """Call a function whenever a preference changes."""
    general = _general()
    if general is not None:
        general.events.connect(changed)


def use_models_folder() -> None:
    """Make the library use the models folder of the preferences; its usual one if that is empty."""
    if folder := preferences().models:
        if not _before:
            _before.append(os.environ.get(FOLDER_VARIABLE))
        os.environ[FOLDER_VARIABLE] = folder
    elif _before:
        before = _before.pop()
        if before is None:
            del os.environ[FOLDER_VARIABLE]
        else:
            os.environ[FOLDER_VARIABLE] = before


def _general() -> Any:
    """napari's object for the preferences; None in versions without them."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        return None
    plugin_settings: Any = get_plugin_settings("napari-dnresnet")
    return plugin_settings.general

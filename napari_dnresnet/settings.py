"""The plugin's preferences, which napari shows and keeps; where napari is too old for that, they last as long as the program."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["DEVICES", "PREVIEW_SIZES", "Preferences", "on_change", "preferences", "remember", "use_models_folder"]

DEVICES = ("auto", "cpu", "cuda", "mps")
PREVIEW_SIZES = (64, 2048)
"""The least and the most pixels on a side."""
FOLDER_VARIABLE = "DN_MODELS"


@dataclass(frozen=True, slots=True)
class Preferences:
    """See ``configurations`` in the manifest."""

    device: str = "auto"
    preview: int = 512
    registry: str = ""
    models: str = ""
    folder: str = ""


_session: dict[str, Any] = {}
_before: list[str | None] = []
"""What `FOLDER_VARIABLE` was before a preference took its place."""


def preferences() -> Preferences:
    """What the user has set (File > Preferences)."""
    general = _general()
    return Preferences(**_session) if general is None else Preferences(**{name: getattr(general, name) for name in Preferences.__slots__})


def remember(**values: Any) -> None:
    """Set preferences, for the next time too."""
    general = _general()
    for name, value in values.items():
        if general is None:
            _session[name] = value
        else:
            setattr(general, name, value)


def on_change(changed: Callable[..., None]) -> None:
    """Call a method whenever the user changes a preference."""
    general = _general()
    if general is not None:
        general.events.connect(changed)


def use_models_folder() -> None:
    """Have the library keep models in the folder that the preferences name; where that is empty, in its usual one."""
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
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        return None
    return get_plugin_settings("napari-dnresnet").general

"""The plugin's preferences, which napari shows and keeps; defaults where napari is too old to have any."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Preferences", "preferences", "remember_registry"]


@dataclass(frozen=True, slots=True)
class Preferences:
    """See ``configurations`` in the manifest."""

    device: str = "auto"
    preview: int = 512
    registry: str = ""
    folder: str = ""


def preferences() -> Preferences:
    """What the user has set (File > Preferences)."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        return Preferences()
    general = get_plugin_settings("napari-dnresnet").general
    return Preferences(general.device, general.preview, general.registry, general.folder)


def remember_registry(address: str) -> None:
    """Keep the registry's address for the next time."""
    try:
        from napari.settings import get_plugin_settings
    except ImportError:
        return
    get_plugin_settings("napari-dnresnet").general.registry = address

"""What all dock widgets share: the layers to choose from, rows of buttons, and noticing that the dock was closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Container
from qtpy.QtCore import QEvent, QObject

from napari_dnresnet.preview import is_preview

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["Closing", "image_layers", "side_by_side"]


def image_layers(viewer: ViewerModel) -> list[tuple[str, Image]]:
    """The image layers by name, as choices of a magicgui widget; previews are none."""
    from napari.layers import Image

    return [(layer.name, layer) for layer in viewer.layers if isinstance(layer, Image) and not is_preview(layer)]


def side_by_side(*widgets: Any) -> Container:
    """Widgets side by side."""
    return Container(widgets=list(widgets), layout="horizontal", labels=False)


class Closing(QObject):
    """Calls a function when a widget leaves its dock: a dock's x neither closes nor destroys what is in it."""

    def __init__(self, widget: Any, closed: Callable[[], None]) -> None:
        super().__init__(widget)
        self._widget, self._closed = widget, closed
        widget.installEventFilter(self)

    def eventFilter(self, watched: Any, event: Any) -> bool:
        """See QObject."""
        if event.type() == QEvent.Type.ParentChange and watched.parent() is None:
            self._closed()
        return False

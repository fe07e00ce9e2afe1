"""Comparing an image with its result: hold to see the original, or flicker between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer

from napari_dnresnet.visibility import LayerGroup

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["Comparison"]

INTERVAL = 600
"""Milliseconds between before and after when flickering."""


class Comparison:
    """Shows one of two layers alone, the original or its result, and restores the view.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer.
    layers : callable
        Returns the original, if it exists, and the result or preview; None if there is none.
    parent : QObject
        The Qt object that owns the timer.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        layers: Callable[[], tuple[Image | None, Image] | None],
        parent: QObject,
    ) -> None:
        self._viewer, self._layers = viewer, layers
        self._group: LayerGroup | None = None
        self._before = False
        self._timer = QTimer(parent)
        self._timer.setInterval(INTERVAL)
        self._timer.timeout.connect(self._flip)

    def show(self, *, before: bool) -> None:
        """Show the original alone, or the result alone."""
        found = self._layers()
        if found is None:
            return
        original, result = found
        if result in self._viewer.layers:
            self._group = LayerGroup.of(self._viewer, result)
            self._group.show_only(original if before else result)

    def restore(self) -> None:
        """Show and hide as before comparing."""
        group, self._group = self._group, None
        if group is not None:
            group.restore()

    def flicker(self, on: bool) -> None:
        """Start or stop flickering."""
        if on:
            self._before = False
            self._timer.start()
        else:
            self._timer.stop()
            self.restore()

    def _flip(self) -> None:
        self._before = not self._before
        self.show(before=self._before)

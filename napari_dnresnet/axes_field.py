"""The field for the axes of a layer, with a description of what is done along each of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from magicgui.widgets import Label, LineEdit

from napari_dnresnet.axes import LayerAxes, default_axes, guess_message, time_axes
from napari_dnresnet.layers import highest_level, unwrapped

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = ["NO_IMAGE", "AxesField"]

NO_IMAGE = "There is no image layer. Open an image, or choose File > Open Sample > DnResNet."
FOLLOWED = ("data", "axis_labels", "units")
"""Events of the layer after which its axes may be others."""


class AxesField:
    """Letters for the axes of a layer: as the user typed them, or as the layer's labels say.

    Each layer keeps the letters that were typed for it, as long as they fit its shape.

    Parameters
    ----------
    changed : callable
        Called when the axes are valid and may have changed.

    Attributes
    ----------
    letters
        The widget with the letters.
    description
        A label below it.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.letters = LineEdit(label="Axes")
        self.description = Label(value="")
        self._changed = changed
        self._layer: Image | None = None
        self._typed: weakref.WeakKeyDictionary[Image, str] = weakref.WeakKeyDictionary()
        self.letters.tooltip = "One letter per axis: T, Z, C, Y (rows), X (columns)"
        self.letters.changed.connect(self._on_typed)

    def set_layer(self, layer: Image | None) -> None:
        """Show the axes of a layer, and follow it."""
        if self._layer is not None:
            for name in FOLLOWED:
                getattr(self._layer.events, name).disconnect(self._show)
        if layer is not None:
            for name in FOLLOWED:
                getattr(layer.events, name).connect(self._show)
        self._layer = layer
        self._show()

    def chosen(self) -> LayerAxes | None:
        """The axes; None without a layer.

        Raises
        ------
        ValueError
            When the letters do not fit the layer.
        """
        if self._layer is None:
            return None
        shape = tuple(highest_level(self._layer).shape)
        return LayerAxes(self.letters.value.strip().upper(), shape)

    def _show(self, event: Any = None) -> None:
        """Show the letters of the layer."""
        layer, text = self._layer, ""
        if layer is None:
            self.description.value = NO_IMAGE
        else:
            shape = tuple(highest_level(layer).shape)
            text = self._typed.get(unwrapped(layer), "")
            if len(text) != len(shape):
                labels = tuple(map(str, layer.axis_labels))
                text = default_axes(labels, shape, layer.rgb, time_axes(layer))
        with self.letters.changed.blocked():
            self.letters.value = text
        if layer is not None:
            self._describe()

    def _on_typed(self, text: str) -> None:
        if self._layer is not None:
            self._typed[unwrapped(self._layer)] = text
        self._describe()

    def _describe(self) -> None:
        try:
            axes = self.chosen()
        except ValueError as error:
            self.description.value = str(error)
            return
        if axes is not None and self._layer is not None:
            lines = [axes.describe(), guess_message(self._layer, axes.letters)]
            self.description.value = "\n".join(filter(None, lines))
        self._changed()

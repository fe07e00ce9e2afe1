"""Visibility of the layers of one image: the source, its results and its preview.

Layers that are not opaque, such as the channels of a microscope, are added to what lies under them:
an image and its result together would be twice as bright. So a result or preview hides its source,
which is shown again when that is hidden or removed. Layers that the user shows or hides are left
alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_dnresnet.layers import unwrapped
from napari_dnresnet.view import canvas

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["LayerGroup", "is_see_through"]

OPAQUE = ("opaque", "translucent", "translucent_no_depth")
"""Blending modes in which an opaque layer covers what lies under it."""


def is_see_through(viewer: ViewerModel, layer: Image) -> bool:
    """Whether what lies under a layer is seen through it."""
    if canvas(viewer).grid.enabled:  # no layer lies under another
        return False
    alpha = (
        layer.data.shape[-1] == 4
        if layer.rgb
        else bool(np.any(np.asarray(layer.colormap.colors)[:, -1] < 1))
    )
    return layer.blending not in OPAQUE or layer.opacity < 1 or alpha


class LayerGroup:
    """The layers of one image: the source, its results, its preview. Use `LayerGroup.of`.

    `_hidden_for` maps each layer that is hidden by the group to the layers that hide it: it is
    shown again when none of those is shown, unless it is in `_aside`. What the user shows or hides
    leaves `_hidden_for`.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer of the layers.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = weakref.ref(unwrapped(viewer))
        self._layers: list[weakref.ref[Image]] = []
        self._hidden_for: weakref.WeakKeyDictionary[Image, weakref.WeakSet[Image]] = (
            weakref.WeakKeyDictionary()
        )
        self._aside: weakref.WeakSet[Image] = weakref.WeakSet()
        self._before: weakref.WeakKeyDictionary[Image, bool] | None = None
        self._changing = False
        viewer.layers.events.removed.connect(self._removed)

    @classmethod
    def of(cls, viewer: ViewerModel, layer: Image) -> LayerGroup:
        """The group of a layer, which is made if there is none."""
        layer = unwrapped(layer)
        if layer not in _groups:
            _groups[layer] = cls(viewer)
            _groups[layer].add(layer)
        return _groups[layer]

    @staticmethod
    def known(layer: Image) -> LayerGroup | None:
        """The group of a layer, if there is one."""
        return _groups.get(unwrapped(layer))

    def index_above(self, layer: Image) -> int:
        """Index in the viewer's list right above a layer and those of its group that lie on it."""
        layers, group = [unwrapped(other) for other in self._viewer_layers()], self.layers
        place = layers.index(unwrapped(layer)) + 1
        while place < len(layers) and layers[place] in group:
            place += 1
        return place

    @property
    def layers(self) -> list[Image]:
        """The source, if it exists, then the others in the order in which they were added."""
        return [layer for ref in self._layers if (layer := ref()) is not None]

    def add(self, layer: Image, *, hide: bool = True) -> None:
        """Add a layer of the viewer; with `hide`, hide those that would be seen through it."""
        layer = unwrapped(layer)
        self.restore()
        viewer = self._viewer()
        covers = not hide or viewer is None or not is_see_through(viewer, layer)
        for other in self.layers:
            if other in self._hidden_for:
                self._hidden_for[other].add(layer)
            elif other.visible and not covers:
                self._hidden_for[other] = weakref.WeakSet([layer])
        self._layers.append(weakref.ref(layer))
        _groups[layer] = self
        layer.events.visible.connect(self._visibility_changed)
        self._update()

    def put_aside(self, layer: Image, aside: bool) -> None:
        """Hide a layer for a while, or show it again; the layers that it hides are seen then."""
        layer = unwrapped(layer)
        if aside and layer.visible:
            self._hidden_for.setdefault(layer, weakref.WeakSet())
            self._aside.add(layer)
        elif not aside:
            self._aside.discard(layer)
        self._update()

    def show_only(self, layer: Image | None) -> None:
        """Show one layer of the group, or none, until `restore`."""
        if self._before is None:
            self._before = weakref.WeakKeyDictionary(
                {other: other.visible for other in self.layers}
            )
        layer = unwrapped(layer)
        with self._own_changes():
            for other in self.layers:
                other.visible = other is layer

    def restore(self) -> None:
        """Show and hide as before `show_only`."""
        before, self._before = self._before, None
        if before is not None:
            with self._own_changes():
                for layer, visible in before.items():
                    layer.visible = visible
            self._update()

    def _update(self) -> None:
        """Show and hide the layers in `_hidden_for`.

        The newest first: layers are only hidden by newer ones, whose visibility is final then.
        """
        for layer in reversed(self.layers):
            hidden_for = self._hidden_for.get(layer)
            if hidden_for is None or self._before is not None:
                continue
            visible = layer not in self._aside and not any(other.visible for other in hidden_for)
            if layer.visible != visible:
                with self._own_changes():
                    layer.visible = visible
            if not hidden_for and layer not in self._aside:
                del self._hidden_for[layer]

    def _visibility_changed(self, event: Any) -> None:
        """A layer was shown or hidden; if by the user, the group leaves it alone from now on."""
        if self._changing:
            return
        layer = unwrapped(event.source)
        self._hidden_for.pop(layer, None)
        self._aside.discard(layer)
        if self._before is not None:
            self._before.pop(layer, None)
        self._update()

    def _removed(self, event: Any) -> None:
        layer = unwrapped(event.value)
        if layer not in self.layers:
            return
        self.restore()
        layer.events.visible.disconnect(self._visibility_changed)
        self._layers = [ref for ref in self._layers if ref() is not layer]
        self._hidden_for.pop(layer, None)
        self._aside.discard(layer)
        for hidden_for in self._hidden_for.values():
            hidden_for.discard(layer)
        _groups.pop(layer, None)
        try:
            self._update()
        except RuntimeError as error:
            # A window that closes removes its layers one by one, and with asynchronous slicing
            # cannot show any of them by then.
            if "after shutdown" not in str(error):
                raise

    @contextmanager
    def _own_changes(self) -> Iterator[None]:
        before, self._changing = self._changing, True
        try:
            yield
        finally:
            self._changing = before

    def _viewer_layers(self) -> list[Any]:
        viewer = self._viewer()
        return [] if viewer is None else list(viewer.layers)


_groups: weakref.WeakKeyDictionary[Image, LayerGroup] = weakref.WeakKeyDictionary()
"""The group of each layer."""

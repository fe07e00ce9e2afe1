"""Which layer of an image is seen: the image itself, or a result or preview that stands in for it.

Layers that are not opaque, such as the channels of a microscope, are added to what lies under them: an image and its result together are
twice as bright. What a result or preview hides comes back when that is hidden or removed. What the user shows or hides is left alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_dnresnet.layers import bare, canvas

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["StandIns", "shines_through"]

OPAQUE = ("opaque", "translucent", "translucent_no_depth")
"""Ways of blending in which an opaque layer covers what lies under it."""


def shines_through(viewer: ViewerModel, layer: Image) -> bool:
    """Whether what lies under a layer is seen through it."""
    if canvas(viewer).grid.enabled:  # nothing lies under anything
        return False
    alpha = layer.data.shape[-1] == 4 if layer.rgb else bool(np.any(np.asarray(layer.colormap.colors)[:, -1] < 1))
    return layer.blending not in OPAQUE or layer.opacity < 1 or alpha


class StandIns:
    """The layers of one image: the source, its results, its preview. Use `StandIns.of`.

    A layer in `_hidden_for` is shown if none of the layers there is shown, and it has not been put aside.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = weakref.ref(bare(viewer))
        self._layers: list[weakref.ref[Image]] = []
        self._hidden_for: weakref.WeakKeyDictionary[Image, weakref.WeakSet[Image]] = weakref.WeakKeyDictionary()
        self._aside: weakref.WeakSet[Image] = weakref.WeakSet()
        self._before: weakref.WeakKeyDictionary[Image, bool] | None = None
        self._ours = False
        viewer.layers.events.removed.connect(self._removed)

    @classmethod
    def of(cls, viewer: ViewerModel, layer: Image) -> StandIns:
        """Those of a layer, be it the source itself or one of them."""
        layer = bare(layer)
        if layer not in _known:
            _known[layer] = cls(viewer)
            _known[layer].add(layer)
        return _known[layer]

    @staticmethod
    def known(layer: Image) -> StandIns | None:
        """Those of a layer, if there are others."""
        return _known.get(bare(layer))

    def above(self, layer: Image) -> int:
        """Where in the viewer's list the next one belongs: right above a layer, and those of its image that lie on it."""
        layers, known = [bare(other) for other in self._viewer_layers()], self.layers
        place = layers.index(bare(layer)) + 1
        while place < len(layers) and layers[place] in known:
            place += 1
        return place

    @property
    def layers(self) -> list[Image]:
        """The source, if it is there, and those that stand in for it, in the order in which they came."""
        return [layer for ref in self._layers if (layer := ref()) is not None]

    def add(self, layer: Image, *, hide: bool = True) -> None:
        """A layer in the viewer stands in for those that are there; those are hidden if they would be seen through it."""
        layer = bare(layer)
        self.restore()
        viewer = self._viewer()
        covers = not hide or viewer is None or not shines_through(viewer, layer)
        for other in self.layers:
            if other in self._hidden_for:
                self._hidden_for[other].add(layer)
            elif other.visible and not covers:
                self._hidden_for[other] = weakref.WeakSet([layer])
        self._layers.append(weakref.ref(layer))
        _known[layer] = self
        layer.events.visible.connect(self._changed)
        self._settle()

    def put_aside(self, layer: Image, aside: bool) -> None:
        """Hide a layer for a while; what it stands in for is seen meanwhile."""
        layer = bare(layer)
        if aside and layer.visible:
            self._hidden_for.setdefault(layer, weakref.WeakSet())
            self._aside.add(layer)
        elif not aside:
            self._aside.discard(layer)
        self._settle()

    def show_only(self, layer: Image | None) -> None:
        """Show one of the layers, or none, until `restore`."""
        if self._before is None:
            self._before = weakref.WeakKeyDictionary({other: other.visible for other in self.layers})
        layer = bare(layer)
        with self._by_us():
            for other in self.layers:
                other.visible = other is layer

    def restore(self) -> None:
        """Show and hide as before `show_only`."""
        before, self._before = self._before, None
        if before is not None:
            with self._by_us():
                for layer, visible in before.items():
                    layer.visible = visible
            self._settle()

    def _settle(self) -> None:
        """Show and hide what is ours to; the newest first, since only they hide others."""
        layers = self.layers
        for layer in reversed(layers):
            hidden_for = self._hidden_for.get(layer)
            if hidden_for is None or self._before is not None:
                continue
            visible = layer not in self._aside and not any(other.visible for other in hidden_for)
            if layer.visible != visible:
                with self._by_us():
                    layer.visible = visible
            if not hidden_for and layer not in self._aside:
                del self._hidden_for[layer]

    def _changed(self, event: Any) -> None:
        """A layer was shown or hidden; if not by us, it is left alone from now on."""
        if self._ours:
            return
        layer = bare(event.source)
        self._hidden_for.pop(layer, None)
        self._aside.discard(layer)
        if self._before is not None:
            self._before.pop(layer, None)
        self._settle()

    def _removed(self, event: Any) -> None:
        layer = bare(event.value)
        if layer not in self.layers:
            return
        self.restore()
        layer.events.visible.disconnect(self._changed)
        self._layers = [ref for ref in self._layers if ref() is not layer]
        self._hidden_for.pop(layer, None)
        self._aside.discard(layer)
        for hidden_for in self._hidden_for.values():
            hidden_for.discard(layer)
        _known.pop(layer, None)
        try:
            self._settle()
        except RuntimeError as error:
            # A window that closes takes its layers away one by one, and shows none any more where slicing is asynchronous.
            if "after shutdown" not in str(error):
                raise

    @contextmanager
    def _by_us(self) -> Iterator[None]:
        before, self._ours = self._ours, True
        try:
            yield
        finally:
            self._ours = before

    def _viewer_layers(self) -> list[Any]:
        viewer = self._viewer()
        return [] if viewer is None else list(viewer.layers)


_known: weakref.WeakKeyDictionary[Image, StandIns] = weakref.WeakKeyDictionary()
"""By each of their layers."""

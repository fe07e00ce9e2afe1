"""The live preview: what is on screen of a layer, denoised, in a layer of its own that follows the view."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_dnresnet.jobs import Job, sentence
from napari_dnresnet.layers import Axes, Region, bare, camera, highest_level, layer_settings, region_affine, visible_region
from napari_dnresnet.stand_ins import StandIns, shines_through

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["PREVIEW", "Preview", "Wish", "is_preview"]

PREVIEW = "dnresnet preview"
"""Marks a layer as a preview, in its metadata."""
LOOKS = ("contrast_limits", "colormap", "gamma")
PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")
FOLLOWED = ("data", "blending", "opacity", *LOOKS, *PLACE)
"""Events of the layer after which its preview is another one."""
SURROUNDINGS = 4096
"""Pixels on a side that are shown around the preview of a layer that is hidden meanwhile, at most."""
DELAY = 60
"""Milliseconds without a change after which the preview is computed."""


@dataclass(frozen=True)
class Wish:
    """What to preview: a layer, its axes, and the options of `dn_core.denoise_steps` but for the amount."""

    layer: Image
    axes: Axes
    options: dict[str, Any]


@dataclass
class _Shown:
    """The crop at hand with its denoised version."""

    wish: Wish
    region: Region
    crop: NDArray[Any]
    denoised: NDArray[Any]
    around: Region | None = None
    surroundings: NDArray[Any] | None = None

    @property
    def place(self) -> Region:
        """All that is shown, the surroundings if there are any."""
        return self.around or self.region

    def pixels(self, amount: float) -> NDArray[Any]:
        """All that is shown."""
        from dn_core.inference.planes import blend

        inside = blend(self.crop, self.denoised, amount)
        if self.around is None or self.surroundings is None:
            return inside
        pixels = np.array(self.surroundings)
        pixels[self.region.within(self.around)] = inside
        return pixels


class Preview:
    """Keeps a preview layer in step with the view, the model and the amount; a computation that is stale is cancelled.

    Parameters
    ----------
    wish
        Called in the main thread when a preview is due; None for none. It may raise ValueError, whose text is told.
    tell
        Called with a sentence.
    limit
        Pixels on a side that are shown at most.
    parent
        Its end is the preview's.
    """

    def __init__(
        self, viewer: ViewerModel, wish: Callable[[], Wish | None], tell: Callable[[str], None], limit: int, parent: QObject
    ) -> None:
        self.viewer, self._wish, self._tell, self.limit = viewer, wish, tell, limit
        self.layer: Image | None = None
        self._shown: _Shown | None = None
        self._source: Image | None = None
        self._job: Job | None = None
        self._amount, self._on, self._alone = 1.0, False, False
        self._timer = QTimer(parent)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY)
        self._timer.timeout.connect(self._compute)
        view, dims = camera(viewer).events, viewer.dims.events
        # The units are those of all layers together; older versions of napari have none.
        units = (dims.units,) if hasattr(dims, "units") else ()
        self._events = (view.zoom, view.center, dims.current_step, dims.order, dims.ndisplay, *units)

    @property
    def on(self) -> bool:
        """Whether there is a preview."""
        return self._on

    @property
    def busy(self) -> bool:
        """Whether one is due or being computed."""
        return self._timer.isActive() or (self._job is not None and self._job.running)

    def start(self) -> None:
        """Show a preview from now on."""
        if not self._on:
            self._on = True
            for event in self._events:
                event.connect(self.refresh)
            self.viewer.layers.events.removed.connect(self._removed)
        self.refresh()

    def stop(self) -> None:
        """Take the preview away."""
        if not self._on:
            return
        self._on = False
        self._timer.stop()
        self._cancel()
        for event in self._events:
            event.disconnect(self.refresh)
        self.viewer.layers.events.removed.disconnect(self._removed)
        self._watch(None)
        self._hide()

    def abandon(self) -> None:
        """The window is gone: stop without touching it."""
        self._on = False
        self._cancel()

    def _watch(self, source: Image | None) -> None:
        """Follow the changes of a layer instead of another one's."""
        if self._source == source:
            return
        for layer, act in ((self._source, "disconnect"), (source, "connect")):
            for name in FOLLOWED if layer is not None else ():
                getattr(getattr(layer.events, name), act)(self.refresh)
        self._source = source
        self._hide()

    def refresh(self, event: Any = None) -> None:
        """Something has changed: compute again, as soon as it stays."""
        if self._on:
            self._cancel()
            self._timer.start()
            if self.layer is not None and self._shown is not None and self._shown.around is not None:
                StandIns.of(self.viewer, self.layer).put_aside(self.layer, self._elsewhere(self._shown))

    def _elsewhere(self, shown: _Shown) -> bool:
        """Whether the view shows another part of the layer than the preview has."""
        try:
            region = visible_region(self.viewer, shown.wish.layer, shown.wish.axes, SURROUNDINGS, 1)
        except ValueError:
            return True
        return not region.lies_in(shown.place)

    def set_amount(self, amount: float) -> None:
        """Blend what is computed already."""
        self._amount = amount
        if self._shown is not None:
            self._show()

    def _compute(self) -> None:
        try:
            wish = self._wish()
            region = None if wish is None else visible_region(self.viewer, wish.layer, wish.axes, self.limit)
            around = self._around(wish) if wish is not None else None
        except ValueError as error:
            self._hide()
            self._tell(sentence(error))
            return
        self._watch(None if wish is None else wish.layer)
        if wish is None or region is None:
            return

        def steps() -> Iterator[_Shown | None]:
            from dn_core.inference.denoise import denoise_steps

            crop = region.crop(highest_level(wish.layer))
            surroundings = None if around is None else around.crop(highest_level(wish.layer))
            for step in denoise_steps(crop, channel_axis=wish.axes.channel_axis, alpha=wish.axes.alpha, **wish.options):
                yield None if step.result is None else _Shown(wish, region, crop, step.result, around, surroundings)

        self._job = Job(steps, step=self._receive, failed=self._fail)

    def _around(self, wish: Wish) -> Region | None:
        """What is shown around it: nothing where the layer is seen there, otherwise what is on screen and half as much on each side."""
        if not shines_through(self.viewer, wish.layer):
            return None
        seen = visible_region(self.viewer, wish.layer, wish.axes, max(highest_level(wish.layer).shape), 1)
        around = seen.grown(wish.axes, SURROUNDINGS)
        if not seen.lies_in(around):
            self._tell(f"The preview shows the middle {SURROUNDINGS} pixels of what is on screen; zoom in to see all of it.")
        return around

    def _receive(self, shown: _Shown | None) -> None:
        if shown is not None and self._on:
            self._shown = shown
            self._show()

    def _fail(self, error: Exception) -> None:
        self._hide()
        self._tell(sentence(error))

    def _show(self) -> None:
        assert self._shown is not None
        source, alone = self._shown.wish.layer, self._shown.around is not None
        data, affine = self._shown.pixels(self._amount), region_affine(source, self._shown.place.begin)
        layer, kind = self.layer, (source.rgb, source.ndim, source.blending)
        if layer is not None and (layer.rgb, layer.ndim, layer.blending) == kind and alone == self._alone:
            layer.data = data
            layer.units = source.units
            layer.affine = affine
            for name in LOOKS if not source.rgb else ():
                setattr(layer, name, getattr(source, name))
            if alone:
                layer.opacity = source.opacity
                StandIns.of(self.viewer, layer).put_aside(layer, False)
            return
        self._hide(keep=True)
        self._add(data, affine, source, alone)

    def _add(self, data: NDArray[Any], affine: NDArray[np.float64], source: Image, alone: bool) -> None:
        """Add a layer, right above its source, which it hides where that would be seen through it."""
        from napari.layers import Image

        settings = {key: value for key, value in layer_settings(source).items() if key not in PLACE}
        settings |= {"name": f"{source.name} preview", "affine": affine, "units": source.units, "metadata": {PREVIEW: True}}
        selection = set(self.viewer.layers.selection)
        layer = Image(data, **(settings if alone else settings | {"opacity": 1.0}))
        _previews.add(layer)
        stand_ins = StandIns.of(self.viewer, source)
        self.viewer.layers.insert(stand_ins.above(source), layer)
        self.viewer.layers.selection = selection
        self.layer, self._alone = layer, alone
        stand_ins.add(layer, hide=alone)

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.cancel()
            self._job = None

    def _hide(self, keep: bool = False) -> None:
        layer, self.layer = self.layer, None
        if not keep:
            self._shown = None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _removed(self, event: Any) -> None:
        if event.value == self.layer:  # either may be a proxy, so that `is` would not do
            self.layer = None
            self._shown = None
        elif self._shown is not None and event.value == self._shown.wish.layer:
            self._hide()
            self.refresh()


_previews: weakref.WeakSet[Any] = weakref.WeakSet()


def is_preview(layer: Any) -> bool:
    """Whether a layer is a preview, which is not to be denoised itself; a copy of one that a user made is none."""
    return bare(layer) in _previews

"""The live preview: the visible part of a layer, denoised, in a layer that follows the view."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_dnresnet.axes import LayerAxes
from napari_dnresnet.background import BackgroundTask
from napari_dnresnet.layers import highest_level, layer_settings, unwrapped
from napari_dnresnet.view import Region, camera, region_affine, visible_region
from napari_dnresnet.visibility import LayerGroup, is_see_through

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["PREVIEW", "Preview", "PreviewRequest", "is_preview"]

PREVIEW = "dnresnet preview"
"""The key in a layer's metadata that marks it as a preview."""
LOOKS = ("contrast_limits", "colormap", "gamma")
PLACE = ("scale", "translate", "rotate", "shear", "affine", "units")
FOLLOWED = ("data", "blending", "opacity", *LOOKS, *PLACE)
"""Events of the layer after which the preview is computed again."""
SURROUNDINGS = 4096
"""The most pixels on a side that are shown around a preview whose layer is hidden meanwhile."""
DELAY = 60
"""Milliseconds without a change after which the preview is computed."""


@dataclass(frozen=True)
class PreviewRequest:
    """What to preview.

    Attributes
    ----------
    layer : Image
        The layer.
    axes : LayerAxes
        Its axes.
    options : dict of str to object
        Keywords of `dn_core.denoise_steps`, except the axes and the amount.
    """

    layer: Image
    axes: LayerAxes
    options: dict[str, Any]


@dataclass
class _DenoisedCrop:
    """A crop of a layer, before and after denoising, with what is shown around it."""

    request: PreviewRequest
    region: Region
    crop: NDArray[Any]
    denoised: NDArray[Any]
    around: Region | None = None
    surroundings: NDArray[Any] | None = None

    @property
    def place(self) -> Region:
        """The region of the preview layer, with the surroundings if there are any."""
        return self.around or self.region

    def pixels(self, amount: float) -> NDArray[Any]:
        """The pixels of the preview layer."""
        from dn_core import blend

        inside = blend(self.crop, self.denoised, amount)
        if self.around is None or self.surroundings is None:
            return inside
        pixels = np.array(self.surroundings)
        pixels[self.region.within(self.around)] = inside
        return pixels


class Preview:
    """Keeps a preview layer in step with the view, the model and the amount.

    A computation that is out of date is cancelled.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer.
    request : callable
        Called in the main thread when a preview is due; returns None for none. It may raise
        ValueError, whose message is shown.
    tell : callable
        Called with a sentence for the user.
    limit : int
        At most this many pixels on a side are shown.
    parent : QObject
        The Qt object that owns the timer.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        request: Callable[[], PreviewRequest | None],
        tell: Callable[[str], None],
        limit: int,
        parent: QObject,
    ) -> None:
        self.viewer, self._request, self._tell, self.limit = viewer, request, tell, limit
        self.layer: Image | None = None
        self._shown: _DenoisedCrop | None = None
        self._source: Image | None = None
        self._task: BackgroundTask | None = None
        self._amount, self._on, self._hides_source = 1.0, False, False
        self._timer = QTimer(parent)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY)
        self._timer.timeout.connect(self._compute)
        view, dims = camera(viewer).events, viewer.dims.events
        # The units of the viewer depend on all layers; older versions of napari have none.
        units = (dims.units,) if hasattr(dims, "units") else ()
        self._events = (
            view.zoom,
            view.center,
            dims.current_step,
            dims.order,
            dims.ndisplay,
            *units,
        )

    @property
    def on(self) -> bool:
        """Whether the preview is switched on."""
        return self._on

    @property
    def busy(self) -> bool:
        """Whether a preview is due or being computed."""
        return self._timer.isActive() or (self._task is not None and self._task.running)

    def start(self) -> None:
        """Show a preview from now on."""
        if not self._on:
            self._on = True
            for event in self._events:
                event.connect(self.refresh)
            self.viewer.layers.events.removed.connect(self._removed)
        self.refresh()

    def stop(self) -> None:
        """Remove the preview."""
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
        """Stop without touching the window, which is gone."""
        self._on = False
        self._cancel()

    def _watch(self, source: Image | None) -> None:
        """Follow the changes of another layer."""
        if self._source == source:
            return
        if self._source is not None:
            for name in FOLLOWED:
                getattr(self._source.events, name).disconnect(self.refresh)
        if source is not None:
            for name in FOLLOWED:
                getattr(source.events, name).connect(self.refresh)
        self._source = source
        self._hide()

    def refresh(self, event: Any = None) -> None:
        """Compute again as soon as nothing changes for a moment."""
        if not self._on:
            return
        self._cancel()
        self._timer.start()
        shown = self._shown
        if self.layer is not None and shown is not None and shown.around is not None:
            group = LayerGroup.of(self.viewer, self.layer)
            group.put_aside(self.layer, self._elsewhere(shown))

    def _elsewhere(self, shown: _DenoisedCrop) -> bool:
        """Whether the view shows a part of the layer that the preview does not have."""
        request = shown.request
        try:
            region = visible_region(self.viewer, request.layer, request.axes, SURROUNDINGS, 1)
        except ValueError:
            return True
        return not region.is_inside(shown.place)

    def set_amount(self, amount: float) -> None:
        """Blend the preview again with the layer."""
        self._amount = amount
        if self._shown is not None:
            self._show(self._shown)

    def _compute(self) -> None:
        try:
            request = self._request()
            region = around = None
            if request is not None:
                region = visible_region(self.viewer, request.layer, request.axes, self.limit)
                around = self._around(request)
        except ValueError as error:
            self._hide()
            self._tell(str(error))
            return
        self._watch(None if request is None else request.layer)
        if request is None or region is None:
            return

        def steps() -> Iterator[_DenoisedCrop | None]:
            from dn_core import denoise_steps

            data, axes = highest_level(request.layer), request.axes
            crop = region.crop(data)
            surroundings = None if around is None else around.crop(data)
            for step in denoise_steps(
                crop, channel_axis=axes.channel_axis, alpha=axes.alpha, **request.options
            ):
                if step.result is None:
                    yield None
                else:
                    yield _DenoisedCrop(request, region, crop, step.result, around, surroundings)

        self._task = BackgroundTask(steps, step=self._receive, failed=self._fail)

    def _around(self, request: PreviewRequest) -> Region | None:
        """The region to show around the preview.

        None if the layer itself is seen there; otherwise what is on screen and half as much on
        each side.
        """
        layer, axes = request.layer, request.axes
        if not is_see_through(self.viewer, layer):
            return None
        seen = visible_region(self.viewer, layer, axes, max(highest_level(layer).shape), 1)
        around = seen.grown(axes, SURROUNDINGS)
        if not seen.is_inside(around):
            self._tell(
                f"The preview shows the middle {SURROUNDINGS} pixels of what is on screen. Zoom "
                "in to see all of it."
            )
        return around

    def _receive(self, shown: _DenoisedCrop | None) -> None:
        if shown is not None and self._on:
            self._shown = shown
            self._show(shown)

    def _fail(self, error: Exception) -> None:
        from dn_core.errors import error_message

        self._hide()
        self._tell(error_message(error))

    def _show(self, shown: _DenoisedCrop) -> None:
        """Put the pixels into the preview layer, or into a new one if that has another kind."""
        source, hides_source = shown.request.layer, shown.around is not None
        data, affine = shown.pixels(self._amount), region_affine(source, shown.place.begin)
        layer, kind = self.layer, (source.rgb, source.ndim, source.blending)
        if (
            layer is None
            or (layer.rgb, layer.ndim, layer.blending) != kind
            or hides_source != self._hides_source
        ):
            self._hide(keep=True)
            self._add(data, affine, source, hides_source)
            return
        layer.data = data
        layer.units = source.units
        layer.affine = affine
        for name in LOOKS if not source.rgb else ():
            setattr(layer, name, getattr(source, name))
        if hides_source:
            layer.opacity = source.opacity
            LayerGroup.of(self.viewer, layer).put_aside(layer, False)

    def _add(
        self, data: NDArray[Any], affine: NDArray[np.float64], source: Image, hides_source: bool
    ) -> None:
        """Add the preview layer right above its source."""
        from napari.layers import Image

        settings = {key: value for key, value in layer_settings(source).items() if key not in PLACE}
        settings |= {
            "name": f"{source.name} preview",
            "affine": affine,
            "units": source.units,
            "metadata": {PREVIEW: True},
        }
        if not hides_source:
            settings["opacity"] = 1.0
        selection = set(self.viewer.layers.selection)
        layer = Image(data, **settings)
        _previews.add(layer)
        group = LayerGroup.of(self.viewer, source)
        self.viewer.layers.insert(group.index_above(source), layer)
        self.viewer.layers.selection = selection
        self.layer, self._hides_source = layer, hides_source
        group.add(layer, hide=hides_source)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _hide(self, keep: bool = False) -> None:
        layer, self.layer = self.layer, None
        if not keep:
            self._shown = None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)

    def _removed(self, event: Any) -> None:
        if event.value == self.layer:  # not `is`: either may be a proxy
            self.layer = None
            self._shown = None
        elif self._shown is not None and event.value == self._shown.request.layer:
            self._hide()
            self.refresh()


_previews: weakref.WeakSet[Any] = weakref.WeakSet()


def is_preview(layer: Any) -> bool:
    """Whether a layer is a preview, which is not denoised itself; a user's copy of one is not."""
    return unwrapped(layer) in _previews

"""The live preview: what is on screen of a layer, denoised, in a layer of its own that follows the view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_dnresnet.jobs import Job, sentence
from napari_dnresnet.layers import Axes, Region, highest_level, layer_settings, region_affine, visible_region

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["PREVIEW", "Preview", "Wish", "is_preview"]

PREVIEW = "dnresnet preview"
"""Marks a layer as a preview, in its metadata."""
FOLLOWED = ("data", "contrast_limits", "colormap", "gamma", "scale", "translate", "rotate", "shear", "affine")
"""Events of the layer after which its preview is another one."""
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
        self._amount, self._on = 1.0, False
        self._timer = QTimer(parent)
        self._timer.setSingleShot(True)
        self._timer.setInterval(DELAY)
        self._timer.timeout.connect(self._compute)
        self._events = (
            *(viewer.camera.events.zoom, viewer.camera.events.center),
            *(viewer.dims.events.current_step, viewer.dims.events.order, viewer.dims.events.ndisplay),
        )

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

    def set_amount(self, amount: float) -> None:
        """Blend what is computed already."""
        self._amount = amount
        if self._shown is not None:
            self._show()

    def _compute(self) -> None:
        try:
            wish = self._wish()
            region = None if wish is None else visible_region(wish.layer, self.viewer.dims, wish.axes, self.limit)
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
            for step in denoise_steps(crop, channel_axis=wish.axes.channel_axis, alpha=wish.axes.alpha, **wish.options):
                yield None if step.result is None else _Shown(wish, region, crop, step.result)

        self._job = Job(steps, step=self._receive, failed=self._fail)

    def _receive(self, shown: _Shown | None) -> None:
        if shown is not None and self._on:
            self._shown = shown
            self._show()

    def _fail(self, error: Exception) -> None:
        self._hide()
        self._tell(sentence(error))

    def _show(self) -> None:
        from dn_core.inference.planes import blend

        assert self._shown is not None
        source, region = self._shown.wish.layer, self._shown.region
        data = blend(self._shown.crop, self._shown.denoised, self._amount)
        affine = region_affine(source, region.begin)
        if self.layer is not None and self.layer.rgb == source.rgb and self.layer.ndim == source.ndim:
            self.layer.data = data
            self.layer.affine = affine
            for name in ("contrast_limits", "colormap", "gamma") if not source.rgb else ():
                setattr(self.layer, name, getattr(source, name))
            return
        self._hide(keep=True)
        settings = {
            key: value for key, value in layer_settings(source).items() if key not in ("scale", "translate", "rotate", "shear", "affine")
        }
        settings |= {"name": f"{source.name} preview", "affine": affine, "metadata": {PREVIEW: True}, "visible": True, "opacity": 1.0}
        selection = set(self.viewer.layers.selection)
        self.layer = self.viewer.add_image(data, **settings)
        self.viewer.layers.selection = selection

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


def is_preview(layer: Any) -> bool:
    """Whether a layer is a preview, which is not to be denoised itself."""
    return PREVIEW in layer.metadata

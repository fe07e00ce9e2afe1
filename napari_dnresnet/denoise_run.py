"""One denoising run: from a request through `dn_core.denoise_steps` to a result's layer."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_dnresnet.large_results import discard, empty_target
from napari_dnresnet.layers import is_zarr, readable, unwrapped
from napari_dnresnet.models import model_list
from napari_dnresnet.request import DenoiseRequest
from napari_dnresnet.results import Result, results
from napari_dnresnet.settings import preferences

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from dn_core import Progress

__all__ = ["DenoiseRun", "Finished"]

REFRESH_SECONDS = 0.5
"""The least time between two refreshes of a large result that is being written."""
REFRESH_SHARE = 10
"""A refresh waits for at least this many times as long as the last one took."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last step of a run.

    Attributes
    ----------
    result : object
        The denoised array.
    engine : str
        What computed it, in words.
    sha256 : str
        Hash of the model's file.
    seconds : float
        How long it took.
    missing : str, default ""
        What the image's file lacks and was read as a fill value, in words.
    notes : tuple of str, optional
        See `dn_core.Progress`.
    """

    result: Any
    engine: str
    sha256: str
    seconds: float
    missing: str = ""
    notes: tuple[str, ...] = ()


class DenoiseRun:
    """A request on its way into a layer. Large results have their layer from the beginning.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer for the layer.
    request : DenoiseRequest
        What to denoise.
    source : Image
        The layer to denoise.
    amount : float
        The amount of the result, 0 to 1; may be changed while it runs.

    Raises
    ------
    OSError
        When there is no place for a large result.
    """

    def __init__(
        self, viewer: ViewerModel, request: DenoiseRequest, source: Image, amount: float
    ) -> None:
        self.request, self.source, self.amount = request, source, amount
        self.result: Result | None = None
        """The result; while the run is not finished, of large images only."""
        self._viewer, self._refresh_after = viewer, 0.0
        if request.is_large:
            self._target = empty_target(request, preferences().folder)
            self.result = self._added(request, self._target)
        else:
            dtype = np.dtype(request.data.dtype).newbyteorder("=")
            self._target = np.empty(request.axes.shape, dtype)

    def _added(self, request: DenoiseRequest, pixels: Any) -> Result:
        """Add the layer; napari selects it, and it stays so unless the user is elsewhere."""
        layers, source = self._viewer.layers, self.source
        selected = set(layers.selection)
        family = [source]
        for result in results.within(self._viewer):
            if result.source is unwrapped(source):
                family.append(result.layer)
        result = Result.added(self._viewer, request, pixels, source)
        if any(layer not in family for layer in selected):
            layers.selection = selected
        return result

    def steps(self) -> Iterator[Progress | Finished]:
        """Denoise; runs in a thread."""
        from dn_core import denoise_steps, engine_name
        from dn_core.files.zarr_chunks import ZarrSource
        from dn_core.models.registry import resolve

        request, options = self.request, self.request.all_options()
        model, device = options["model"], options["device"]
        engine = engine_name(model, device=device, dtype=request.data.dtype)
        sha256 = hashlib.sha256(resolve(model).read_bytes()).hexdigest()
        source: Any
        if is_zarr(request.data):
            source = ZarrSource(request.data)
            missing = source.count.in_words
        else:
            source, missing = readable(request.data), request.missing_message()
        began = time.monotonic()
        for step in denoise_steps(source, out=self._target, **options):
            if step.result is None:
                yield step
            else:
                seconds = time.monotonic() - began
                yield Finished(step.result, engine, sha256, seconds, missing, step.notes)

    def refresh(self) -> None:
        """Draw what is there of a large result, not too often."""
        began = time.monotonic()
        if self.result is not None and began > self._refresh_after:
            self.result.layer.refresh()
            now = time.monotonic()
            self._refresh_after = now + max(REFRESH_SECONDS, REFRESH_SHARE * (now - began))

    def finish(self, facts: Finished) -> Result:
        """Add the layer, if it is not there, and note in it how it was made."""
        if self.result is None:
            source = self.source if self.source in self._viewer.layers else None
            self.result = self._added(self.request.updated(source), facts.result)
        result = self.result
        result.finished = True
        result.layer.refresh()
        request = result.request
        megapixels = math.prod(request.axes.shape) / 1e6
        rate = megapixels / max(facts.seconds, 1e-9)
        sentences = [
            f"{request.options['model']} on {facts.engine}: {facts.seconds:.2g} s, "
            f"{rate:.3g} megapixels per second.",
            f"{facts.missing}." if facts.missing else "",
            *facts.notes,
            self._changes(result),
        ]
        result.summary = " ".join(filter(None, sentences))
        options = {key: value for key, value in request.options.items() if value is not None}
        result.note(
            **options,
            model_sha256=facts.sha256,
            axes=request.axes.letters,
            engine=facts.engine,
        )
        model_list.note_run(facts.sha256, megapixels, rate, facts.engine)
        return result

    def _changes(self, result: Result) -> str:
        """What has happened to the layer since the run began."""
        name = result.request.name
        if result.source is None or result.source not in self._viewer.layers:
            return f"The layer {name} is gone; this is its result."
        if not result.request.is_of(result.source):
            return f"The layer {name} has changed since; this is the result of the earlier pixels."
        return ""

    def drop(self, *, alive: bool) -> None:
        """Remove an unfinished result with its layer.

        Parameters
        ----------
        alive : bool
            Whether the window still exists.
        """
        result, self.result = self.result, None
        if result is None or result.finished:
            return
        with contextlib.suppress(ReferenceError):  # the user has removed the layer
            layer = result.layer
            results.forget(result)
            if alive and layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        discard(result.denoised)

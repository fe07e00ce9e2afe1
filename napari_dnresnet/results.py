"""Results: denoised layers whose amount can be changed, and the list of all of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_dnresnet.background import BackgroundTask
from napari_dnresnet.layers import readable, unwrapped
from napari_dnresnet.request import DenoiseRequest
from napari_dnresnet.visibility import LayerGroup

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["METADATA", "Result", "results"]

METADATA = "dnresnet"
"""The key in a result layer's metadata with its settings.

``result`` and ``source`` there are the `unique_id` of the layer and of its source.
"""


@dataclass(eq=False)
class Result:
    """A denoised layer, with all that its amount needs: the original and the denoised pixels.

    It exists as long as its layer, even if the dock that made it is closed: see `results`.

    Attributes
    ----------
    request : DenoiseRequest
        What was denoised.
    denoised : array
        The denoised pixels (amount 1): a numpy array, or a zarr array on disk.
    amount : float, default 1.0
        The amount of the layer's pixels, 0 to 1.
    finished : bool, default False
        False while `denoised` is being written.
    summary : str, default ""
        How it was made, in a sentence.
    """

    request: DenoiseRequest
    denoised: Any
    _layer: weakref.ref[Image]
    _source: weakref.ref[Image] | None = None
    amount: float = 1.0
    finished: bool = False
    summary: str = ""
    _task: BackgroundTask | None = field(default=None, repr=False)
    _blended: NDArray[Any] | None = field(default=None, repr=False)
    """The layer's pixels for amounts below 1, in memory."""
    _lazy: Any = field(default=None, repr=False)
    """The original as a dask array."""
    _generation: int = 0
    """Rises with each change of the amount: threads of earlier ones write no more."""
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def added(
        cls, viewer: ViewerModel, request: DenoiseRequest, denoised: Any, source: Image | None
    ) -> Result:
        """Add the layer of a result right above its source, which it hides if it is see-through.

        Parameters
        ----------
        viewer : ViewerModel
            The viewer.
        request : DenoiseRequest
            What was denoised.
        denoised : array
            The denoised pixels, or the array that they are written to.
        source : Image or None
            The layer that was denoised, if it exists.
        """
        from napari.layers import Image

        settings = {
            **request.settings,
            "name": f"{request.name} denoised",
            "visible": True,
            "metadata": {**request.settings["metadata"], METADATA: {}},
        }
        layer = Image(denoised, **settings)
        if not layer.rgb:
            layer.contrast_limits_range = request.limits_range
        if source is None or source not in viewer.layers:
            result = cls(request, denoised, weakref.ref(layer))
            results.add(layer, result)
            viewer.layers.append(layer)
            return result
        result = cls(request, denoised, weakref.ref(layer), weakref.ref(unwrapped(source)))
        results.add(layer, result)
        group = LayerGroup.of(viewer, source)
        viewer.layers.insert(group.index_above(source), layer)
        if request.is_of(source):
            group.add(layer)
        return result

    @property
    def layer(self) -> Image:
        """The layer that shows it."""
        layer = self._layer()
        if layer is None:
            raise ReferenceError(f"The layer of a result of {self.request.name!r} is gone.")
        return layer

    @property
    def source(self) -> Image | None:
        """The layer that was denoised, while it exists."""
        return None if self._source is None else self._source()

    @property
    def busy(self) -> bool:
        """Whether a new amount is being computed."""
        return self._task is not None and self._task.running

    @property
    def stack_shape(self) -> tuple[int, ...]:
        """Lengths of the axes before rows and columns: one plane for each index."""
        axes = self.request.axes
        return axes.shape[: axes.spatial[0]]

    def note(self, **facts: Any) -> None:
        """Add facts to the layer's metadata."""
        self.layer.metadata[METADATA] = {**self.layer.metadata.get(METADATA, {}), **facts}
        results.changed.emit()

    def as_code(self, kind: str, viewer: ViewerModel) -> str:
        """Code that makes the result.

        Parameters
        ----------
        kind : str
            ``"python"``, or ``"command"`` for a shell command.
        viewer : ViewerModel
            The viewer; Python code takes the source from it by its current name.
        """
        if kind == "command":
            return self.request.as_command(self.amount)
        source = self.source if self.source in viewer.layers else None
        if source is None:
            note = f"the layer {self.request.name!r} is gone: open it again first"
            return self.request.as_python(self.amount, note)
        note = ""
        if not self.request.is_of(source):
            note = f"the layer {source.name!r} has changed since: open the image again first"
        return replace(self.request, name=source.name).as_python(self.amount, note)

    def copied(self, layer: Image) -> Result | None:
        """A result for a copy of the layer; None if the copy's pixels have changed since."""
        amount = layer.metadata[METADATA].get("amount")
        if not isinstance(amount, (int, float)) or not self._has_pixels(amount, layer.data):
            return None
        return Result(
            self.request,
            self.denoised,
            weakref.ref(layer),
            self._source,
            amount,
            finished=True,
            summary=self.summary,
        )

    def _has_pixels(self, amount: float, pixels: Any) -> bool:
        """Whether pixels are this result with an amount, by its first, middle and last plane."""
        from dn_core import blend

        if tuple(pixels.shape) != self.request.axes.shape or pixels.dtype != self.denoised.dtype:
            return False
        first = tuple(0 for _ in self.stack_shape)
        middle = tuple(extent // 2 for extent in self.stack_shape)
        last = tuple(extent - 1 for extent in self.stack_shape)
        source = readable(self.request.data)
        for plane in {first, middle, last}:
            expected = blend(np.asarray(source[plane]), np.asarray(self.denoised[plane]), amount)
            if not np.array_equal(
                np.asarray(pixels[plane]), expected, equal_nan=expected.dtype.kind == "f"
            ):
                return False
        return True

    def set_amount(self, amount: float, first: tuple[int, ...] = ()) -> None:
        """Blend the original and the denoised pixels again.

        In memory one plane at a time, on disk when the layer is drawn.

        Parameters
        ----------
        amount : float
            0 to 1.
        first : tuple of int, optional
            Index of the plane to begin with.
        """
        self.amount = amount
        self.note(amount=amount)
        self.close()
        if not isinstance(self.denoised, np.ndarray):
            self.layer.data = self.denoised if amount == 1 else self._blended_lazily(amount)
            return
        if amount == 1:
            self._blended = None
            self.layer.data = self.denoised
            return
        target = self._blended = (
            np.empty_like(self.denoised) if self._blended is None else self._blended
        )
        generation = self._generation
        self._task = BackgroundTask(
            lambda: self._blend(target, amount, first, generation),
            step=self._show,
            done=lambda: self._show(True),
            failed=self._fail,
        )

    def close(self) -> None:
        """Stop computing an amount; nothing is written from now on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        with self._writing:
            self._generation += 1

    def _blend(
        self, target: NDArray[Any], amount: float, first: tuple[int, ...], generation: int
    ) -> Iterator[bool]:
        """Write the blend one plane at a time, unless there is a newer one; true after `first`."""
        from dn_core import blend

        source = readable(self.request.data)
        planes = list(product(*(range(extent) for extent in self.stack_shape)))
        if first in planes:
            planes.remove(first)
            planes.insert(0, first)
        for number, plane in enumerate(planes):
            pixels = blend(np.asarray(source[plane]), self.denoised[plane], amount)
            with self._writing:
                if generation != self._generation:
                    return
                target[plane] = pixels
            yield number == 0

    def _show(self, now: bool) -> None:
        """Show the blend; the first time only when all planes are there."""
        if self._blended is None or self._layer() is None:
            return
        if now and self.layer.data is self._blended:
            self.layer.refresh()
        elif self._task is not None and not self._task.running:
            self.layer.data = self._blended

    def _fail(self, error: Exception) -> None:
        from napari.utils.notifications import show_error

        from dn_core.errors import error_message

        show_error(error_message(error))

    def _blended_lazily(self, amount: float) -> Any:
        import dask.array as da

        from dn_core import blend

        denoised = da.from_zarr(self.denoised)
        source = self._lazy_source(denoised.chunks)
        return da.map_blocks(blend, source, denoised, amount=amount, dtype=denoised.dtype)

    def _lazy_source(self, chunks: Any) -> Any:
        """The original as a dask array, made once.

        Without a name: dask would make one from the content, which would mean to read all of it.
        """
        import dask.array as da

        if self._lazy is None:
            source = self.request.data
            if not isinstance(source, da.Array):
                source = da.from_array(source, chunks=chunks, name=False)
            self._lazy = source.rechunk(chunks)
        return self._lazy


class _Results:
    """All results whose layers exist, for all docks; a copy of a result's layer is one too.

    A layer that was saved and opened again is not a result, whatever its metadata say: the original
    and the denoised pixels are gone.
    """

    changed = Signal()
    """A result was added or changed."""

    def __init__(self) -> None:
        self._by_layer: weakref.WeakKeyDictionary[Image, Result] = weakref.WeakKeyDictionary()
        self._no_copies: weakref.WeakSet[Image] = weakref.WeakSet()
        """Layers whose metadata name a result, but whose pixels have changed since."""

    def add(self, layer: Image, result: Result) -> None:
        """Keep a result as long as its layer."""
        self._by_layer[layer] = result
        source = result.source
        result.note(
            result=str(layer.unique_id),
            source=None if source is None else str(source.unique_id),
            amount=result.amount,
        )

    def forget(self, result: Result) -> None:
        """Drop a result that was not finished."""
        self._by_layer.pop(result.layer, None)
        self.changed.emit()

    def of(self, layer: Any) -> Result | None:
        """The result that a layer shows; None for other layers."""
        layer = unwrapped(layer)
        if layer is None:
            return None
        return self._by_layer.get(layer) or self._of_copy(layer)

    def within(self, viewer: ViewerModel) -> list[Result]:
        """The results in a viewer, the latest last."""
        layers = {unwrapped(layer) for layer in viewer.layers}
        for layer in layers:
            self.of(layer)
        return [result for layer, result in self._by_layer.items() if layer in layers]

    def latest(self, viewer: ViewerModel, layer: Image | None) -> Result | None:
        """The latest result in a viewer that a layer shows, or is the source of."""
        layer = unwrapped(layer)
        if layer is None:
            return None
        for result in reversed(self.within(viewer)):
            if layer in (result.layer, result.source):
                return result
        return None

    def _of_copy(self, layer: Image) -> Result | None:
        """The result of a copied layer, whose metadata name the layer that it was copied from."""
        facts = layer.metadata.get(METADATA)
        if not isinstance(facts, dict) or layer.source.parent is None or layer in self._no_copies:
            return None
        original = next(
            (
                result
                for other, result in self._by_layer.items()
                if str(other.unique_id) == facts.get("result")
            ),
            None,
        )
        if original is None or not original.finished:
            return None
        result = original.copied(layer)
        if result is None:
            self._no_copies.add(layer)
            return None
        self.add(layer, result)
        if group := LayerGroup.known(original.layer):
            group.add(layer, hide=False)
        return result


results = _Results()

"""A denoised layer: where its pixels go, its amount afterwards, comparison with the original, and the code that makes it again."""

from __future__ import annotations

import hashlib
import math
import shlex
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_dnresnet.jobs import Job, sentence
from napari_dnresnet.layers import Axes, bare, highest_level, layer_settings, readable
from napari_dnresnet.stand_ins import StandIns

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["METADATA", "Plan", "Result", "discard", "empty_target", "is_residual", "model_hash", "residual_settings", "results"]

METADATA = "dnresnet"
"""Where a result layer's metadata has its settings, and by which `unique_id` napari knows the layer and its source."""
LARGE_BYTES = 2**29
"""Results above this, or above a quarter of the free memory, go to a zarr array on disk."""
SMALL_BYTES = 2**25
"""Residuals of results below this are computed at once."""
CHUNK_SIDE = 1024


@dataclass(frozen=True)
class Plan:
    """A denoising that was asked for: all that is needed is taken from the layer, which may then change or go.

    `options` are those of `dn_core.denoise_steps` but for the axes and the amount.
    """

    data: Any
    axes: Axes
    options: dict[str, Any]
    name: str
    settings: dict[str, Any]
    limits_range: tuple[float, float]
    path: str | None
    multiscale: bool = False

    @classmethod
    def of(cls, layer: Image, axes: Axes, options: dict[str, Any]) -> Plan:
        """What is to be done with a layer."""
        data = highest_level(layer)
        limits = tuple(layer.contrast_limits_range)
        return cls(data, axes, options, layer.name, layer_settings(layer), limits, layer.source.path, layer.multiscale)

    def is_of(self, layer: Image | None) -> bool:
        """Whether a layer has the pixels that were to be denoised."""
        return layer is not None and highest_level(layer) is self.data

    def renewed(self, layer: Image | None) -> Plan:
        """With the name and the looks that the layer has now, if it is the same image."""
        return Plan.of(layer, self.axes, self.options) if layer is not None and self.is_of(layer) else self

    @property
    def nbytes(self) -> int:
        """Of the result."""
        return math.prod(self.axes.shape) * int(np.dtype(self.data.dtype).itemsize)

    @property
    def is_large(self) -> bool:
        """Whether the result goes to disk."""
        from dn_core.memory import available_memory

        return self.nbytes > LARGE_BYTES or 4 * self.nbytes > available_memory()

    def all_options(self) -> dict[str, Any]:
        """With the axes, for `dn_core.denoise_steps`."""
        return {**self.options, "channel_axis": self.axes.channel_axis, "alpha": self.axes.alpha}

    def as_python(self, amount: float, note: str = "") -> str:
        """Python code that gives the result's pixels, after a line that says what is to be done before."""
        image = f"viewer.layers[{self.name!r}].data{'[0]' if self.multiscale else ''}"
        shown = {key: value for key, value in self.options.items() if value is not None and (key, value) != ("nonfinite", "raise")}
        if self.axes.must_be_said:
            shown["channel_axis"] = self.axes.channel_axis
        if self.axes.alpha:
            shown["alpha"] = True
        if amount != 1:
            shown["amount"] = amount
        arguments = "".join(f", {key}={value!r}" for key, value in shown.items())
        first = f"# {note}\n" if note else ""
        return f"{first}import dn_core\n\nimage = {image}\nclean = dn_core.denoise(image{arguments})\n"

    def as_command(self, amount: float) -> str:
        """A shell command that makes the result from the layer's file; with a first line that says so where the layer is not a file."""
        path = self._file()
        source = path or f"{self.name}.tif"
        target = Path(source).with_name(f"{Path(source).name.split('.')[0]} denoised.tif")
        words = ["dn-resnet", "denoise", source, "-o", str(target)]
        for option, value in {**self.options, "amount": None if amount == 1 else amount}.items():
            if value is not None and (option, value) != ("nonfinite", "raise"):
                words += [f"--{option}", str(value)]
        if self.axes.must_be_said and "S" not in self.axes.letters:
            words += ["--channel-axis", str(self.axes.channel_axis).lower()]
        note = "" if path else f"# save the layer as {shlex.quote(source)} first\n"
        return f"{note}{shlex.join(words)}\n"

    def missing(self) -> str:
        """What the layer's file lacks and is a fill value among its pixels, in words; dask and napari do not say so."""
        from dn_core import files

        if (path := self._file()) is None:
            return ""
        with files.open_image(path) as image:
            return image.missing

    def _file(self) -> str | None:
        """The layer's file, where the command would read the same pixels from it."""
        from dn_core import files

        if self.path is None:
            return None
        try:
            with files.open_image(self.path) as image:
                return self.path if tuple(image.shape) == self.axes.shape and image.source.dtype == self.data.dtype else None
        except (ValueError, OSError, ImportError):
            return None


def empty_target(plan: Plan, folder: str = "") -> Any:
    """Where a large result is written: a zarr array in a temporary folder, which is deleted when no array uses it any more.

    What a napari that was killed left there is cleared first.

    Raises
    ------
    OSError
        When the folder is not there, or the disk has not enough room.
    """
    import zarr

    from dn_core.safe_write import clear_leftovers, free_bytes, named_by_process

    place = Path(folder) if folder else Path(tempfile.gettempdir())
    if not place.is_dir():
        raise FileNotFoundError(
            2, "the folder for large results is not there; make it, or name another in the plugin's preferences", str(place)
        )
    clear_leftovers(place, "dnresnet", aged=False)  # a result is looked at for days
    free = free_bytes(place)
    if plan.nbytes > free:
        raise OSError(
            28,
            f"the result needs {plan.nbytes / 1e9:.1f} GB, {free / 1e9:.1f} are free there; make room, or choose another folder in the "
            "plugin's preferences",
            str(place),
        )
    own = named_by_process(place, "dnresnet", "zarr")
    own.mkdir(0o700)
    chunks = [1] * len(plan.axes.shape)
    for axis in plan.axes.spatial:
        chunks[axis] = min(plan.axes.shape[axis], CHUNK_SIDE)
    if "S" in plan.axes.letters:
        chunks[-1] = plan.axes.shape[-1]
    dtype = np.dtype(plan.data.dtype).newbyteorder("=")
    return zarr.create_array(_temporary_store(own), shape=plan.axes.shape, dtype=dtype, chunks=tuple(chunks))


def discard(array: Any) -> None:
    """Delete the files of an array by `empty_target` that nobody will look at."""
    if not isinstance(array, np.ndarray):
        shutil.rmtree(Path(array.store.root).parent, ignore_errors=True)


def _temporary_store(folder: Path) -> Any:
    """A store whose folder goes with it. Copies of a layer share it: a copy of its array is another array on the same files."""
    from zarr.storage import LocalStore

    class TemporaryStore(LocalStore):
        def __deepcopy__(self, memo: Any) -> Any:
            return self

    store = TemporaryStore(folder / "denoised.zarr")
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store


@dataclass(eq=False)
class Result:
    """A denoised layer, with all that its amount needs: the original and the whole result.

    It lasts as long as its layer, whatever becomes of the dock that made it: see `results`.

    Attributes
    ----------
    finished
        False while `whole` is being written.
    summary
        How it was made, in a sentence.
    """

    plan: Plan
    whole: Any
    _layer: weakref.ref[Image]
    _source: weakref.ref[Image] | None = None
    amount: float = 1.0
    finished: bool = False
    summary: str = ""
    _job: Job | None = field(default=None, repr=False)
    _own: NDArray[Any] | None = field(default=None, repr=False)
    _lazy: Any = field(default=None, repr=False)
    _turn: int = 0
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def added(cls, viewer: ViewerModel, plan: Plan, whole: Any, source: Image | None) -> Result:
        """Add the layer with the whole result, right above its source, which it stands in for."""
        from napari.layers import Image

        settings = {**plan.settings, "name": f"{plan.name} denoised", "visible": True}
        layer = Image(whole, **{**settings, "metadata": {**plan.settings["metadata"], METADATA: {}}})
        if not layer.rgb:
            layer.contrast_limits_range = plan.limits_range
        stand_ins = StandIns.of(viewer, source) if source is not None and source in viewer.layers else None
        result = cls(plan, whole, weakref.ref(layer), None if stand_ins is None else weakref.ref(bare(source)))
        results.add(layer, result)
        viewer.layers.insert(len(viewer.layers) if stand_ins is None else stand_ins.above(source), layer)
        if stand_ins is not None and plan.is_of(source):
            stand_ins.add(layer)
        return result

    @property
    def layer(self) -> Image:
        """Where it is shown."""
        layer = self._layer()
        if layer is None:
            raise ReferenceError(f"the layer of a result of {self.plan.name!r} is gone")
        return layer

    @property
    def source(self) -> Image | None:
        """The layer that was denoised, while it is there."""
        return None if self._source is None else self._source()

    @property
    def busy(self) -> bool:
        """Whether an amount is still on its way into the pixels."""
        return self._job is not None and self._job.running

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are a numpy array."""
        return isinstance(self.whole, np.ndarray)

    def note(self, **facts: Any) -> None:
        """Keep facts in the layer's metadata."""
        self.layer.metadata[METADATA] = {**self.layer.metadata.get(METADATA, {}), **facts}
        results.changed.emit()

    def as_code(self, kind: str, viewer: ViewerModel) -> str:
        """The result as Python code or as a command."""
        source = self.source if self.source in viewer.layers else None
        if kind == "command":
            return self.plan.as_command(self.amount)
        note = ""
        if source is None:
            note = f"the layer {self.plan.name!r} is gone: open it again first"
        elif not self.plan.is_of(source):
            note = f"the layer {source.name!r} has other pixels now: open the image again first"
        return replace(self.plan, name=self.plan.name if source is None else source.name).as_python(self.amount, note)

    def copied(self, layer: Image) -> Result | None:
        """The result of a copy of the layer, for an amount of its own; None where the copy's pixels are others by now."""
        amount = layer.metadata[METADATA].get("amount")
        if not isinstance(amount, (int, float)) or not self._is_made_with(amount, layer.data):
            return None
        return Result(self.plan, self.whole, weakref.ref(layer), self._source, amount, finished=True, summary=self.summary)

    def _is_made_with(self, amount: float, pixels: Any) -> bool:
        """Whether pixels are this result with an amount, by the first plane, the middle one and the last."""
        from dn_core.inference.planes import blend

        if tuple(pixels.shape) != self.plan.axes.shape or pixels.dtype != self.whole.dtype:
            return False
        before = self.plan.axes.shape[: self.plan.axes.spatial[0]]
        for plane in {tuple(0 for _ in before), tuple(extent // 2 for extent in before), tuple(extent - 1 for extent in before)}:
            expected = blend(np.asarray(readable(self.plan.data)[plane]), np.asarray(self.whole[plane]), amount)
            if not np.array_equal(np.asarray(pixels[plane]), expected, equal_nan=expected.dtype.kind == "f"):
                return False
        return True

    def set_amount(self, amount: float, first: tuple[int, ...] = ()) -> None:
        """Blend original and result anew: in memory plane by plane, beginning with plane `first`; on disk when it is looked at."""
        self.amount = amount
        self.note(amount=amount)
        self.close()
        if not self.in_memory:
            self.layer.data = self.whole if amount == 1 else self._blended_lazily(amount)
        elif amount == 1:
            self._own = None
            self.layer.data = self.whole
        else:
            if self._own is None:
                self._own = np.empty_like(self.whole)
            own, turn = self._own, self._turn
            self._job = Job(
                lambda: self._blend(own, amount, first, turn), step=self._show, done=lambda: self._show(True), failed=self._fail
            )

    def close(self) -> None:
        """Stop what is on its way; from now on it writes nothing."""
        if self._job is not None:
            self._job.cancel()
            self._job = None
        with self._writing:
            self._turn += 1

    def _blend(self, target: NDArray[Any], amount: float, first: tuple[int, ...], turn: int) -> Iterator[bool]:
        """Write the blend plane by plane, unless it is another's turn; true after the first."""
        from dn_core.inference.planes import blend

        source, others = readable(self.plan.data), [range(extent) for extent in target.shape[: self.plan.axes.spatial[0]]]
        planes = list(product(*others))
        if first in planes:
            planes.remove(first)
            planes.insert(0, first)
        for number, plane in enumerate(planes):
            pixels = blend(np.asarray(source[plane]), self.whole[plane], amount)
            with self._writing:
                if turn != self._turn:
                    return
                target[plane] = pixels
            yield number == 0

    def _show(self, now: bool) -> None:
        """Show the pixels; the first time only when all planes are there."""
        if self._own is None or self._layer() is None:
            return
        if now and self.layer.data is self._own:
            self.layer.refresh()
        elif self._job is not None and not self._job.running:
            self.layer.data = self._own

    def _fail(self, error: Exception) -> None:
        from napari.utils.notifications import show_error

        show_error(sentence(error))

    def _blended_lazily(self, amount: float) -> Any:
        import dask.array as da

        from dn_core.inference.planes import blend

        whole = da.from_zarr(self.whole)
        return da.map_blocks(blend, self._lazy_source(whole.chunks), whole, amount=amount, dtype=whole.dtype)

    def _lazy_source(self, chunks: Any) -> Any:
        """The original as a dask array, made once: no name is made from its content, which would mean to read it."""
        import dask.array as da

        if self._lazy is None:
            source = self.plan.data
            self._lazy = (source if isinstance(source, da.Array) else da.from_array(source, chunks=chunks, name=False)).rechunk(chunks)
        return self._lazy

    def residual(self) -> Any:
        """What was taken away, original minus result, as float32, of colours their mean; lazy where it is large."""
        import dask.array as da

        pixels = self.layer.data
        planes = tuple(1 for _ in self.plan.axes.shape[: self.plan.axes.spatial[0]])
        chunks = getattr(pixels, "chunks", (*planes, *self.plan.axes.shape[len(planes) :]))
        right = pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=chunks, name=False)
        left = (
            self.plan.data
            if isinstance(self.plan.data, da.Array)
            else da.from_array(readable(self.plan.data), chunks=right.chunks, name=False)
        )
        narrow = right.dtype.itemsize <= 2 or right.dtype == np.float32
        wide = np.float32 if narrow else np.float64
        difference = (left.rechunk(right.chunks).astype(wide) - right.astype(wide)).astype(np.float32)
        difference = difference[..., :3].mean(axis=-1) if self.layer.rgb else difference
        return np.asarray(difference) if self.plan.nbytes < SMALL_BYTES else difference


def residual_settings(result: Result, residual: Any) -> dict[str, Any]:
    """Settings of a residual's layer: the place of the result's, grey around zero, limits of three times its spread in the middle plane."""
    settings = {key: value for key, value in layer_settings(result.layer).items() if key not in ("contrast_limits", "colormap", "gamma")}
    middle = tuple(extent // 2 for extent in residual.shape[: result.plan.axes.spatial[0]])
    plane = np.asarray(residual[middle], np.float32)
    spread = float(np.std(plane[np.isfinite(plane)])) if np.isfinite(plane).any() else 0.0
    limit = 3 * spread or 1.0
    facts = {key: value for key, value in result.layer.metadata[METADATA].items() if key not in ("result", "amount")}
    return {
        **settings,
        "metadata": {**settings["metadata"], METADATA: {**facts, "residual_of": result.layer.name}},
        "name": f"{result.plan.name} residual",
        "contrast_limits": (-limit, limit),
        "colormap": "gray",
        "rgb": False,
        "blending": "translucent",
        "visible": True,
    }


def is_residual(layer: Any) -> bool:
    """Whether a layer is what was taken away, which nobody wants to denoise."""
    facts = layer.metadata.get(METADATA)
    return isinstance(facts, dict) and "residual_of" in facts


class _Results:
    """All results whose layers are there, for whichever dock asks; a copy of a result's layer is a result too.

    A layer that was saved and opened again is none, whatever its metadata say: the original and the whole result are not there any more.
    """

    changed = Signal()
    """There is another one, or one is another than before."""

    def __init__(self) -> None:
        self._by_layer: weakref.WeakKeyDictionary[Image, Result] = weakref.WeakKeyDictionary()
        self._strangers: weakref.WeakSet[Image] = weakref.WeakSet()

    def add(self, layer: Image, result: Result) -> None:
        """Keep a result as long as its layer."""
        self._by_layer[layer] = result
        source = result.source
        result.note(result=str(layer.unique_id), source=None if source is None else str(source.unique_id), amount=result.amount)

    def forget(self, result: Result) -> None:
        """A result that was not finished."""
        self._by_layer.pop(result.layer, None)
        self.changed.emit()

    def of(self, layer: Any) -> Result | None:
        """The result that a layer shows; None for other layers."""
        layer = bare(layer)
        if layer is None:
            return None
        return self._by_layer.get(layer) or self._of_copy(layer)

    def within(self, viewer: ViewerModel) -> list[Result]:
        """Those in a viewer, the latest last."""
        layers = {bare(layer) for layer in viewer.layers}
        for layer in layers:
            self.of(layer)
        return [result for layer, result in self._by_layer.items() if layer in layers]

    def _of_copy(self, layer: Image) -> Result | None:
        """The metadata of a copy name the layer that it was copied from."""
        facts = layer.metadata.get(METADATA)
        if not isinstance(facts, dict) or layer.source.parent is None or layer in self._strangers:
            return None
        original = next((result for other, result in self._by_layer.items() if str(other.unique_id) == facts.get("result")), None)
        if original is None or not original.finished:
            return None
        result = original.copied(layer)
        if result is None:
            self._strangers.add(layer)
            return None
        self.add(layer, result)
        if stand_ins := StandIns.known(original.layer):
            stand_ins.add(layer, hide=False)
        return result


results = _Results()


def model_hash(path: Path) -> str:
    """Sha256 of a model's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

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
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_dnresnet.jobs import Job, sentence
from napari_dnresnet.layers import Axes, highest_level, layer_settings, readable

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["METADATA", "Plan", "Result", "discard", "empty_target", "model_hash", "residual_settings"]

METADATA = "dnresnet"
"""Where a result layer's metadata has its settings."""
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

    def as_python(self, amount: float) -> str:
        """Python code that gives the result's pixels."""
        image = f"viewer.layers[{self.name!r}].data{'[0]' if self.multiscale else ''}"
        shown = {key: value for key, value in self.options.items() if value is not None and (key, value) != ("nonfinite", "raise")}
        if self.axes.must_be_said:
            shown["channel_axis"] = self.axes.channel_axis
        if self.axes.alpha:
            shown["alpha"] = True
        if amount != 1:
            shown["amount"] = amount
        arguments = "".join(f", {key}={value!r}" for key, value in shown.items())
        return f"import dn_core\n\nimage = {image}\nclean = dn_core.denoise(image{arguments})\n"

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

    `finished` is false while `whole` is being written.
    """

    plan: Plan
    whole: Any
    layer: Image
    source: Image | None = None
    amount: float = 1.0
    finished: bool = False
    _job: Job | None = field(default=None, repr=False)
    _own: NDArray[Any] | None = field(default=None, repr=False)
    _lazy: Any = field(default=None, repr=False)
    _turn: int = 0
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def added(cls, viewer: ViewerModel, plan: Plan, whole: Any, source: Image | None) -> Result:
        """Add the layer with the whole result."""
        metadata = {**plan.settings["metadata"], METADATA: {}}
        settings = {**plan.settings, "name": f"{plan.name} denoised", "visible": True, "metadata": metadata}
        result = cls(plan, whole, viewer.add_image(whole, **settings), source)
        if not result.layer.rgb:
            result.layer.contrast_limits_range = plan.limits_range
        result.note(amount=1.0)
        return result

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
        if self._own is None:
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
    return {
        **settings,
        "name": f"{result.plan.name} residual",
        "contrast_limits": (-limit, limit),
        "colormap": "gray",
        "rgb": False,
        "blending": "translucent",
        "visible": True,
    }


def model_hash(path: Path) -> str:
    """Sha256 of a model's file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

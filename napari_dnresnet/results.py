"""A denoised layer: where its pixels go, its amount afterwards, comparison with the original, and the code that makes it again."""

from __future__ import annotations

import hashlib
import math
import shlex
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_dnresnet.jobs import Job
from napari_dnresnet.layers import Axes, highest_level, layer_settings, readable

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

__all__ = ["METADATA", "Plan", "Result", "empty_target", "model_hash", "residual_settings"]

METADATA = "dnresnet"
"""Where a result layer's metadata has its settings."""
LARGE_BYTES = 2**29
"""Results above this, or above a quarter of the free memory, go to a zarr array on disk."""
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

        free = available_memory()
        return self.nbytes > LARGE_BYTES or (free is not None and 4 * self.nbytes > free)

    def all_options(self) -> dict[str, Any]:
        """With the axes, for `dn_core.denoise_steps`."""
        return {**self.options, "channel_axis": self.axes.channel_axis, "alpha": self.axes.alpha}

    def as_python(self, amount: float) -> str:
        """Python code that gives the result's pixels."""
        image = f"viewer.layers[{self.name!r}].data{'[0]' if self.multiscale else ''}"
        shown = {key: value for key, value in self.options.items() if value is not None and (key, value) != ("nonfinite", "raise")}
        if self.axes.channel_axis is not None:
            shown["channel_axis"] = self.axes.channel_axis
        if amount != 1:
            shown["amount"] = amount
        arguments = "".join(f", {key}={value!r}" for key, value in shown.items())
        return f"import dn_core\n\nimage = {image}\nclean = dn_core.denoise(image{arguments})\n"

    def as_command(self, amount: float) -> str:
        """A shell command that makes the result from the layer's file; with a first line that says so where the layer has none."""
        source = self.path or f"{self.name}.tif"
        target = Path(source).with_name(f"{Path(source).name.split('.')[0]} denoised.tif")
        words = ["dn-resnet", "denoise", source, "-o", str(target)]
        for option, value in {**self.options, "amount": None if amount == 1 else amount}.items():
            if value is not None and (option, value) != ("nonfinite", "raise"):
                words += [f"--{option}", str(value)]
        if self.axes.channel_axis is not None and "S" not in self.axes.letters:
            words += ["--channel-axis", str(self.axes.channel_axis)]
        note = "" if self.path else f"# save the layer as {shlex.quote(source)} first\n"
        return f"{note}{shlex.join(words)}\n"


def empty_target(plan: Plan, folder: str = "") -> Any:
    """Where a large result is written: a zarr array in a temporary folder, which is deleted when the array is no longer used.

    Raises
    ------
    OSError
        When the disk has not enough room.
    """
    import zarr

    place = Path(folder) if folder else Path(tempfile.gettempdir())
    free = shutil.disk_usage(place).free
    if plan.nbytes > free:
        raise OSError(
            28,
            f"the result needs {plan.nbytes / 1e9:.1f} GB, {free / 1e9:.1f} are free there; make room, or choose another folder in the "
            "plugin's preferences",
            str(place),
        )
    own = tempfile.mkdtemp(prefix="dnresnet-", dir=place)
    chunks = [1] * len(plan.axes.shape)
    for axis in plan.axes.spatial:
        chunks[axis] = min(plan.axes.shape[axis], CHUNK_SIDE)
    if "S" in plan.axes.letters:
        chunks[-1] = plan.axes.shape[-1]
    array = zarr.create_array(
        Path(own) / "denoised.zarr", shape=plan.axes.shape, dtype=np.dtype(plan.data.dtype).newbyteorder("="), chunks=tuple(chunks)
    )
    weakref.finalize(array, shutil.rmtree, own, ignore_errors=True)
    return array


@dataclass
class Result:
    """A denoised layer, with all that its amount needs: the original and the whole result."""

    plan: Plan
    whole: Any
    layer: Image
    amount: float = 1.0
    engine: str = ""
    _job: Job | None = field(default=None, repr=False)

    @classmethod
    def added(cls, viewer: ViewerModel, plan: Plan, whole: Any, amount: float) -> Result:
        """Add the layer; its pixels are those of `amount`, once `whole` is."""
        metadata = {**plan.settings["metadata"], METADATA: {}}
        settings = {**plan.settings, "name": f"{plan.name} denoised", "visible": True, "metadata": metadata}
        result = cls(plan, whole, viewer.add_image(whole, **settings))
        if not result.layer.rgb:
            result.layer.contrast_limits_range = plan.limits_range
        result.note(amount=1.0)
        if amount != 1:
            result.set_amount(amount)
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
        if self._job is not None:
            self._job.cancel()
            self._job = None
        if not self.in_memory:
            self.layer.data = self.whole if amount == 1 else self._blended_lazily(amount)
            return
        if self.layer.data is self.whole:
            if amount == 1:
                return
            self.layer.data = self.whole.copy()
        target = self.layer.data
        self._job = Job(lambda: self._blend(target, amount, first), step=self._refresh, failed=self._raise)

    def close(self) -> None:
        """Stop what is on its way."""
        if self._job is not None:
            self._job.cancel()

    def _blend(self, target: NDArray[Any], amount: float, first: tuple[int, ...]) -> Iterator[bool]:
        """Write the blend plane by plane; true after the first and the last, when there is something to show."""
        from dn_core.inference.planes import blend

        source, others = readable(self.plan.data), [range(extent) for extent in target.shape[: self.plan.axes.spatial[0]]]
        planes = list(product(*others))
        if first in planes:
            planes.remove(first)
            planes.insert(0, first)
        for number, plane in enumerate(planes):
            target[plane] = blend(np.asarray(source[plane]), self.whole[plane], amount)
            yield number in (0, len(planes) - 1)

    def _blended_lazily(self, amount: float) -> Any:
        import dask.array as da

        from dn_core.inference.planes import blend

        whole = da.from_zarr(self.whole)
        source = self.plan.data
        lazy = source if isinstance(source, da.Array) else da.from_array(source, chunks=whole.chunks)
        return da.map_blocks(blend, lazy.rechunk(whole.chunks), whole, amount=amount, dtype=whole.dtype)

    def _refresh(self, now: bool) -> None:
        if now:
            self.layer.refresh()

    def _raise(self, error: Exception) -> None:
        raise error

    def residual(self) -> Any:
        """What was taken away, original minus result, as float32, of colours their mean; lazy where the result is on disk."""
        difference = self._difference()
        return difference[..., :3].mean(axis=-1) if self.layer.rgb else difference

    def _difference(self) -> Any:
        source, pixels = self.plan.data, self.layer.data
        if self.in_memory and isinstance(source, np.ndarray):
            return np.subtract(source, pixels, dtype=np.float32)
        import dask.array as da

        right = pixels if isinstance(pixels, da.Array) else da.from_array(pixels, chunks=getattr(pixels, "chunks", "auto"))
        left = source if isinstance(source, da.Array) else da.from_array(readable(source), chunks=right.chunks)
        return left.rechunk(right.chunks).astype(np.float32) - right.astype(np.float32)


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

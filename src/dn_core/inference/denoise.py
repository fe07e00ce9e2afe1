"""`denoise`, the generator under it, and the model that they use.

array -> planes -> tiles -> engine -> tiles -> array of the same kind, shape and dtype. Memory is bounded by the tiles in flight, not by
the image. The input is never written to, the output never shares memory with it.
"""

from __future__ import annotations

import functools
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core import processes
from dn_core.checkpoints import Card, Checkpoint
from dn_core.inference.arrays import as_array, bytes_of, check_out, from_torch, kind_of, new_array, to_torch
from dn_core.inference.engines import Engine, Precision, TileTooLargeError, build_engine, choose_device
from dn_core.inference.planes import (
    Axes,
    NonFinite,
    Plane,
    Statistics,
    blend,
    blocks,
    find_axes,
    from_float,
    read_window,
    statistics,
    to_float,
)
from dn_core.inference.tiling import Tile, count_tiles, plan_tiles
from dn_core.memory import available_memory, check_memory
from dn_core.models import registry
from dn_core.network_config import NetworkConfig

__all__ = ["Model", "Progress", "Settings", "denoise", "denoise_steps", "engine_name", "load_model"]

# Pixels on a side that are computed at once, halo included: the flat optimum of CPU engines is 384 to 512.
WINDOW = {"cpu": 512, "mps": 1024, "cuda": 1536}
SMALLEST_TILE = 32
MAX_TILE = 16384
SPARE_BYTES = 2**25
"""Left free beside what tiles need: for compiled networks and the reading of blocks."""
FLOAT32_INTEGERS = 2.0**24


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a denoising is: tiles `done` of `total`, and the `result` with the last one; `done` is 0 while a stack is checked."""

    done: int
    total: int
    seconds_left: float
    result: Any = None


@dataclass(frozen=True, eq=False)
class Model:
    """A network ready to denoise; call it like `denoise`.

    Attributes
    ----------
    checkpoint
        Settings, weights and card.
    """

    checkpoint: Checkpoint
    _engines: dict[tuple[str, str], Engine] = field(default_factory=dict, repr=False)

    @property
    def card(self) -> Card:
        """What the model is and where it comes from."""
        return self.checkpoint.card

    @property
    def config(self) -> NetworkConfig:
        """The network's settings."""
        return self.checkpoint.config

    def __call__(self, image: Any, **options: Any) -> Any:
        """Denoise with this model; see `denoise`."""
        return denoise(image, model=self, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and other processes, such as dask's workers, make engines of their own."""
        return Model, (self.checkpoint,)

    def engine(self, device: str, precision: Precision) -> Engine:
        """The engine for a device, made once."""
        key = (device, precision)
        if key not in self._engines:
            with processes.alone():
                if key not in self._engines:
                    self._engines[key] = build_engine(self.checkpoint, device, precision)
        return self._engines[key]


def load_model(name_or_path: str | Path | None = None) -> Model:
    """A model by name or file; the default one without either. A file that did not change is read once.

    Raises
    ------
    UnknownModelError
        When there is no such name or file.
    CheckpointError
        When the file is not a model, or damaged.
    """
    path = registry.resolve(registry.default_name() if name_or_path is None else name_or_path)
    stat = path.stat()
    return _loaded(path.resolve(), stat.st_mtime_ns, stat.st_size)


def engine_name(model: str | Path | Model | None = None, device: str | None = None, dtype: Any = np.uint8) -> str:
    """Who would compute an image of `dtype`, in words, such as ``"OpenVINO 2026.4.1, CPU, bfloat16"``."""
    loaded = model if isinstance(model, Model) else load_model(model)
    return loaded.engine(choose_device(device), _precision(None, np.dtype(dtype))).name


def denoise(image: Any, model: str | Path | Model | None = None, **options: Any) -> Any:
    """Denoise an image; see `denoise_steps` for the options.

    Parameters
    ----------
    image
        ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor or an xarray, of any integer or float type
        and in any units.
    model
        A name from `dn_core.model_names`, a file, or a loaded model. The default is the best for its cost.

    Returns
    -------
    array
        Of the same kind, shape and dtype. dask stays lazy; a zarr array comes back as one in memory, or as `out`.

    Examples
    --------
    >>> import numpy as np
    >>> noisy = np.random.default_rng(0).normal(100, 20, (64, 64)).astype(np.uint8)
    >>> clean = denoise(noisy)
    >>> clean.shape, clean.dtype, bool(clean.std() < noisy.std() / 2)
    ((64, 64), dtype('uint8'), True)
    """
    result = None
    for step in denoise_steps(image, model, **options):
        result = step.result
    return result


def denoise_steps(
    image: Any,
    model: str | Path | Model | None = None,
    *,
    channel_axis: int | None = None,
    amount: float = 1.0,
    noise: float | None = None,
    device: str | None = None,
    tile: int | None = None,
    precision: Precision | None = None,
    nonfinite: NonFinite = "raise",
    alpha: bool | None = None,
    out: Any = None,
) -> Generator[Progress]:
    """Denoise step by step; closing the generator is cancelling, within a tile.

    Each plane (the last two axes that are not channels) is denoised on its own: time, depth and channels never mix.

    Parameters
    ----------
    channel_axis
        Axis of colours or channels. Without it a last axis of 3 or 4 is taken as RGB(A); alpha (the last of 4 on a last axis) passes
        through unchanged.
    amount
        0 gives the image back, 1 the denoised one, between them `dn_core.blend` of both.
    noise
        Standard deviation of the noise in image units, for models that take one; blind models take none.
    device
        ``"cpu"``, ``"cuda"`` or ``"mps"``; by default the best there is.
    tile
        Pixels on a side computed at once, the halo not counted. Smaller tiles need less memory and give the same result; where memory
        would not suffice, smaller ones are taken.
    precision
        ``"float32"``, ``"bfloat16"`` or ``"float64"`` (for checks). By default bfloat16 for 8-bit images where the hardware has it (at most
        0.02 dB), float32 else.
    nonfinite
        ``"raise"`` refuses NaN and infinity; ``"fill"`` denoises around them and leaves them where they are.
    alpha
        Whether the last channel is alpha, where the rule above does not say.
    out
        A writable array of the image's shape and dtype to write to, such as a memory map or a zarr array on disk.

    Yields
    ------
    Progress
        After each tile; the last one has the result.

    Raises
    ------
    TypeError, ValueError, AxisError
        When the image or an option is not one that can be denoised; the message says what to do.
    MemoryError
        When the result, or even the smallest tile, would not fit into the memory that is free.
    """
    settings = Settings(_model_for(model, noise), amount, noise, choose_device(device), tile, precision, nonfinite)
    if (steps := _other_kind(image, settings, channel_axis, alpha, out)) is not None:
        yield from steps
        return
    source = as_array(image)
    axes = find_axes(tuple(source.shape), channel_axis, alpha)
    available = available_memory()
    if out is None:
        target, available = new_array(source, available), available - bytes_of(source)
    else:
        check_out(out, image, source)
        target = out
    yield from _denoise_planes(source, target, axes, settings, available)


@dataclass(frozen=True)
class Settings:
    """The options of one denoising, checked."""

    model: Model
    amount: float
    noise: float | None
    device: str
    tile: int | None
    precision: Precision | None
    nonfinite: NonFinite

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, (int, float, np.number)) or not 0 <= self.amount <= 1:
            raise ValueError(f"amount is {self.amount!r}; a number in 0..1 is expected. Change amount.")
        if self.tile is not None and (
            isinstance(self.tile, bool) or not isinstance(self.tile, (int, np.integer)) or not 1 <= self.tile <= MAX_TILE
        ):
            raise ValueError(f"tile is {self.tile!r}; a whole number in 1..{MAX_TILE} is expected. Change tile, or leave it out.")
        for name, value, allowed in (
            ("precision", self.precision, (None, "float32", "bfloat16", "float64")),
            ("nonfinite", self.nonfinite, ("raise", "fill")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; one of {allowed} is expected. Change {name}.")

    def first_tile(self) -> int:
        """Tile size to begin with, where memory suffices."""
        if self.tile is not None:
            return int(self.tile)
        return max(SMALLEST_TILE, WINDOW[self.device.split(":")[0]] - 2 * self.model.config.halo)

    def fitting_tile(self, shape: tuple[int, int], planes: int, dtype: np.dtype[Any], available: int) -> int:
        """Tile size for so many planes of `shape` and `dtype` that `available` bytes suffice for: `first_tile`, or half of it and so on.

        Raises
        ------
        MemoryError
            When they do not suffice for the smallest one.
        """
        config, engine, tile = self.model.config, self.engine_for(dtype), self.first_tile()
        while True:
            tiles, pixels = count_tiles(shape, tile, config.halo, config.shuffle)
            needed = engine.memory(pixels, planes * tiles)
            if needed == 0 or needed + SPARE_BYTES <= available:
                break
            if tile <= SMALLEST_TILE:
                check_memory(f"a tile of {tile} pixels", needed + SPARE_BYTES, available, "Close other programs, or use a smaller model.")
            tile = max(SMALLEST_TILE, tile // 2)
        if self.tile is not None and tile < self.tile:
            warnings.warn(
                f"tiles of {self.tile} pixels need more than the {available:,} bytes of memory that are available; tiles of {tile} pixels "
                "are taken, with the same result.",
                RuntimeWarning,
                stacklevel=4,
            )
        return tile

    def engine_for(self, dtype: np.dtype[Any]) -> Engine:
        """The engine for images of `dtype`."""
        return self.model.engine(self.device, _precision(self.precision, dtype))


def _denoise_planes(source: Any, target: Any, axes: Axes, settings: Settings, available: int) -> Iterator[Progress]:
    """All planes of an array; smaller tiles, then the CPU, are tried where memory does not suffice."""
    known: dict[Plane, Statistics] = {}
    planes, config = list(axes.planes()), settings.model.config
    tile = settings.fitting_tile(axes.plane_shape, len(planes), np.dtype(source.dtype), available)
    if isinstance(source, np.ndarray):  # all is checked before the first pixel is written
        total = len(planes) * count_tiles(axes.plane_shape, tile, config.halo, config.shuffle)[0]
        for plane in planes:
            known[plane] = _checked_statistics(source, plane, settings.nonfinite)
            if len(planes) > 1:
                yield Progress(0, total, math.nan)
    for plane in axes.planes(alpha=True):
        for block in blocks(source, plane):
            target[plane.index(*block)] = source[plane.index(*block)]
    warned = False
    while True:
        try:
            yield from _denoise_tiled(source, target, axes, settings, tile, known)
            return
        except TileTooLargeError:
            if not warned:
                warnings.warn(
                    f"{settings.device} ran out of memory with tiles of {tile} pixels; smaller ones"
                    f"{'' if settings.device == 'cpu' else ', then the CPU,'} are tried.",
                    RuntimeWarning,
                    stacklevel=4,
                )
                warned = True
            tile //= 2
            if tile < SMALLEST_TILE:
                if settings.device == "cpu":
                    raise
                settings = replace(settings, device="cpu", tile=None)
                tile = settings.fitting_tile(axes.plane_shape, len(planes), np.dtype(source.dtype), available)


def _denoise_tiled(
    source: Any, target: Any, axes: Axes, settings: Settings, tile: int, known: dict[Plane, Statistics]
) -> Iterator[Progress]:
    config = settings.model.config
    tiles = plan_tiles(axes.plane_shape, tile, config.halo, config.shuffle)
    planes = list(axes.planes())
    engine = settings.engine_for(np.dtype(source.dtype))
    total, began = len(planes) * len(tiles), time.monotonic()
    work = _work(source, planes, tiles, settings, engine.dtype, known)
    for done, (job, output) in enumerate(engine.run(work, parallel=total > 1), start=1):
        job.finish(target, output, settings)
        left = (time.monotonic() - began) / done * (total - done)
        yield Progress(done, total, left, target if done == total else None)


@dataclass(frozen=True)
class _Job:
    """A tile on its way through the engine, with the pixels that it came from."""

    plane: Plane
    tile: Tile
    found: Statistics
    pixels: NDArray[Any]
    offset: float

    def finish(self, target: Any, output: NDArray[Any], settings: Settings) -> None:
        """Turn the network's output into pixels of the target."""
        shape = self.plane.axes.plane_shape
        core = self.tile.core(shape)
        pixels, change = self.pixels[core], output[core]
        if not settings.model.config.residual:
            change = to_float(self._finite[core], self.offset, self.found.scale, output.dtype) - change
        if self.found.constant:
            change = np.zeros_like(change)
        if self.found.scale != 1.0:
            change = change.astype(np.float64) * self.found.scale
        target[self.plane.index(*self.tile.target(shape))] = blend(pixels, from_float(pixels, change), settings.amount)

    @property
    def _finite(self) -> NDArray[Any]:
        return self.pixels if not self.found.bad else np.where(np.isfinite(self.pixels), self.pixels, self.found.mean)


def _work(
    source: Any, planes: list[Plane], tiles: list[Tile], settings: Settings, dtype: np.dtype[Any], known: dict[Plane, Statistics]
) -> Iterator[tuple[_Job, NDArray[Any]]]:
    config = settings.model.config
    for plane in planes:
        found = known.get(plane) or _checked_statistics(source, plane, settings.nonfinite)
        offset = found.mean if config.centred else 0.0
        for tile in tiles:
            pixels = read_window(source, plane, tile.window, found)
            values = to_float(pixels, offset, found.scale, dtype)[None]
            if settings.noise is not None:
                values = np.concatenate([values, np.full_like(values, settings.noise / found.scale)])
            if found.bad:
                pixels = read_window(source, plane, tile.window, Statistics(0, 0, 0))
            yield _Job(plane, tile, found, pixels, offset), values


def _checked_statistics(source: Any, plane: Plane, nonfinite: NonFinite) -> Statistics:
    found = statistics(source, plane)
    if found.bad and nonfinite == "raise":
        assert found.first_bad is not None
        where = plane.pixel(*found.first_bad)
        raise ValueError(
            f"image has {found.bad} pixels that are NaN or infinite in the plane of the first one, at {where}; finite pixels are expected. "
            "Use nonfinite='fill' to leave them as they are and denoise the others."
        )
    integer = np.dtype(source.dtype).kind in "iu"
    if integer and found.high - found.low > FLOAT32_INTEGERS:
        warnings.warn(
            f"the image's range {found.low:.6g}..{found.high:.6g} is wider than float32 can tell apart; the last digits are lost.",
            UserWarning,
            stacklevel=2,
        )
    return found


def _model_for(model: str | Path | Model | None, noise: float | None) -> Model:
    loaded = model if isinstance(model, Model) else load_model(model)
    if loaded.config.planes_in != 1:
        raise ValueError(
            f"the model {loaded.card.name} takes {loaded.config.planes_in} planes at once; one that takes single "
            "planes is expected. Choose another."
        )
    if loaded.config.noise_map and noise is None:
        raise ValueError(f"the model {loaded.card.name} needs the noise level; give noise=, its standard deviation in image units.")
    if noise is not None and not loaded.config.noise_map:
        raise ValueError(
            f"the model {loaded.card.name} is blind and takes no noise level; leave noise out, or choose a model with a noise map."
        )
    if noise is not None and not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise is {noise}; a finite standard deviation of 0 or more is expected. Change noise.")
    return loaded


def _precision(asked: Precision | None, dtype: np.dtype[Any]) -> Precision:
    if asked is not None:
        return asked
    return "bfloat16" if dtype.itemsize == 1 else "float32"


def _other_kind(image: Any, settings: Settings, channel_axis: int | None, alpha: bool | None, out: Any) -> Iterator[Progress] | None:
    """Steps for arrays that are neither numpy nor zarr, or None."""
    kind = kind_of(image)
    if kind == "dask":
        from dn_core.inference.lazy import denoise_dask

        if out is not None:
            raise ValueError("out is given with a dask array, which stays lazy; none is expected. Use denoise(image).store(out).")
        return iter([Progress(1, 1, 0.0, denoise_dask(image, settings, channel_axis, alpha))])
    if kind not in ("torch", "xarray"):
        return None
    array = image.data if kind == "xarray" else from_torch(image)
    options = {"channel_axis": channel_axis, "amount": settings.amount, "noise": settings.noise, "device": settings.device, "out": out}
    options |= {"tile": settings.tile, "precision": settings.precision, "nonfinite": settings.nonfinite, "alpha": alpha}
    return _converted(denoise_steps(array, settings.model, **options), image, kind)


def _converted(steps: Iterator[Progress], image: Any, kind: str) -> Iterator[Progress]:
    for step in steps:
        result = step.result
        if result is not None:
            result = image.copy(data=result) if kind == "xarray" else to_torch(result, image)
        yield Progress(step.done, step.total, step.seconds_left, result)


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, modified: int, size: int) -> Model:
    return Model(registry.load(path))

"""`denoise`, the generator under it, and the model that they use.

array -> planes -> tiles -> engine -> tiles -> array of the same kind, shape and dtype. Memory is bounded by the tiles in flight, not by
the image. The input is never written to, the output never shares memory with it.
"""

from __future__ import annotations

import contextlib
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
from dn_core.files.raw import RawArray
from dn_core.inference.arrays import as_array, axes_of, bytes_of, check_out, kind_of, new_array, to_torch
from dn_core.inference.engines import Engine, Precision, TileTooLargeError, build_engine, choose_device
from dn_core.inference.hot_pixels import MARGIN, HotPixelAction, HotPixels, change_at, find_hot_pixels, hot_pixels_message
from dn_core.inference.planes import (
    Axes,
    ChannelAxis,
    NonFinite,
    Plane,
    Statistics,
    blend,
    blocks,
    from_float,
    read_window,
    statistics,
    to_float,
)
from dn_core.inference.tiling import Tile, count_tiles, pad_to_multiple, plan_tiles
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
    """Where a denoising is: tiles `done` of `total`, and the `result` with the last one; `done` is 0 while a stack is checked.

    With the result come `notes`, sentences about what a user should know of it.
    """

    done: int
    total: int
    seconds_left: float
    result: Any = None
    notes: tuple[str, ...] = ()


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
        ``(..., height, width)``, or with channels: a numpy, dask or zarr array, a torch tensor, an xarray or a PIL image, of any integer or
        float type and in any units.
    model
        A name from `dn_core.model_names`, a file, or a loaded model. The default is the best for its cost.

    Returns
    -------
    array
        Of the same kind, shape and dtype. dask stays lazy; a zarr array comes back as one in memory, or as `out`; a PIL image as numpy's.

    Examples
    --------
    >>> import numpy as np
    >>> noisy = np.random.default_rng(0).normal(100, 20, (64, 64)).astype(np.uint8)
    >>> clean = denoise(noisy)
    >>> clean.shape, clean.dtype, bool(clean.std() < noisy.std() / 2)
    ((64, 64), dtype('uint8'), True)
    """
    result, notes = None, tuple[str, ...]()
    for step in denoise_steps(image, model, **options):
        result, notes = step.result, step.notes
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=2)
    return result


def denoise_steps(
    image: Any,
    model: str | Path | Model | None = None,
    *,
    channel_axis: ChannelAxis = "auto",
    amount: float = 1.0,
    noise: float | None = None,
    device: str | None = None,
    tile: int | None = None,
    precision: Precision | None = None,
    nonfinite: NonFinite = "raise",
    alpha: bool | None = None,
    hot_pixels: HotPixelAction = "keep",
    out: Any = None,
) -> Generator[Progress]:
    """Denoise step by step; closing the generator is cancelling, within a tile.

    Each plane (the last two axes that are not channels) is denoised on its own: time, depth and channels never mix.

    Parameters
    ----------
    channel_axis
        The axis of colours or channels, all of which are denoised, or None when there are none and the last two axes are planes. With
        ``"auto"`` an xarray's names of its axes count. Otherwise axes of length 1 at the end are left aside, and a last axis of at most 16,
        below an eighth of both axes before it, is taken for channels, the last of 4 for alpha, with a UserWarning.
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
        Whether the last channel is alpha, which passes through unchanged; with a `channel_axis` it is not unless asked for.
    hot_pixels
        What becomes of single pixels that stand out from all around them by more than the noise does, as hot and dead pixels of cameras
        do: ``"keep"`` leaves them as they are, ``"remove"`` gives them the value of their surroundings. Either way what is around them is
        denoised as without them, and `Progress.notes` tell of those that no noise explains (`denoise`: a UserWarning).
    out
        A writable array of the image's shape and dtype to write to, such as a memory map or a zarr array on disk.

    Chunks that a zarr array lacks are read as its fill value, with a warning that says how many; of a dask array nobody can tell.

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
    settings = Settings(_model_for(model, noise), amount, noise, choose_device(device), tile, precision, nonfinite, hot_pixels)
    source = as_array(image)
    axes = axes_of(image, source.shape, channel_axis, alpha)
    if axes.note is not None:
        warnings.warn(axes.note, UserWarning, stacklevel=3)
    kind = kind_of(image)
    steps = _steps(image.data if kind == "xarray" else image, source, axes, settings, out)
    yield from _converted(steps, image, kind) if kind in ("torch", "xarray") else steps


def _with_missing_told(array: Any) -> Any:
    """A zarr array as a source whose reading errors name the chunk; a warning for chunks that are not there."""
    from dn_core.files.zarr_chunks import ZarrSource

    source = ZarrSource(array)
    if source.count.in_words:
        warnings.warn(f"{source.name}: {source.count.in_words}", UserWarning, stacklevel=5)
    return source


def _into_chunks(source: Any, out: Any, axes: Axes, settings: Settings, available: int) -> Iterator[Progress]:
    """Steps into a zarr array whose chunks, or shards, are written whole, each once."""
    from dn_core.files.zarr_blocks import BlockWriter

    with contextlib.closing(BlockWriter(out)) as target:
        for step in _denoise_planes(source, target, axes, settings, available):
            if step.result is not None:
                target.flush()
                step = replace(step, result=out)
            yield step


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
    hot_pixels: HotPixelAction = "keep"

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
            ("hot_pixels", self.hot_pixels, ("keep", "remove")),
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


def _steps(image: Any, source: Any, axes: Axes, settings: Settings, out: Any) -> Iterator[Progress]:
    """The steps for `source`, which is `image` as an array."""
    if kind_of(source) == "dask":
        from dn_core.inference.lazy import denoise_dask

        if out is not None:
            raise ValueError("out is given with a dask array, which stays lazy; none is expected. Use denoise(image).store(out).")
        yield Progress(1, 1, 0.0, denoise_dask(source, settings, axes))
        return
    available = available_memory()
    if out is None:
        target, available = new_array(source, available), available - bytes_of(source)
    else:
        check_out(out, image, source)
        target = out
    if kind_of(source) == "zarr":
        source = _with_missing_told(source)
    if kind_of(target) == "zarr" and (target.shards or out is None):
        yield from _into_chunks(source, target, axes, settings, available)
    else:
        yield from _denoise_planes(source, target, axes, settings, available)


def _denoise_planes(source: Any, target: Any, axes: Axes, settings: Settings, available: int) -> Iterator[Progress]:
    """All planes of an array; smaller tiles, then the CPU, are tried where memory does not suffice."""
    known: dict[Plane, Statistics] = {}
    planes, config = list(axes.planes()), settings.model.config
    tile = settings.fitting_tile(axes.plane_shape, len(planes), np.dtype(source.dtype), available)
    if isinstance(source, (np.ndarray, RawArray)):  # all is checked before the first pixel is written
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
    total, began, told = len(planes) * len(tiles), time.monotonic(), list[tuple[int, ...]]()
    work = _work(source, planes, tiles, settings, engine.dtype, known)
    for done, (job, output) in enumerate(engine.run(work, parallel=total > 1), start=1):
        told += job.finish(target, output, settings)
        left = (time.monotonic() - began) / done * (total - done)
        if done < total:
            yield Progress(done, total, left)
        else:
            yield Progress(done, total, left, target, (hot_pixels_message(settings.hot_pixels, len(told), min(told)),) if told else ())


@dataclass(frozen=True)
class _Job:
    """A tile on its way through the engine, with the pixels that it came from."""

    plane: Plane
    tile: Tile
    found: Statistics
    pixels: NDArray[Any]
    seen: NDArray[Any]
    """`pixels` as the network sees them: finite, without `hot` pixels."""
    hot: HotPixels
    offset: float

    def finish(self, target: Any, output: NDArray[Any], settings: Settings) -> list[tuple[int, ...]]:
        """Turn the network's output into pixels of the target; give the places of hot pixels that are to be told."""
        shape = self.plane.axes.plane_shape
        core, place = self.tile.core(shape), self.tile.target(shape)
        change = output if settings.model.config.residual else to_float(self.seen, self.offset, self.found.scale, output.dtype) - output
        told: list[tuple[int, ...]] = []
        if len(self.hot):
            change, told = self._with_hot_pixels(change, core, settings.hot_pixels)
        pixels, change = self.pixels[core], change[core]
        if self.found.constant:
            change = np.zeros_like(change)
        if self.found.scale != 1.0:
            change = change.astype(np.float64) * self.found.scale
        target[self.plane.index(*place)] = blend(pixels, from_float(pixels, change), settings.amount)
        return told

    def _with_hot_pixels(
        self, change: NDArray[Any], core: tuple[slice, slice], action: HotPixelAction
    ) -> tuple[NDArray[Any], list[tuple[int, ...]]]:
        """The change with what becomes of hot pixels, and the places of those in the core that are told."""
        rows, columns = self.hot.rows, self.hot.columns
        beyond = (self.pixels[rows, columns].astype(np.float64) - self.seen[rows, columns]) / self.found.scale
        result, theirs = change.copy(), change_at(self.hot, beyond, change, action)
        result[rows, columns] = theirs
        inside = (rows >= core[0].start) & (rows < core[0].stop) & (columns >= core[1].start) & (columns < core[1].stop)
        tell = inside & self.hot.to_tell(theirs, action)
        top, left = self.tile.rows.start, self.tile.columns.start
        return result, [self.plane.pixel(top + row, left + column) for row, column in zip(rows[tell], columns[tell], strict=True)]


def _work(
    source: Any, planes: list[Plane], tiles: list[Tile], settings: Settings, dtype: np.dtype[Any], known: dict[Plane, Statistics]
) -> Iterator[tuple[_Job, NDArray[Any]]]:
    config = settings.model.config
    for plane in planes:
        found = known.get(plane) or _checked_statistics(source, plane, settings.nonfinite)
        offset = found.mean if config.centred else 0.0
        for tile in tiles:
            pixels, hot = _window_and_hot_pixels(source, plane, tile, found)
            seen = hot.replaced(pixels)
            values = to_float(seen, offset, found.scale, dtype)[None]
            if settings.noise is not None:
                values = np.concatenate([values, np.full_like(values, settings.noise / found.scale)])
            if found.bad:
                pixels = read_window(source, plane, tile.window, Statistics(0, 0, 0))
            yield _Job(plane, tile, found, pixels, seen, hot, offset), values


def _window_and_hot_pixels(source: Any, plane: Plane, tile: Tile, found: Statistics) -> tuple[NDArray[Any], HotPixels]:
    """The pixels of a tile's window, and which of them are hot: that is seen in a wider one."""
    wide = tuple(
        slice(max(part.start - MARGIN, 0), min(part.stop + MARGIN, extent))
        for part, extent in zip(tile.window, plane.axes.plane_shape, strict=True)
    )
    inner = tuple(slice(part.start - around.start, part.stop - around.start) for part, around in zip(tile.window, wide, strict=True))
    pixels = read_window(source, plane, (wide[0], wide[1]), found)
    return pad_to_multiple(pixels[inner], tile.shape), find_hot_pixels(pixels).inside((inner[0], inner[1]))


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


def _converted(steps: Iterator[Progress], image: Any, kind: str) -> Iterator[Progress]:
    for step in steps:
        if step.result is not None:
            step = replace(step, result=image.copy(data=step.result) if kind == "xarray" else to_torch(step.result, image))
        yield step


@functools.lru_cache(maxsize=8)
def _loaded(path: Path, modified: int, size: int) -> Model:
    return Model(registry.load(path))

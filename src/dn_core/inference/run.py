"""Running a plan: read a tile, compute it, write it, with progress after each."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files.raw_array import RawArray
from dn_core.inference.arrays import InputImage, kind_of, new_array
from dn_core.inference.axes import Plane
from dn_core.inference.engines import TileTooLargeError
from dn_core.inference.hot_pixels import (
    MARGIN,
    HotPixelAction,
    HotPixels,
    change_at,
    find_hot_pixels,
    hot_pixels_message,
)
from dn_core.inference.plan import DenoisePlan, next_smaller_plan
from dn_core.inference.planes import (
    NonFinite,
    Statistics,
    blend,
    blocks,
    from_float,
    read_window,
    statistics,
    to_float,
)
from dn_core.inference.tiling import Tile, pad_to_multiple
from dn_core.messages import counted

__all__ = ["Progress", "run"]

FLOAT32_INTEGERS = 2.0**24


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a denoising run.

    Attributes
    ----------
    done : int
        Number of tiles computed; 0 while a stack is checked.
    total : int
        Number of tiles in all planes.
    seconds_left : float
        Estimated time left, in seconds; NaN while a stack is checked.
    result : object, optional
        The denoised image, with the last tile; None before.
    notes : tuple of str, optional
        Sentences about the result that a user should read, with the last tile.
    """

    done: int
    total: int
    seconds_left: float
    result: Any = None
    notes: tuple[str, ...] = ()


def run(plan: DenoisePlan, image: InputImage, out: Any = None) -> Generator[Progress]:
    """Denoise an image as planned; closing the generator cancels within a tile.

    Parameters
    ----------
    plan : DenoisePlan
        What `make_plan` decided for `image`.
    image : InputImage
        The image.
    out : array, optional
        An array for the result, as checked by `check_out`; by default one like the image.

    Yields
    ------
    Progress
        After each tile; the last one has the result.

    Raises
    ------
    ValueError
        If the image has non-finite pixels and they are not to be filled.
    MemoryError
        If a tile does not fit into memory, however small.
    """
    source = image.opened()
    if plan.kind == "dask":
        from dn_core.inference.lazy import denoise_dask

        yield Progress(1, 1, 0.0, image.restored(denoise_dask(source, plan)))
        return
    target = new_array(source) if out is None else out
    if kind_of(source) == "zarr":
        source = _counted_chunks(source)
    if kind_of(target) == "zarr" and (target.shards or out is None):
        steps = _into_chunks(plan, source, target)
    else:
        steps = _denoise_planes(plan, source, target)
    for step in steps:
        yield step if step.result is None else replace(step, result=image.restored(step.result))


def _counted_chunks(array: Any) -> Any:
    """A zarr array whose reading errors name the chunk; warns about missing chunks."""
    from dn_core.files.zarr_chunks import ZarrSource

    source = ZarrSource(array)
    if source.count.in_words:
        warnings.warn(f"{source.name}: {source.count.in_words}", UserWarning, stacklevel=6)
    return source


def _into_chunks(plan: DenoisePlan, source: Any, out: Any) -> Iterator[Progress]:
    """Write into a zarr array whole chunks or shards only, each once."""
    from dn_core.files.zarr_blocks import BlockWriter

    with contextlib.closing(BlockWriter(out)) as target:
        for step in _denoise_planes(plan, source, target):
            if step.result is not None:
                target.flush()
                step = replace(step, result=out)
            yield step


def _denoise_planes(plan: DenoisePlan, source: Any, target: Any) -> Iterator[Progress]:
    """All planes of an array; after running out of memory again, with a smaller plan."""
    known: dict[Plane, Statistics] = {}
    if isinstance(source, (np.ndarray, RawArray)):  # checked before the first pixel is written
        for plane in plan.axes.planes():
            known[plane] = _checked_statistics(source, plane, plan.options.nonfinite)
            if plan.planes > 1:
                yield Progress(0, plan.total_tiles, math.nan)
    for plane in plan.axes.planes(alpha=True):
        for block in blocks(source, plane):
            target[plane.index(*block)] = source[plane.index(*block)]
    warned = False
    while True:
        try:
            yield from _denoise_tiles(plan, source, target, known)
            return
        except TileTooLargeError:
            if not warned:
                warnings.warn(
                    f"{plan.device} ran out of memory with tiles of {plan.tiles.size} pixels; "
                    f"smaller ones{'' if plan.device == 'cpu' else ', then the CPU,'} are tried.",
                    RuntimeWarning,
                    stacklevel=4,
                )
                warned = True
            smaller = next_smaller_plan(plan)
            if smaller is None:
                raise
            plan = smaller


def _denoise_tiles(
    plan: DenoisePlan, source: Any, target: Any, known: dict[Plane, Statistics]
) -> Iterator[Progress]:
    """All tiles of all planes."""
    engine, total = plan.loaded_engine(), plan.total_tiles
    began, reported = time.monotonic(), list[tuple[int, ...]]()
    work = _tile_tasks(plan, source, engine.dtype, known)
    for done, (task, output) in enumerate(engine.run(work, parallel=total > 1), start=1):
        reported += task.finish(target, output, plan)
        left = (time.monotonic() - began) / done * (total - done)
        if done < total:
            yield Progress(done, total, left)
            continue
        action, notes = plan.options.hot_pixels, tuple[str, ...]()
        if reported:
            notes = (hot_pixels_message(action, len(reported), min(reported)),)
        yield Progress(done, total, left, target, notes)


@dataclass(frozen=True)
class _TileTask:
    """A tile on its way through the engine, with the pixels that it came from.

    Attributes
    ----------
    plane, tile
        Which tile of which plane.
    found : Statistics
        Statistics of the plane.
    pixels : ndarray
        Pixels of the tile's window, as far as it is in the image.
    seen : ndarray
        These as the network sees them: finite, without hot pixels, padded to the window.
    hot : HotPixels
        The hot pixels in the window.
    offset : float
        What was subtracted before `found.scale` was divided by.
    """

    plane: Plane
    tile: Tile
    found: Statistics
    pixels: NDArray[Any]
    seen: NDArray[Any]
    hot: HotPixels
    offset: float

    def finish(self, target: Any, output: NDArray[Any], plan: DenoisePlan) -> list[tuple[int, ...]]:
        """Turn the output of the network into pixels of the target; the hot pixels to report."""
        shape = self.plane.axes.plane_shape
        core, place = self.tile.core(shape), self.tile.target(shape)
        change = output
        if not plan.config.residual:
            change = to_float(self.seen, self.offset, self.found.scale, output.dtype) - output
        change = change[tuple(map(slice, self.pixels.shape))]
        reported: list[tuple[int, ...]] = []
        if len(self.hot):
            change, reported = self._with_hot_pixels(change, core, plan.options.hot_pixels)
        pixels, change = self.pixels[core], change[core]
        if self.found.constant:
            change = np.zeros_like(change)
        if self.found.scale != 1.0:
            change = change.astype(np.float64) * self.found.scale
        result = blend(pixels, from_float(pixels, change), plan.options.amount)
        target[self.plane.index(*place)] = result
        return reported

    def _with_hot_pixels(
        self, change: NDArray[Any], core: tuple[slice, slice], action: HotPixelAction
    ) -> tuple[NDArray[Any], list[tuple[int, ...]]]:
        """The change including that of hot pixels, and the positions of those to report."""
        rows, columns = self.hot.rows, self.hot.columns
        beyond = (
            self.pixels[rows, columns].astype(np.float64) - self.seen[rows, columns]
        ) / self.found.scale
        result, of_hot = change.copy(), change_at(self.hot, beyond, change, action)
        result[rows, columns] = of_hot
        inside = (
            (rows >= core[0].start)
            & (rows < core[0].stop)
            & (columns >= core[1].start)
            & (columns < core[1].stop)
        )
        report = inside & self.hot.to_report(of_hot, action)
        top, left = self.tile.rows.start, self.tile.columns.start
        return result, [
            self.plane.pixel(top + row, left + column)
            for row, column in zip(rows[report], columns[report], strict=True)
        ]


def _tile_tasks(
    plan: DenoisePlan, source: Any, dtype: np.dtype[Any], known: dict[Plane, Statistics]
) -> Iterator[tuple[_TileTask, NDArray[Any]]]:
    """Each tile with the numbers that the network takes: ``(inputs, height, width)``."""
    tiles = plan.tiles.tiles()
    for plane in plan.axes.planes():
        found = known.get(plane) or _checked_statistics(source, plane, plan.options.nonfinite)
        offset = found.mean if plan.config.subtract_mean else 0.0
        for tile in tiles:
            pixels, hot = _window_and_hot_pixels(source, plane, tile, found)
            # padded behind the replacement: a hot pixel in the last row is not repeated
            seen = pad_to_multiple(hot.replaced(pixels), tile.shape)
            values = to_float(seen, offset, found.scale, dtype)[None]
            if plan.sigma is not None:
                values = np.concatenate([values, np.full_like(values, plan.sigma / found.scale)])
            if found.bad:  # the result keeps the non-finite pixels
                pixels = read_window(source, plane, tile.window, Statistics(0, 0, 0))
            yield _TileTask(plane, tile, found, pixels, seen, hot, offset), values


def _window_and_hot_pixels(
    source: Any, plane: Plane, tile: Tile, found: Statistics
) -> tuple[NDArray[Any], HotPixels]:
    """Pixels of a tile's window that are in the image, and the hot ones among them.

    These are found in a wider window.
    """
    wide = tuple(
        slice(max(part.start - MARGIN, 0), min(part.stop + MARGIN, extent))
        for part, extent in zip(tile.window, plane.axes.plane_shape, strict=True)
    )
    inner = tuple(
        slice(part.start - around.start, part.stop - around.start)
        for part, around in zip(tile.window, wide, strict=True)
    )
    pixels = read_window(source, plane, (wide[0], wide[1]), found)
    return pixels[inner], find_hot_pixels(pixels).inside((inner[0], inner[1]))


def _checked_statistics(source: Any, plane: Plane, nonfinite: NonFinite) -> Statistics:
    """Statistics of a plane; non-finite pixels are refused, or left to be filled."""
    found = statistics(source, plane)
    if found.bad and nonfinite == "raise":
        assert found.first_bad is not None
        raise ValueError(
            "image must have finite pixels, got "
            f"{counted(found.bad, 'pixel that is', 'pixels that are')} NaN or infinite in one "
            f"plane, the first at {plane.pixel(*found.first_bad)}. Use nonfinite='fill' to keep "
            "them as they are and denoise the others."
        )
    integer = np.dtype(source.dtype).kind in "iu"
    if integer and found.high - found.low > FLOAT32_INTEGERS:
        warnings.warn(
            f"the range of the image, {found.low:.6g} to {found.high:.6g}, is wider than float32 "
            "can represent exactly; the last digits are lost.",
            UserWarning,
            stacklevel=2,
        )
    return found

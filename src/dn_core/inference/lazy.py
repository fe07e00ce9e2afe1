"""dask arrays stay lazy: each chunk is denoised with a halo when it is computed, and the whole equals the result for numpy."""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dn_core.inference.hot_pixels import MARGIN, change_at, find_hot_pixels, hot_pixels_message
from dn_core.inference.planes import Axes, blend, from_float, power_of_two
from dn_core.inference.tiling import pad_to_multiple, plan_tiles
from dn_core.memory import available_memory

if TYPE_CHECKING:
    from dn_core.inference.denoise import Settings
    from dn_core.network_config import NetworkConfig

__all__ = ["denoise_dask"]


def denoise_dask(image: Any, settings: Settings, axes: Axes) -> Any:
    """A dask array that denoises itself when it is computed.

    Pixels that are not finite are found then, chunk by chunk; ``nonfinite="fill"`` needs a numpy or zarr array. Hot and dead pixels are
    treated as in other arrays, and told as chunks are computed, without their number.

    Raises
    ------
    ValueError
        When chunk sizes are unknown, or ``nonfinite="fill"`` is asked for.
    """
    import dask.array as da

    if any(math.isnan(size) for sizes in image.chunks for size in sizes):
        raise ValueError("image is a dask array with unknown chunk sizes; known ones are expected. Use image.compute_chunk_sizes().")
    if settings.nonfinite == "fill":
        raise ValueError("nonfinite='fill' works on numpy and zarr arrays, image is a dask array. Use image.compute(), or fill it first.")
    if axes.alpha is not None:
        axis, last = axes.alpha
        colours = image[(slice(None),) * axis + (slice(0, last),)]
        rest = image[(slice(None),) * axis + (slice(last, None),)]
        return da.concatenate([denoise_dask(colours, settings, Axes(colours.shape, axes.spatial)), rest], axis=axis).rechunk(image.chunks)
    stack, found = _after_statistics(da.moveaxis(image, axes.spatial, (-2, -1)), settings)
    result = da.map_blocks(_result, stack, _change(stack, found, settings), amount=settings.amount, dtype=image.dtype)
    return da.moveaxis(result, (-2, -1), axes.spatial).rechunk(image.chunks)


class _Found(NamedTuple):
    """What is known of each plane, as lazy arrays ``(..., 1, 1)``."""

    constant: Any
    offset: Any
    scale: Any


def _after_statistics(stack: Any, settings: Settings) -> tuple[Any, _Found]:
    """``(..., height, width)`` to be read once its planes' statistics are known, and these.

    The statistics come from a reading of their own and the pixels are read again after it: otherwise dask would keep every chunk of a
    plane in memory until its mean is known.
    """
    import dask.array as da
    from dask.graph_manipulation import bind, clone

    first = clone(stack)
    low, high, mean = (reduce(first, axis=(-2, -1), keepdims=True) for reduce in (da.min, da.max, partial(da.mean, dtype=np.float64)))
    offset = mean if settings.model.config.centred else da.zeros_like(mean)
    found = _Found(low == high, offset, da.map_blocks(power_of_two, low, high, dtype=np.float64))
    return bind(stack, list(found)), found


def _change(stack: Any, found: _Found, settings: Settings) -> Any:
    """What is to be subtracted from ``(..., height, width)``."""
    import dask.array as da

    config = settings.model.config
    engine_dtype = np.dtype(np.float64 if settings.precision == "float64" else np.float32)
    meta = np.empty((0,) * stack.ndim, engine_dtype)
    values = da.map_blocks(_to_float, stack, found.offset, found.scale, engine_dtype=engine_dtype, dtype=engine_dtype, meta=meta)
    aligned = _aligned(values, settings)
    depth = {axis: _depth(config) if aligned.numblocks[axis] > 1 else 0 for axis in (aligned.ndim - 2, aligned.ndim - 1)}
    spread = da.overlap.overlap(aligned, depth, "none")
    options = {"settings": settings, "source_dtype": stack.dtype, "dtype": engine_dtype, "meta": meta}
    change = da.overlap.trim_internal(da.map_blocks(_change_of_block, spread, found.scale, **options), depth, "none").rechunk(stack.chunks)
    return da.where(found.constant, 0, change * found.scale)


def _result(block: NDArray[Any], change: NDArray[Any], amount: float) -> NDArray[Any]:
    return blend(block, from_float(block, change), amount)


def _to_float(
    block: NDArray[Any], offset: NDArray[Any], scale: NDArray[Any], engine_dtype: np.dtype[Any], block_info: Any = None
) -> NDArray[Any]:
    """``(block - offset) / scale``; pixels that are not finite are refused with their count in this chunk and their place in the image."""
    if bad := block.size - int(np.count_nonzero(np.isfinite(block))):
        starts = [start for start, _ in block_info[0]["array-location"]]
        where = tuple(int(start + index) for start, index in zip(starts, np.argwhere(~np.isfinite(block))[0], strict=True))
        raise ValueError(
            f"image has {bad} pixels that are NaN or infinite in the chunk of the first one, at {where}; finite pixels are expected. "
            "Fill them first, or compute the image and use nonfinite='fill'."
        )
    values: NDArray[Any] = (block.astype(np.float64) / scale - offset / scale).astype(engine_dtype)
    return values


def _depth(config: NetworkConfig) -> int:
    """Pixels around a chunk that its result depends on: the network's halo, and what tells hot pixels in it."""
    return -(-(config.halo + MARGIN) // config.shuffle) * config.shuffle


def _aligned(stack: Any, settings: Settings) -> Any:
    """Chunks that begin at multiples of the network's `shuffle` and are no smaller than what is read around them."""
    config = settings.model.config
    depth = _depth(config)
    size = -(-settings.first_tile() // config.shuffle) * config.shuffle
    plan = {}
    for axis in (stack.ndim - 2, stack.ndim - 1):
        sizes = stack.chunks[axis]
        if len(sizes) > 1 and (min(sizes) < depth or any(part % config.shuffle for part in sizes[:-1])):
            plan[axis] = _even_chunks(stack.shape[axis], max(size, depth), depth)
    return stack.rechunk(plan) if plan else stack


def _even_chunks(length: int, size: int, smallest: int) -> tuple[int, ...]:
    """Chunks of `size`; a last one below `smallest` joins the one before."""
    whole, rest = divmod(length, size)
    if rest and (rest >= smallest or not whole):
        return (size,) * whole + (rest,)
    return (size,) * (whole - 1) + (size + rest,)


def _change_of_block(block: NDArray[Any], scale: NDArray[Any], settings: Settings, source_dtype: np.dtype[Any]) -> NDArray[Any]:
    result = np.empty_like(block)
    for index in np.ndindex(block.shape[:-2]):
        noise = None if settings.noise is None else settings.noise / float(scale[index][0, 0])
        step = 1 / float(scale[index][0, 0]) if source_dtype.kind in "iu" else 0.0
        result[index] = _change_of_plane(block[index], noise, step, settings, source_dtype)
    return result


def _change_of_plane(
    plane: NDArray[Any], noise: float | None, step: float, settings: Settings, source_dtype: np.dtype[Any]
) -> NDArray[Any]:
    """One chunk of a plane, and what is around it; its own border is computed as a border, and cut off by dask where it is not one."""
    config = settings.model.config
    shape = (plane.shape[0], plane.shape[1])
    tiles = plan_tiles(shape, settings.fitting_tile(shape, 1, source_dtype, available_memory()), config.halo, config.shuffle)
    engine = settings.engine_for(source_dtype)
    hot = find_hot_pixels(plane, step)
    seen, result = hot.replaced(plane), np.empty_like(plane)

    def work() -> Any:
        for tile in tiles:
            values = pad_to_multiple(seen[tile.window], tile.shape)[None]
            yield tile, values if noise is None else np.concatenate([values, np.full_like(values, noise)])

    for tile, output in engine.run(work(), parallel=len(tiles) > 1):
        core = tile.core(shape)
        result[tile.target(shape)] = output[core] if config.residual else seen[tile.target(shape)] - output[core]
    if len(hot):
        at = hot.rows, hot.columns
        result[at] = theirs = change_at(hot, plane[at].astype(np.float64) - seen[at], result, settings.hot_pixels)
        if hot.to_tell(theirs, settings.hot_pixels).any():
            warnings.warn(hot_pixels_message(settings.hot_pixels), UserWarning, stacklevel=2)
    return result

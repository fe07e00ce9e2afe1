"""Dask arrays: each chunk is denoised with a halo when it is computed.

The result equals that of a numpy array.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dn_core.inference.axes import Axes
from dn_core.inference.hot_pixels import MARGIN, change_at, find_hot_pixels, hot_pixels_message
from dn_core.inference.plan import (
    DenoisePlan,
    fit_tiles,
    tiles_reduced_warning,
    usual_tile_size,
)
from dn_core.inference.planes import blend, from_float, power_of_two
from dn_core.inference.tiling import TileGrid, pad_to_multiple
from dn_core.memory import available_memory
from dn_core.messages import counted
from dn_core.network_config import NetworkConfig

__all__ = ["denoise_dask"]


def denoise_dask(image: Any, plan: DenoisePlan) -> Any:
    """A dask array that is denoised when it is computed.

    Non-finite pixels are found then, chunk by chunk. Hot and dead pixels are treated as in other
    arrays, and reported as chunks are computed, without their number.

    Parameters
    ----------
    image : array
        The dask array.
    plan : DenoisePlan
        What was decided for it.
    """
    import dask.array as da

    axes = plan.axes
    if axes.alpha is not None:
        axis, last = axes.alpha
        colours = image[(slice(None),) * axis + (slice(0, last),)]
        rest = image[(slice(None),) * axis + (slice(last, None),)]
        return da.concatenate(
            [denoise_dask(colours, replace(plan, axes=Axes(colours.shape, axes.spatial))), rest],
            axis=axis,
        ).rechunk(image.chunks)
    stack, found = _after_statistics(da.moveaxis(image, axes.spatial, (-2, -1)), plan.config)
    change = _change(stack, found, plan)
    result = da.map_blocks(_result, stack, change, amount=plan.options.amount, dtype=image.dtype)
    return da.moveaxis(result, (-2, -1), axes.spatial).rechunk(image.chunks)


class _Found(NamedTuple):
    """Statistics of each plane, as lazy arrays ``(..., 1, 1)``."""

    constant: Any
    offset: Any
    scale: Any


def _after_statistics(stack: Any, config: NetworkConfig) -> tuple[Any, _Found]:
    """The stack, to be read after the statistics of its planes are known, and these statistics.

    The pixels are read twice. With one shared reading, dask would keep every chunk of a plane in
    memory until the mean of the plane is known. `clone` gives the statistics input tasks of their
    own, and `bind` makes the tasks of the stack wait for the statistics.
    """
    import dask.array as da
    from dask.graph_manipulation import bind, clone

    first = clone(stack)
    low, high, mean = (
        reduce(first, axis=(-2, -1), keepdims=True)
        for reduce in (da.min, da.max, partial(da.mean, dtype=np.float64))
    )
    offset = mean if config.subtract_mean else da.zeros_like(mean)
    found = _Found(low == high, offset, da.map_blocks(power_of_two, low, high, dtype=np.float64))
    return bind(stack, list(found)), found


def _change(stack: Any, found: _Found, plan: DenoisePlan) -> Any:
    """What is to be subtracted from a stack ``(..., height, width)``."""
    import dask.array as da

    engine_dtype = np.dtype(np.float64 if plan.precision == "float64" else np.float32)
    meta = np.empty((0,) * stack.ndim, engine_dtype)
    values = da.map_blocks(
        _to_float,
        stack,
        found.offset,
        found.scale,
        engine_dtype=engine_dtype,
        dtype=engine_dtype,
        meta=meta,
    )
    aligned = _aligned(values, plan)
    depth = {
        axis: _depth(plan.config) if aligned.numblocks[axis] > 1 else 0
        for axis in (aligned.ndim - 2, aligned.ndim - 1)
    }
    spread = da.overlap.overlap(aligned, depth, "none")
    computed = da.map_blocks(
        _change_of_block, spread, found.scale, plan=plan, dtype=engine_dtype, meta=meta
    )
    change = da.overlap.trim_internal(computed, depth, "none").rechunk(stack.chunks)
    return da.where(found.constant, 0, change * found.scale)


def _result(block: NDArray[Any], change: NDArray[Any], amount: float) -> NDArray[Any]:
    return blend(block, from_float(block, change), amount)


def _to_float(
    block: NDArray[Any],
    offset: NDArray[Any],
    scale: NDArray[Any],
    engine_dtype: np.dtype[Any],
    block_info: Any = None,
) -> NDArray[Any]:
    """``(block - offset) / scale``.

    Non-finite pixels are refused with their count in this chunk and their position in the image.
    """
    if bad := block.size - int(np.count_nonzero(np.isfinite(block))):
        starts = [start for start, _ in block_info[0]["array-location"]]
        where = tuple(
            int(start + index)
            for start, index in zip(starts, np.argwhere(~np.isfinite(block))[0], strict=True)
        )
        raise ValueError(
            "image must have finite pixels, got "
            f"{counted(bad, 'pixel that is', 'pixels that are')} NaN or infinite in one chunk, the "
            f"first at {where}. Fill them first, or compute the image and use "
            "nonfinite='fill'."
        )
    values: NDArray[Any] = (block.astype(np.float64) / scale - offset / scale).astype(engine_dtype)
    return values


def _depth(config: NetworkConfig) -> int:
    """Pixels around a chunk that its result depends on: the halo, and the margin of hot pixels."""
    return -(-(config.halo + MARGIN) // config.stride) * config.stride


def _aligned(stack: Any, plan: DenoisePlan) -> Any:
    """The stack in chunks of at least `_depth` that begin at multiples of `stride`."""
    config, depth = plan.config, _depth(plan.config)
    size = -(-_first_tile_size(plan) // config.stride) * config.stride
    chunks = {}
    for axis in (stack.ndim - 2, stack.ndim - 1):
        sizes = stack.chunks[axis]
        if len(sizes) > 1 and (
            min(sizes) < depth or any(part % config.stride for part in sizes[:-1])
        ):
            chunks[axis] = _even_chunks(stack.shape[axis], max(size, depth), depth)
    return stack.rechunk(chunks) if chunks else stack


def _first_tile_size(plan: DenoisePlan) -> int:
    """Tile size to begin with where memory is sufficient."""
    asked = plan.options.tile_size
    return usual_tile_size(plan.device, plan.config) if asked is None else int(asked)


def _even_chunks(length: int, size: int, smallest: int) -> tuple[int, ...]:
    """Chunks of `size`; a last one below `smallest` is joined to the one before."""
    whole, rest = divmod(length, size)
    if rest and (rest >= smallest or not whole):
        return (size,) * whole + (rest,)
    return (size,) * (whole - 1) + (size + rest,)


def _change_of_block(block: NDArray[Any], scale: NDArray[Any], plan: DenoisePlan) -> NDArray[Any]:
    """What is to be subtracted from each plane of a block, whose scale is ``(..., 1, 1)``."""
    result = np.empty_like(block)
    for index in np.ndindex(block.shape[:-2]):
        unit = 1 / float(scale[index][0, 0])
        sigma = None if plan.sigma is None else plan.sigma / float(scale[index][0, 0])
        step = unit if plan.dtype.kind in "iu" else 0.0
        result[index] = _change_of_plane(block[index], sigma, step, plan)
    return result


def _change_of_plane(
    plane: NDArray[Any], sigma: float | None, step: float, plan: DenoisePlan
) -> NDArray[Any]:
    """What is to be subtracted from one plane of a chunk, including its overlap.

    The border of the overlap is computed as if it were the border of the image; dask trims it
    where it is not.
    """
    shape, config, engine = (plane.shape[0], plane.shape[1]), plan.config, plan.loaded_engine()
    tiles = _fitted_tiles(plan, shape).tiles()
    hot = find_hot_pixels(plane, step)
    seen, result = hot.replaced(plane), np.empty_like(plane)

    def work() -> Any:
        for tile in tiles:
            values = pad_to_multiple(seen[tile.window], tile.shape)[None]
            if sigma is not None:
                values = np.concatenate([values, np.full_like(values, sigma)])
            yield tile, values

    for tile, output in engine.run(work(), parallel=len(tiles) > 1):
        core, place = tile.core(shape), tile.target(shape)
        result[place] = output[core] if config.residual else seen[place] - output[core]
    if len(hot):
        at, action = (hot.rows, hot.columns), plan.options.hot_pixels
        of_hot = change_at(hot, plane[at].astype(np.float64) - seen[at], result, action)
        result[at] = of_hot
        if hot.to_report(of_hot, action).any():
            warnings.warn(hot_pixels_message(action), UserWarning, stacklevel=2)
    return result


def _fitted_tiles(plan: DenoisePlan, shape: tuple[int, int]) -> TileGrid:
    """Tiles that fit into the memory available now, on the machine that computes this chunk."""
    free, size = available_memory(), _first_tile_size(plan)
    tiles = fit_tiles(plan.loaded_engine(), plan.config, shape, 1, size, free)
    if plan.options.tile_size is not None and tiles.size < size:
        warnings.warn(tiles_reduced_warning(size, tiles.size, free), stacklevel=3)
    return tiles

"""Downsampling by block means, for the levels of image pyramids."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BAND_BYTES", "block_means", "shrunk_bands"]

BAND_BYTES = 64 * 2**20
"""How much of a level is in memory while the next one is computed."""


def shrunk_bands(
    large: Any, y: int, size: tuple[int, int]
) -> Iterator[tuple[tuple[Any, ...], NDArray[Any]]]:
    """Bands of rows of a smaller level, each with its index there.

    Parameters
    ----------
    large : object
        An array; the axes before its rows are handled one index at a time.
    y : int
        The axis of rows; columns are the next one.
    size : tuple (int, int)
        Rows and columns of the level. Where they are no whole fraction of those of `large`, blocks
        differ by a pixel.
    """
    height, width = large.shape[y : y + 2]
    starts_y, starts_x = _starts(height, size[0]), _starts(width, size[1])
    row_bytes = 8 * math.prod(large.shape[y + 1 :]) * math.ceil(height / size[0])
    rows = max(1, BAND_BYTES // row_bytes)
    for leading in np.ndindex(*large.shape[:y]):
        for start in range(0, size[0], rows):
            stop = min(start + rows, size[0])
            first, end = int(starts_y[start]), int(starts_y[stop]) if stop < size[0] else height
            band = np.asarray(large[(*leading, slice(first, end))])
            yield (
                (*leading, slice(start, stop)),
                block_means(band, starts_y[start:stop] - first, starts_x),
            )


def _starts(large: int, small: int) -> NDArray[Any]:
    """Where the blocks begin: all of the same length, except perhaps the last, if possible."""
    step = max(1, round(large / small))
    regular = small in (large // step, -(-large // step))
    return np.arange(small) * step if regular else np.arange(small) * large // small


def block_means(band: NDArray[Any], starts_y: NDArray[Any], starts_x: NDArray[Any]) -> NDArray[Any]:
    """The mean of each block of rows and columns, in the dtype of `band`.

    Blocks that are cut off at the end are means of fewer pixels.
    """
    working = band.astype(np.result_type(band.dtype, np.float64))
    sums = np.add.reduceat(np.add.reduceat(working, starts_y, axis=0), starts_x, axis=1)
    counts = np.outer(
        np.diff(starts_y, append=band.shape[0]), np.diff(starts_x, append=band.shape[1])
    )
    means = sums / counts.reshape(counts.shape + (1,) * (band.ndim - 2))
    rounded: NDArray[Any] = np.rint(means) if band.dtype.kind in "iub" else means
    return rounded.astype(band.dtype)

"""Pixels of a plane: statistics, reading, scaling for the network, and rounding back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dn_core.inference.axes import Plane
from dn_core.inference.tiling import pad_to_multiple

__all__ = [
    "NonFinite",
    "Statistics",
    "blend",
    "blocks",
    "from_float",
    "power_of_two",
    "read_window",
    "statistics",
    "to_float",
]

NonFinite = Literal["raise", "fill"]
ScalarT = TypeVar("ScalarT", bound=np.generic)

# Statistics are computed from blocks of about this many pixels, so that a huge plane needs little
# memory.
BLOCK_PIXELS = 2**21
# A pixel that is not finite is replaced by the mean of the finite ones this near, while the network
# runs.
FILL_RADIUS = 3
# Beyond this range float32 arithmetic would overflow or lose digits; such planes are scaled by a
# power of two.
LARGE, SMALL = 1e30, 1e-30


@dataclass(frozen=True, slots=True)
class Statistics:
    """Range and mean of the finite pixels of a plane, known before it is denoised.

    Attributes
    ----------
    low, high, mean : float
        Smallest and largest finite pixel, and their mean.
    bad : int, default 0
        How many pixels are NaN or infinite.
    first_bad : tuple (int, int), optional
        Row and column of the first of them; None without any.
    """

    low: float
    high: float
    mean: float
    bad: int = 0
    first_bad: tuple[int, int] | None = None

    @property
    def constant(self) -> bool:
        """Whether all pixels are the same: there is no noise then."""
        return self.low == self.high

    @property
    def scale(self) -> float:
        """The power of two that pixels are divided by; 1 except for extreme values."""
        return float(power_of_two(np.float64(self.low), np.float64(self.high)))


def power_of_two(low: Any, high: Any) -> Any:
    """Scale of planes of this range: 1 for ordinary ones, else a power of two.

    The power of two brings the largest absolute value near 1.

    Parameters
    ----------
    low, high : object
        Smallest and largest pixel: numbers, or arrays of any shape.
    """
    largest = np.maximum(np.abs(np.asarray(low, np.float64)), np.abs(np.asarray(high, np.float64)))
    ordinary = ((largest > SMALL) & (largest < LARGE)) | (largest == 0)
    return np.where(ordinary, 1.0, np.ldexp(1.0, np.minimum(np.frexp(largest)[1], 1023)))


def statistics(source: Any, plane: Plane) -> Statistics:
    """Range, mean and non-finite pixels of one plane, read block by block.

    Parameters
    ----------
    source : array
        The array.
    plane : Plane
        The plane of it.
    """
    low, high, bad, first = math.inf, -math.inf, 0, None
    means, counts = [], []
    for rows, columns in blocks(source, plane):
        pixels = np.asarray(source[plane.index(rows, columns)])
        if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
            bad += pixels.size - int(np.count_nonzero(finite))
            row, column = np.argwhere(~finite)[0]
            found = (rows.start + int(row), columns.start + int(column))
            first = found if first is None else min(first, found)
            pixels = pixels[finite]
        if pixels.size:
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
            with np.errstate(over="ignore"):
                means.append(float(pixels.astype(np.float64).mean()))
            counts.append(pixels.size)
    if not counts:
        return Statistics(0.0, 0.0, 0.0, bad, first)
    total = sum(counts)
    mean = math.fsum(value * (count / total) for value, count in zip(means, counts, strict=True))
    return Statistics(
        low,
        high,
        min(max(mean, low), high) if math.isfinite(mean) else low / 2 + high / 2,
        bad,
        first,
    )


def blocks(source: Any, plane: Plane) -> Iterator[tuple[slice, slice]]:
    """Blocks of about `BLOCK_PIXELS` that cover a plane.

    They follow the chunks of an array that has some, so that each chunk is decoded once.
    """
    height, width = plane.axes.plane_shape
    chunks = getattr(source, "chunks", None)
    chunk_rows, chunk_columns = (
        (chunks[axis] for axis in plane.axes.spatial) if chunks else (1, width)
    )
    columns = min(width, chunk_columns * max(1, BLOCK_PIXELS // (chunk_rows * chunk_columns)))
    rows = min(height, chunk_rows * max(1, BLOCK_PIXELS // (chunk_rows * columns)))
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def read_window(
    source: Any, plane: Plane, window: tuple[slice, slice], found: Statistics
) -> NDArray[Any]:
    """The pixels of a window.

    Parameters
    ----------
    source : array
        The array.
    plane : Plane
        The plane of it.
    window : tuple (slice, slice)
        Rows and columns; it may end beyond the plane, whose last row and column are repeated there.
    found : Statistics
        Statistics of the plane. Where it has non-finite pixels, these are filled from around.
    """
    height, width = plane.axes.plane_shape
    rows, columns = (
        slice(part.start, min(part.stop, extent))
        for part, extent in zip(window, (height, width), strict=True)
    )
    if found.bad:
        pixels = _filled(source, plane, rows, columns, found.mean)
    else:
        pixels = np.asarray(source[plane.index(rows, columns)])
    return pad_to_multiple(
        pixels, (window[0].stop - window[0].start, window[1].stop - window[1].start)
    )


def to_float(
    pixels: NDArray[Any], offset: float, scale: float, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """``(pixels - offset) / scale`` in `dtype`.

    Computed in float64 where float32 would lose digits of the pixels.
    """
    narrow = pixels.dtype.itemsize <= 2 or (pixels.dtype.kind == "f" and pixels.dtype.itemsize == 4)
    wide = dtype == np.float64 or not narrow or scale != 1.0
    values: NDArray[Any] = pixels.astype(np.float64 if wide else np.float32)
    if scale != 1.0:  # before the offset, whose subtraction could overflow
        values, offset = values / scale, offset / scale
    if offset:
        values = values - values.dtype.type(offset)
    return values.astype(dtype, copy=False)


def from_float(pixels: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    """``pixels - change`` in the dtype of the pixels.

    Integers are rounded and clipped; non-finite pixels are unchanged.
    """
    dtype = pixels.dtype
    wide = (
        np.float64
        if dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize > 2)
        else np.float32
    )
    with np.errstate(over="ignore", invalid="ignore"):
        values = pixels.astype(wide) - change.astype(wide, copy=False)
        if dtype.kind == "f":
            limit = float(np.finfo(dtype).max)
            result = np.clip(values, -limit, limit).astype(dtype)
            return np.where(np.isfinite(pixels), result, pixels)
    info = np.iinfo(dtype)
    np.rint(values, out=values)
    # The largest float that fits: float64 cannot hold the largest 64-bit integers and would round
    # them up, out of range.
    top = (
        float(info.max)
        if int(float(info.max)) <= info.max
        else float(np.nextafter(float(info.max), 0))
    )
    clipped: NDArray[Any] = np.clip(values, float(info.min), top).astype(dtype)
    # float64 cannot hold all 64-bit integers: pixels that do not change keep their exact value.
    return np.where(change == 0, pixels, clipped) if dtype.itemsize > 4 else clipped


def blend(image: NDArray[ScalarT], denoised: NDArray[ScalarT], amount: float) -> NDArray[ScalarT]:
    """Mix an image with its denoised version.

    ``denoise(image, amount=a)`` is ``blend(image, denoise(image), a)``, pixel for pixel.

    Parameters
    ----------
    image : numpy.ndarray
        The noisy image, of any shape and any integer or float type.
    denoised : numpy.ndarray
        The denoised image, of the same shape and dtype.
    amount : float
        0 to 1: 0 gives `image`, 1 gives `denoised`.

    Returns
    -------
    numpy.ndarray
        ``(1 - amount) * image + amount * denoised`` in the same dtype; integers are rounded.

    Examples
    --------
    >>> blend(np.array([100, 200], np.uint8), np.array([110, 190], np.uint8), 0.25)
    array([102, 198], dtype=uint8)
    """
    if amount == 1:
        return denoised
    wide = np.float64 if image.dtype.itemsize > 2 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        change = image.astype(wide) - denoised.astype(wide)
    return from_float(image, change * wide(amount))


def _filled(
    source: Any, plane: Plane, rows: slice, columns: slice, fallback: float
) -> NDArray[Any]:
    """Pixels with the non-finite ones replaced by the mean of the finite ones near them.

    The result does not depend on how the plane is cut into tiles.
    """
    height, width = plane.axes.plane_shape
    top, left = max(rows.start - FILL_RADIUS, 0), max(columns.start - FILL_RADIUS, 0)
    pixels = np.array(
        source[
            plane.index(
                slice(top, min(rows.stop + FILL_RADIUS, height)),
                slice(left, min(columns.stop + FILL_RADIUS, width)),
            )
        ]
    )
    finite = np.isfinite(pixels)
    result = pixels.copy()
    for row, column in np.argwhere(~finite):
        near = (
            slice(max(row - FILL_RADIUS, 0), row + FILL_RADIUS + 1),
            slice(max(column - FILL_RADIUS, 0), column + FILL_RADIUS + 1),
        )
        values = pixels[near][finite[near]]
        result[row, column] = values.mean(dtype=np.float64) if values.size else fallback
    return result[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

"""Hot and dead pixels: single pixels that stand out from all around them far beyond the noise.

A network sees such a pixel as a bright structure and paints a spot of some 20 pixels around it. It is found by its neighbourhood alone,
so that tiles and chunks find the same ones, and the network is given the median of its neighbours in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["MARGIN", "HotPixelAction", "HotPixels", "change_at", "find_hot_pixels", "hot_pixels_message"]

HotPixelAction = Literal["keep", "remove"]

STANDS_OUT = 5.0
"""Standard deviations of the noise around it beyond which a pixel is replaced in what the network sees; one in 3 million by chance."""
NOT_NOISE = 12.0
"""Standard deviations of the noise that the network finds around it beyond which a pixel is no noise, and kept."""
TOLD = 15.0
"""Standard deviations of the noise around it beyond which it is told: details of clean images stand out by up to that."""
ALONE = 0.3
"""Part of its height that at most one neighbour may have: a point of light that optics blur by 0.65 pixels and more has four of them."""
CROWD_RADIUS, CROWD = 16, 3
"""So many of them within so many pixels are no defects: single photons with gain, or salt and pepper, are the noise itself."""
RADIUS = 5
"""Of the neighbourhood whose noise counts."""
MARGIN = CROWD_RADIUS + RADIUS + 1
"""Pixels around a pixel that decide whether it is one."""
GAUSSIAN_95 = 1.96
"""Standard deviations that 95% of Gaussian noise lies within."""
MEAN_DEVIATION = 0.8
"""The mean absolute deviation of Gaussian noise, in standard deviations."""

_RING = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]).T
_SECOND_RING = np.array([(row, column) for row in range(-2, 3) for column in range(-2, 3) if 2 in (abs(row), abs(column))]).T
_SQUARE = np.mgrid[-RADIUS - 1 : RADIUS + 2, -RADIUS - 1 : RADIUS + 2].reshape(2, -1)
_LINES = np.array([(row, column) for row in (-4, -2, 2, 4) for column in range(-4, 5)]).T
_AROUND = np.hypot(*np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]) > 1.5  # without the pixel and its neighbours
_NEAR = np.array([(row, column) for row in (-2, -1, 0, 1, 2) for column in (-2, -1, 0, 1, 2) if (row, column) != (0, 0)]).T


@dataclass(frozen=True, eq=False, slots=True)
class HotPixels:
    """Pixels of a plane or window that stand out alone.

    Attributes
    ----------
    rows, columns
        Where they are.
    values
        The median of each one's eight neighbours, as float64.
    told
        Whether it stands out so far that a user is told.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.float64]
    told: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    def inside(self, window: tuple[slice, slice]) -> HotPixels:
        """Those in a window, counted from its corner."""
        rows, columns = self.rows - window[0].start, self.columns - window[1].start
        shape = tuple(part.stop - part.start for part in window)
        here = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        return HotPixels(rows[here], columns[here], self.values[here], self.told[here])

    def to_tell(self, change: NDArray[np.float64], action: HotPixelAction) -> NDArray[np.bool_]:
        """Which of them are told after `change_at`: those that stand out far, and were kept or asked to be removed."""
        told: NDArray[np.bool_] = self.told & ((change == 0) | (action == "remove"))
        return told

    def replaced(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The pixels with the median of the neighbours in place of each; the same array where there are none."""
        if not len(self):
            return pixels
        result = pixels.copy()
        result[self.rows, self.columns] = np.rint(self.values) if pixels.dtype.kind in "iu" else self.values
        return result


def find_hot_pixels(pixels: NDArray[Any], step: float | None = None) -> HotPixels:
    """Find pixels that stand out alone in a plane or a part of one.

    Such a pixel is above (or below) all its neighbours, by `STANDS_OUT` standard deviations of the noise within `RADIUS` pixels, and at
    most one of its neighbours goes with it. Where nothing around it differs there is no noise to go by, and nothing is found. Pairs of them
    are not found, nor what stands in a crowd.

    Parameters
    ----------
    pixels
        ``(height, width)``, finite, of any integer or float type. What is found within `MARGIN` pixels of a cut edge may differ from what
        is found in the whole plane.
    step
        What the camera's whole numbers differ by, the least noise that counts; by default 1 for integers and 0 for floats.
    """
    if min(pixels.shape) < 2 * RADIUS + 3:
        return _none()
    padded = np.pad(pixels, RADIUS + 1, mode="reflect")
    rows, columns = _peaks(padded)
    neighbours = np.sort(_values(padded, rows, columns, _RING).T, axis=0)
    medians = (neighbours[3] + neighbours[4]) / 2
    heights = padded[rows, columns] - medians
    background = np.median(_values(padded, rows, columns, _SECOND_RING), axis=1)
    followers = np.where(heights > 0, neighbours[6] - background, background - neighbours[1])
    spread = np.abs(neighbours - medians).mean(axis=0)
    heights = np.abs(heights)
    alone = (heights > STANDS_OUT * MEAN_DEVIATION * spread) & (followers <= ALONE * heights)
    # Most of these are chance; a look at few pixels spares them the closer one.
    alone[alone] = heights[alone] > 0.7 * STANDS_OUT * _rough_noise_around(padded, rows[alone], columns[alone])
    rows, columns, medians, heights = rows[alone], columns[alone], medians[alone], heights[alone]
    noise = _noise_around(padded, rows, columns)
    floor = np.maximum(noise, float(pixels.dtype.kind in "iu") if step is None else step)
    found = (noise > 0) & (heights > STANDS_OUT * floor)
    rows, columns = rows[found] - RADIUS - 1, columns[found] - RADIUS - 1
    some = ~_crowded(rows, columns)
    told = (heights > TOLD * floor)[found]
    return HotPixels(rows[some], columns[some], medians[found][some], told[some])


def change_at(hot: HotPixels, beyond: NDArray[Any], change: NDArray[Any], action: HotPixelAction) -> NDArray[np.float64]:
    """What is to be subtracted at each of the `hot` pixels.

    Where the noise that the network finds around it is strong enough to explain a pixel, it is noise and takes the denoised value. Else it
    is kept as it is, or removed as well.

    Parameters
    ----------
    beyond
        How far each is from the value that the network saw in its place, in units of `change`.
    change
        What the network subtracts, ``(height, width)``.
    """
    at = hot.rows, hot.columns
    whole: NDArray[np.float64] = beyond + change[at].astype(np.float64)
    if action == "remove":
        return whole
    rows, columns = (np.clip(place + _NEAR[axis][:, None], 0, change.shape[axis] - 1) for axis, place in enumerate(at))
    noise = np.sqrt(np.mean(np.square(change[rows, columns], dtype=np.float64), axis=0))
    return np.where(np.abs(whole) > NOT_NOISE * noise, 0.0, whole)


def hot_pixels_message(action: HotPixelAction, count: int | None = None, first: tuple[int, ...] = ()) -> str:
    """What a user is told of `count` pixels in all planes together, or of an unknown number."""
    if count is None:
        return f"hot or dead pixels were {'removed' if action == 'remove' else 'kept, and their neighbours denoised as without them'}."
    what = f"1 hot or dead pixel, at {first}," if count == 1 else f"{count} hot or dead pixels, the first at {first},"
    are, them, their = ("is", "it", "its") if count == 1 else ("are", "them", "their")
    if action == "remove":
        return f"{what} {are} removed."
    return f"{what} {are} kept, and {their} neighbours denoised as without {them}. Use hot_pixels='remove' to remove {them}."


def _none() -> HotPixels:
    empty = np.zeros(0, np.intp)
    return HotPixels(empty, empty, np.zeros(0), np.zeros(0, np.bool_))


def _peaks(padded: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of pixels beyond all their neighbours, by more than these differ among themselves."""
    pixels = padded[RADIUS:-RADIUS, RADIUS:-RADIUS]
    if pixels.dtype.kind == "i":  # differences may not fit
        pixels = pixels.astype(np.float64)
    inner, highest, lowest = pixels[1:-1, 1:-1], _of_neighbours(pixels, np.maximum), _of_neighbours(pixels, np.minimum)
    with np.errstate(over="ignore"):
        spread = highest - lowest
        # Where the first condition does not hold, the difference of unsigned numbers is wrong, and does not count.
        above = (inner > highest) & (inner - highest > spread)
        below = (inner < lowest) & (lowest - inner > spread)
    rows, columns = np.nonzero(above | below)
    return rows + RADIUS + 1, columns + RADIUS + 1


def _of_neighbours(pixels: NDArray[Any], extreme: Callable[..., NDArray[Any]]) -> NDArray[Any]:
    """The highest or lowest of the eight neighbours of each inner pixel."""
    sides = extreme(pixels[:, :-2], pixels[:, 2:])
    rows = extreme(sides, pixels[:, 1:-1])
    return extreme(extreme(rows[:-2], rows[2:]), sides[1:-1])


def _values(padded: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp], offsets: NDArray[np.intp]) -> NDArray[np.float64]:
    """Pixels at offsets from places, ``(places, offsets)``."""
    width = padded.shape[1]
    around = (rows * width + columns)[:, None] + (offsets[0] * width + offsets[1])
    values: NDArray[np.float64] = padded.ravel()[around].astype(np.float64)
    return values


def _rough_noise_around(padded: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """Standard deviation of noise, from differences of pixels side by side on four lines around each place."""
    lines = _values(padded, rows, columns, _LINES).reshape(-1, 4, 9)
    rough: NDArray[np.float64] = np.abs(np.diff(lines, axis=2)).mean(axis=(1, 2)) / MEAN_DEVIATION / np.sqrt(2)
    return rough


def _noise_around(padded: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.float64]:
    """Standard deviation of the difference between a pixel and its neighbours' median around each place, as if all there were noise.

    From differences between a pixel and the mean of the two beside it, so that slopes do not count; 95 of 100 lie within, so that
    texture and rare photons do.
    """
    side = 2 * RADIUS + 3
    window = _values(padded, rows, columns, _SQUARE).reshape(-1, side, side)
    middle = window[:, 1:-1, 1:-1]
    across = middle - (window[:, 1:-1, :-2] + window[:, 1:-1, 2:]) / 2
    down = middle - (window[:, :-2, 1:-1] + window[:, 2:, 1:-1]) / 2
    rank = round(0.95 * np.count_nonzero(_AROUND))
    strongest = np.maximum(*(np.partition(np.abs(each[:, _AROUND]), rank, axis=1)[:, rank] for each in (across, down)))
    # The difference to two neighbours varies by sqrt(3/2), that to the median of eight by 1.09.
    noise: NDArray[np.float64] = strongest / GAUSSIAN_95 / np.sqrt(1.5) * 1.09
    return noise


def _crowded(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether there are `CROWD` or more, itself counted, within `CROWD_RADIUS` of each."""
    result = np.zeros(len(rows), np.bool_)
    first = last = 0
    for number, row in enumerate(rows):  # in order of rows
        while rows[first] < row - CROWD_RADIUS:
            first += 1
        while last < len(rows) and rows[last] <= row + CROWD_RADIUS:
            last += 1
        result[number] = np.count_nonzero(np.abs(columns[first:last] - columns[number]) <= CROWD_RADIUS) >= CROWD
    return result

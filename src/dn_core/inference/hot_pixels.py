"""Hot and dead pixels: single pixels that differ from their surroundings far beyond the noise.

A network sees such a pixel as a bright structure and paints a spot of some 20 pixels around it. It
is found by its neighbourhood alone, so that tiles and chunks find the same ones, and the network is
given the median of its neighbours in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MARGIN",
    "HotPixelAction",
    "HotPixels",
    "change_at",
    "find_hot_pixels",
    "hot_pixels_message",
]

HotPixelAction = Literal["keep", "remove"]

STANDS_OUT = 5.0
"""Standard deviations of the noise around a pixel beyond which the network does not see it.

Gaussian noise exceeds them once in 3 million pixels."""
NOT_NOISE = 12.0
"""Standard deviations of the noise that the network finds beyond which a pixel is kept."""
REPORTED = 15.0
"""Standard deviations of the noise around a pixel beyond which it is reported.

Details of clean images differ from their surroundings by up to this."""
ALONE = 0.3
"""Part of a pixel's height that at most one neighbour may have.

A point of light that optics blur by 0.65 pixels or more has four such neighbours."""
CROWD_RADIUS, CROWD = 16, 3
"""At least `CROWD` within `CROWD_RADIUS` pixels are not defects but noise.

Examples are single photons with gain, and salt-and-pepper noise."""
RADIUS = 5
"""Radius in pixels of the neighbourhood in which noise is measured."""
MARGIN = CROWD_RADIUS + RADIUS + 1
"""Pixels around a pixel that decide whether it is hot."""
GAUSSIAN_95 = 1.96
"""Standard deviations within which 95% of Gaussian noise lies."""
MEAN_DEVIATION = 0.8
"""The mean absolute deviation of Gaussian noise, in standard deviations."""

_RING = np.array(
    [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
).T
_SECOND_RING = np.array(
    [
        (row, column)
        for row in range(-2, 3)
        for column in range(-2, 3)
        if 2 in (abs(row), abs(column))
    ]
).T
_SQUARE = np.mgrid[-RADIUS - 1 : RADIUS + 2, -RADIUS - 1 : RADIUS + 2].reshape(2, -1)
_LINES = np.array([(row, column) for row in (-4, -2, 2, 4) for column in range(-4, 5)]).T
_AROUND = (
    np.hypot(*np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]) > 1.5
)  # without the pixel and its neighbours
_NEAR = np.array(
    [
        (row, column)
        for row in (-2, -1, 0, 1, 2)
        for column in (-2, -1, 0, 1, 2)
        if (row, column) != (0, 0)
    ]
).T


@dataclass(frozen=True, eq=False, slots=True)
class HotPixels:
    """Isolated hot and dead pixels of a plane or window.

    Attributes
    ----------
    rows, columns : ndarray of intp
        Their positions.
    values : ndarray of float64
        Median of the eight neighbours of each, as float64.
    reported : ndarray of bool_
        Whether each one differs so far that it is reported to the user.
    """

    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    values: NDArray[np.float64]
    reported: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    def inside(self, window: tuple[slice, slice]) -> HotPixels:
        """Those in a window, with positions relative to its corner."""
        rows, columns = self.rows - window[0].start, self.columns - window[1].start
        shape = tuple(part.stop - part.start for part in window)
        here = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
        return HotPixels(rows[here], columns[here], self.values[here], self.reported[here])

    def to_report(self, change: NDArray[np.float64], action: HotPixelAction) -> NDArray[np.bool_]:
        """Which of them are reported: far ones that were kept, or removed on request.

        Parameters
        ----------
        change : ndarray of float64
            What is subtracted from each, as `change_at` returns it.
        action : HotPixelAction
            What was done with them.
        """
        reported: NDArray[np.bool_] = self.reported & ((change == 0) | (action == "remove"))
        return reported

    def replaced(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The pixels with the median of the neighbours in place of each hot pixel.

        The same array where there are none.
        """
        if not len(self):
            return pixels
        result = pixels.copy()
        result[self.rows, self.columns] = (
            np.rint(self.values) if pixels.dtype.kind in "iu" else self.values
        )
        return result


def find_hot_pixels(pixels: NDArray[Any], step: float | None = None) -> HotPixels:
    """Find isolated hot and dead pixels in a plane or a part of one.

    Such a pixel is above (or below) all its neighbours, by `STANDS_OUT` standard deviations of the
    noise within `RADIUS` pixels, and at most one of its neighbours is similar. Where all pixels
    around it are equal the noise cannot be measured, and nothing is found. Pairs and crowds of
    such pixels are not found.

    Parameters
    ----------
    pixels : ndarray
        ``(height, width)``, finite, of any integer or float type. Within `MARGIN` pixels of a crop
        edge the result may differ from that of the whole plane.
    step : float, optional
        Quantisation step of the camera, the least noise that counts; by default 1 for integers and
        0 for floats.
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
    # Most of these occur by chance; a rough estimate from few pixels excludes them cheaply.
    alone[alone] = heights[alone] > 0.7 * STANDS_OUT * _rough_noise_around(
        padded, rows[alone], columns[alone]
    )
    rows, columns, medians, heights = rows[alone], columns[alone], medians[alone], heights[alone]
    noise = _noise_around(padded, rows, columns)
    floor = np.maximum(noise, float(pixels.dtype.kind in "iu") if step is None else step)
    found = (noise > 0) & (heights > STANDS_OUT * floor)
    rows, columns = rows[found] - RADIUS - 1, columns[found] - RADIUS - 1
    some = ~_crowded(rows, columns)
    reported = (heights > REPORTED * floor)[found]
    return HotPixels(rows[some], columns[some], medians[found][some], reported[some])


def change_at(
    hot: HotPixels, beyond: NDArray[Any], change: NDArray[Any], action: HotPixelAction
) -> NDArray[np.float64]:
    """What is subtracted from each of the `hot` pixels.

    Where the noise that the network finds around a pixel can explain it, the pixel is noise and
    gets the denoised value. Otherwise it is kept, or removed if requested.

    Parameters
    ----------
    hot : HotPixels
        The hot pixels.
    beyond : ndarray
        Difference of each from the value that the network saw in its place, in units of `change`.
    change : ndarray
        What the network subtracts, ``(height, width)``.
    action : HotPixelAction
        ``"keep"`` or ``"remove"``.
    """
    at = hot.rows, hot.columns
    whole: NDArray[np.float64] = beyond + change[at].astype(np.float64)
    if action == "remove":
        return whole
    rows, columns = (
        np.clip(place + _NEAR[axis][:, None], 0, change.shape[axis] - 1)
        for axis, place in enumerate(at)
    )
    noise = np.sqrt(np.mean(np.square(change[rows, columns], dtype=np.float64), axis=0))
    return np.where(np.abs(whole) > NOT_NOISE * noise, 0.0, whole)


def hot_pixels_message(
    action: HotPixelAction, count: int | None = None, first: tuple[int, ...] = ()
) -> str:
    """The message about `count` pixels in all planes together, or about an unknown number.

    Parameters
    ----------
    action : HotPixelAction
        What was done with them.
    count : int, optional
        Their number; None where it is unknown.
    first : tuple of int, optional
        Position of the first.
    """
    if count is None:
        if action == "remove":
            return "hot or dead pixels were removed."
        return "hot or dead pixels were kept, and their neighbours denoised as without them."
    what = (
        f"1 hot or dead pixel, at {first},"
        if count == 1
        else f"{count} hot or dead pixels, the first at {first},"
    )
    are, them, their = ("is", "it", "its") if count == 1 else ("are", "them", "their")
    if action == "remove":
        return f"{what} {are} removed."
    return (
        f"{what} {are} kept, and {their} neighbours denoised as without {them}. "
        f"Use hot_pixels='remove' to remove {them}."
    )


def _none() -> HotPixels:
    empty = np.zeros(0, np.intp)
    return HotPixels(empty, empty, np.zeros(0), np.zeros(0, np.bool_))


def _peaks(padded: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of pixels beyond all their neighbours.

    They exceed them by more than the neighbours differ among themselves.
    """
    pixels = padded[RADIUS:-RADIUS, RADIUS:-RADIUS]
    if pixels.dtype.kind == "i":  # differences may not fit
        pixels = pixels.astype(np.float64)
    inner, highest, lowest = (
        pixels[1:-1, 1:-1],
        _of_neighbours(pixels, np.maximum),
        _of_neighbours(pixels, np.minimum),
    )
    with np.errstate(over="ignore"):
        spread = highest - lowest
        # Where the first condition is false the difference of unsigned numbers wraps around, and
        # is ignored.
        above = (inner > highest) & (inner - highest > spread)
        below = (inner < lowest) & (lowest - inner > spread)
    rows, columns = np.nonzero(above | below)
    return rows + RADIUS + 1, columns + RADIUS + 1


def _of_neighbours(pixels: NDArray[Any], extreme: Callable[..., NDArray[Any]]) -> NDArray[Any]:
    """The highest or lowest of the eight neighbours of each inner pixel."""
    sides = extreme(pixels[:, :-2], pixels[:, 2:])
    rows = extreme(sides, pixels[:, 1:-1])
    return extreme(extreme(rows[:-2], rows[2:]), sides[1:-1])


def _values(
    padded: NDArray[Any],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    offsets: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Pixels at offsets from places, ``(places, offsets)``."""
    width = padded.shape[1]
    around = (rows * width + columns)[:, None] + (offsets[0] * width + offsets[1])
    values: NDArray[np.float64] = padded.ravel()[around].astype(np.float64)
    return values


def _rough_noise_around(
    padded: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Standard deviation of noise, from differences of adjacent pixels on four lines around."""
    lines = _values(padded, rows, columns, _LINES).reshape(-1, 4, 9)
    rough: NDArray[np.float64] = (
        np.abs(np.diff(lines, axis=2)).mean(axis=(1, 2)) / MEAN_DEVIATION / np.sqrt(2)
    )
    return rough


def _noise_around(
    padded: NDArray[Any], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Standard deviation, from noise, of a pixel minus the median of its neighbours.

    Estimated around each position from differences between a pixel and the mean of the two beside
    it, so that gradients do not count, and from their 95th percentile, so that texture and rare
    photons do.
    """
    side = 2 * RADIUS + 3
    window = _values(padded, rows, columns, _SQUARE).reshape(-1, side, side)
    middle = window[:, 1:-1, 1:-1]
    across = middle - (window[:, 1:-1, :-2] + window[:, 1:-1, 2:]) / 2
    down = middle - (window[:, :-2, 1:-1] + window[:, 2:, 1:-1]) / 2
    rank = round(0.95 * np.count_nonzero(_AROUND))
    strongest = np.maximum(
        *(np.partition(np.abs(each[:, _AROUND]), rank, axis=1)[:, rank] for each in (across, down))
    )
    # The difference to two neighbours varies by sqrt(3/2), that to the median of eight by 1.09.
    noise: NDArray[np.float64] = strongest / GAUSSIAN_95 / np.sqrt(1.5) * 1.09
    return noise


def _crowded(rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether `CROWD` or more, including itself, lie within `CROWD_RADIUS` of each."""
    result = np.zeros(len(rows), np.bool_)
    first = last = 0
    for number, row in enumerate(rows):  # in order of rows
        while rows[first] < row - CROWD_RADIUS:
            first += 1
        while last < len(rows) and rows[last] <= row + CROWD_RADIUS:
            last += 1
        result[number] = (
            np.count_nonzero(np.abs(columns[first:last] - columns[number]) <= CROWD_RADIUS) >= CROWD
        )
    return result

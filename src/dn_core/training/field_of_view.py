"""The field of view of a made-up microscope: its random numbers, its cells and its optics.

Everything is periodic: what leaves the field on one side enters it on the other, so that no edge
shows. Lengths are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cells", "Draws", "FieldOfView", "point_spread_cutoff"]

Image = NDArray[np.float64]

AIRY_WIDTH = 1.029
"""Full width at half maximum of an Airy disk times its cut-off frequency: 0.5145 (wavelength / NA)
times 2 NA / wavelength."""


def point_spread_cutoff(point_spread: float) -> float:
    """The frequency beyond which a microscope transmits nothing.

    Parameters
    ----------
    point_spread : float
        Full width at half maximum of its point spread (an Airy disk), in pixels.

    Returns
    -------
    float
        In cycles a pixel; above 0.5 the pixels, not the optics, limit the resolution.
    """
    return AIRY_WIDTH / point_spread


class Draws:
    """Random numbers that are the same with every version of numpy.

    numpy keeps the bits of its generators and what `random` makes of them, but may change how it
    draws from distributions; so those are made here.

    Parameters
    ----------
    seed : int or tuple of int
        Whole numbers of 0 or more.
    """

    def __init__(self, seed: int | tuple[int, ...]) -> None:
        self._random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).random

    def uniform(self, low: float, high: float) -> float:
        """A number from an interval."""
        return low + (high - low) * float(self._random())

    def log_uniform(self, low: float, high: float) -> float:
        """A number from an interval, evenly in its logarithm."""
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self._random()) < probability

    def uniforms(self, *shape: int) -> Image:
        """Numbers from 0 to 1."""
        values: Image = self._random(shape)
        return values

    def normals(self, *shape: int) -> Image:
        """Normal numbers of mean 0 and standard deviation 1, by Box and Muller."""
        radius = np.sqrt(-2 * np.log1p(-self._random(shape)))
        normals: Image = radius * np.cos(2 * np.pi * self._random(shape))
        return normals

    def brightnesses(self, spread: float, *shape: int) -> Image:
        """Log-normal numbers of median 1, none above `e^(2 spread)`."""
        return np.exp(spread * np.minimum(self.normals(*shape), 2.0))


@dataclass(frozen=True)
class Cells:
    """Cells that tile a field of view; some places may be empty.

    Attributes
    ----------
    rows, columns : ndarray
        ``(count,)``: their centres.
    index : ndarray of int64
        ``(size, size)``: the cell of each pixel.
    first, second : ndarray
        ``(size, size)``: distance of each pixel to the nearest and to the second nearest centre.
    bodies : ndarray
        ``(size, size)``, 0..1: how much cell there is, highest in the middle, 0 in empty places.
    """

    rows: Image
    columns: Image
    index: NDArray[np.int64]
    first: Image
    second: Image
    bodies: Image


class FieldOfView:
    """A square field that is seen through a microscope.

    Parameters
    ----------
    size : int
        Its side.
    draws : Draws
        Where all random numbers come from.
    point_spread : float
        Full width at half maximum of the optics' point spread, an Airy disk; the pixels, over
        which a camera integrates, come on top.

    Attributes
    ----------
    cell : float
        Diameter of its cells.
    """

    def __init__(self, size: int, draws: Draws, point_spread: float) -> None:
        self.size, self.draws, self.point_spread = size, draws, point_spread
        self.cell = min(draws.log_uniform(28, 220), 0.8 * size)

    @cached_property
    def _frequencies(self) -> tuple[Image, Image]:
        down = np.fft.fftfreq(self.size).astype(np.float64)
        right = np.fft.rfftfreq(self.size).astype(np.float64)
        return down[:, None], right[None, :]

    @cached_property
    def _squared_frequency(self) -> Image:
        down, right = self._frequencies
        squared: Image = down**2 + right**2
        return squared

    @cached_property
    def _transfer(self) -> Image:
        """Optical transfer of a circular pupil in incoherent light (Goodman, section 6.3).

        What lies beyond the pixels' own frequencies is folded back, as sampling does; only so is
        the sampled point spread nowhere negative.
        """
        cutoff = point_spread_cutoff(self.point_spread)
        down, right = self._frequencies
        folds = (
            range(-math.ceil(cutoff - 0.5), math.ceil(cutoff - 0.5) + 1) if cutoff > 0.5 else [0]
        )
        total = np.zeros((self.size, self.size // 2 + 1))
        for fold_down in folds:
            for fold_right in folds:
                squared = (down + fold_down) ** 2 + (right + fold_right) ** 2
                ratio = np.minimum(np.sqrt(squared) / cutoff, 1.0)
                total += 2 / np.pi * (np.arccos(ratio) - ratio * np.sqrt(1 - ratio**2))
        return total

    def seen(self, density: Image) -> Image:
        """What the microscope makes of a density of dye.

        Parameters
        ----------
        density : ndarray
            ``(size, size)``.

        Returns
        -------
        ndarray
            ``(size, size)``, 0 or more.
        """
        return np.maximum(self._filtered(density, self._transfer), 0.0)

    def blurred(self, image: Image, width: float) -> Image:
        """An image after a Gaussian blur of standard deviation `width`."""
        return self._filtered(image, np.exp(-2 * (np.pi * width) ** 2 * self._squared_frequency))

    def _filtered(self, image: Image, transfer: Image) -> Image:
        filtered: Image = np.fft.irfft2(np.fft.rfft2(image) * transfer, s=image.shape)
        return filtered

    def smooth(self, length: float) -> Image:
        """A random field of mean 0, standard deviation 1 and correlation length `length`."""
        return _standard(self.blurred(self.draws.uniforms(self.size, self.size) - 0.5, length))

    def texture(self, shortest: float, longest: float) -> Image:
        """A random field with equal power in all octaves from `shortest` to `longest` lengths.

        Mean 0, standard deviation 1.
        """
        squared = self._squared_frequency
        transfer = np.exp(-2 * (np.pi * shortest) ** 2 * squared) / np.sqrt(
            squared + (2 * np.pi * longest) ** -2
        )
        return _standard(self._filtered(self.draws.uniforms(self.size, self.size) - 0.5, transfer))

    @cached_property
    def cells(self) -> Cells:
        """Cells on a jittered grid with wavy outlines."""
        draws, size = self.draws, self.size
        side = max(1, round(size / self.cell))
        pitch = size / side
        grid = np.arange(side) * pitch
        shifts = pitch * draws.uniforms(2, 1, 1)
        jitter = draws.uniform(0.25, 0.5) * pitch * (2 * draws.uniforms(2, side, side) - 1)
        rows = (grid[:, None] + shifts[0] + jitter[0]).ravel()
        alternate = pitch / 2 * (np.arange(side) % 2)[:, None]  # rows of squares look made
        columns = (grid[None, :] + alternate + shifts[1] + jitter[1]).ravel()
        present = draws.uniforms(side * side) < draws.uniform(0.35, 1.2)
        present[draws.whole(0, side * side - 1)] = True
        wave = draws.uniform(0.02, 0.16) * pitch
        waves = (wave * self.smooth(0.22 * pitch), wave * self.smooth(0.22 * pitch))
        index, first, second = self._nearest(rows, columns, waves, 2.5 * pitch)
        radius = pitch * draws.uniform(0.45, 0.8) * draws.brightnesses(0.15, side * side)
        room = np.minimum(radius[index] - first, 0.5 * (second - first) + 0.02 * pitch)
        thick = np.clip(room / (draws.uniform(0.05, 0.5) * pitch), 0, 1)
        bodies: Image = np.where(present[index], np.sqrt(thick), 0.0)
        return Cells(rows, columns, index, first, second, bodies)

    def _nearest(
        self, rows: Image, columns: Image, waves: tuple[Image, Image], reach: float
    ) -> tuple[NDArray[np.int64], Image, Image]:
        """Nearest centre of each pixel, and the distances to it and to the second one.

        Only pixels within `reach` of a centre are looked at; each is moved by its `waves`.
        """
        size = self.size
        index = np.zeros((size, size), np.int64)
        first, second = np.full((2, size, size), (4.0 * size) ** 2)
        pixels = np.arange(size)
        copies = (-size, 0, size)  # of the field, which is periodic
        for number, row, column in (
            (number, row + down, column + right)
            for number, (row, column) in enumerate(zip(rows, columns, strict=True))
            for down in copies
            for right in copies
        ):
            window = tuple(
                slice(max(0, math.floor(place - reach)), max(0, math.ceil(place + reach)))
                for place in (row, column)
            )
            away = (pixels[window[0], None] - row + waves[0][window]) ** 2
            if away.size == 0:
                continue
            away = away + (pixels[window[1]] - column + waves[1][window]) ** 2
            best = first[window]
            second[window] = np.minimum(second[window], np.maximum(best, away))
            index[window][away < best] = number
            first[window] = np.minimum(best, away)
        return index, np.sqrt(first), np.sqrt(second)

    def around(
        self, row: float, column: float, reach: float
    ) -> tuple[tuple[NDArray[np.int64], ...], Image, Image]:
        """The pixels around a place, each at most once.

        Parameters
        ----------
        row, column : float
            The place; it may lie outside the field, which continues periodically.
        reach : float
            How far to go in each direction.

        Returns
        -------
        window : tuple of ndarray
            Index of the pixels in an image.
        down, right : ndarray
            ``(rows, 1)`` and ``(1, columns)``: how far they are from the place.
        """
        reach = min(reach, self.size / 2)
        count = min(math.ceil(2 * reach) + 1, self.size)
        down, right = (math.floor(place - reach) + np.arange(count) for place in (row, column))
        away_down: Image = np.asarray(down - row)[:, None]
        away_right: Image = np.asarray(right - column)[None, :]
        return np.ix_(down % self.size, right % self.size), away_down, away_right

    def points_in(self, weights: Image, count: int) -> tuple[Image, Image]:
        """Random places, likelier where the weights are higher.

        Parameters
        ----------
        weights : ndarray
            ``(size, size)``, 0 or more, not all 0.
        count : int
            How many.

        Returns
        -------
        rows, columns : ndarray
            ``(count,)``, with fractions.
        """
        steps = np.cumsum(weights.ravel())
        places = np.searchsorted(steps, self.draws.uniforms(count) * steps[-1], side="right")
        rows, columns = np.divmod(np.minimum(places, steps.size - 1), self.size)
        return rows + self.draws.uniforms(count), columns + self.draws.uniforms(count)

    def deposited(self, rows: Image, columns: Image, amounts: Image) -> Image:
        """Points of dye as a density, each shared by the four pixels around it.

        Parameters
        ----------
        rows, columns, amounts : ndarray
            Of one shape.

        Returns
        -------
        ndarray
            ``(size, size)``; its sum is that of the amounts.
        """
        size = self.size
        top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
        below, beside = rows - top, columns - left
        total = np.zeros(size * size)
        for down, share_down in ((0, 1 - below), (1, below)):
            for right, share_right in ((0, 1 - beside), (1, beside)):
                places = (top + down) % size * size + (left + right) % size
                total += np.bincount(
                    places.ravel(),
                    (amounts * share_down * share_right).ravel(),
                    minlength=size * size,
                )
        return total.reshape(size, size)


def _standard(field: Image) -> Image:
    """Mean 0 and standard deviation 1; a field without content stays 0."""
    field = field - field.mean()
    standard: Image = field / (field.std() + 1e-12)
    return standard

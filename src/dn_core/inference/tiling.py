"""Tiling: cut a plane into tiles whose results, put together, equal that of the whole plane.

A tile is read with a halo, the pixels around it that its result depends on. At the border of the
image there is no halo, so that the convolutions' own zero padding acts there just as in the whole
image. All tiles of a plane have one shape (an engine compiles for it once): the last ones are moved
inwards instead of being cut.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Span", "Tile", "TileGrid", "pad_to_multiple"]


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis, in pixels of the padded plane: what is read, and which part is kept.

    Attributes
    ----------
    start, stop : int
        What is read, halo included.
    keep_start, keep_stop : int
        What is kept of the result.
    """

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a plane.

    Attributes
    ----------
    rows, columns : Span
        What is read and kept along each axis.
    """

    rows: Span
    columns: Span

    @property
    def window(self) -> tuple[slice, slice]:
        """What to read; it may end beyond the plane by less than the network's `stride`."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def target(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Where the result goes in a plane of `shape`."""
        return tuple(
            slice(span.keep_start, min(span.keep_stop, size)) for span, size in self._with(shape)
        )  # type: ignore[return-value]

    def core(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Which part of the window's result goes to `target`."""
        return tuple(  # type: ignore[return-value]
            slice(span.keep_start - span.start, min(span.keep_stop, size) - span.start)
            for span, size in self._with(shape)
        )

    def _with(self, shape: tuple[int, int]) -> tuple[tuple[Span, int], tuple[Span, int]]:
        return (self.rows, shape[0]), (self.columns, shape[1])


@dataclass(frozen=True, slots=True)
class TileGrid:
    """How a plane is cut into tiles.

    Attributes
    ----------
    shape : tuple (int, int)
        Height and width of the plane.
    size : int
        Pixels on a side of a tile that were asked for, without the halo.
    halo : int
        Pixels around a tile that its result depends on, a multiple of `multiple`.
    multiple : int, default 1
        The network's `stride`: windows begin and end at its multiples.
    """

    shape: tuple[int, int]
    size: int
    halo: int
    multiple: int = 1

    @property
    def step(self) -> int:
        """Pixels on a side of a tile, without the halo: `size`, or the next multiple."""
        return -(-self.size // self.multiple) * self.multiple

    @property
    def counts(self) -> tuple[int, int]:
        """How many tiles there are along rows and columns."""
        rows, columns = self._spans
        return len(rows), len(columns)

    @property
    def total(self) -> int:
        """How many tiles there are in a plane."""
        rows, columns = self.counts
        return rows * columns

    @property
    def window_shape(self) -> tuple[int, int]:
        """Height and width of every tile, halo included."""
        (row, *_), (column, *_) = self._spans
        return row.stop - row.start, column.stop - column.start

    @property
    def window_pixels(self) -> int:
        """Pixels of every tile, halo included."""
        height, width = self.window_shape
        return height * width

    def tiles(self) -> list[Tile]:
        """All tiles, row by row; their targets cover each pixel once."""
        return [Tile(row, column) for row, column in itertools.product(*self._spans)]

    @property
    def _spans(self) -> list[list[Span]]:
        return [
            _spans(-(-extent // self.multiple) * self.multiple, self.step, self.halo)
            for extent in self.shape
        ]


def pad_to_multiple(plane: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The plane with its last row and column repeated up to `shape`."""
    missing = [(0, wanted - extent) for extent, wanted in zip(plane.shape, shape, strict=True)]
    return np.pad(plane, missing, mode="edge") if any(after for _, after in missing) else plane


def _spans(length: int, tile: int, halo: int) -> list[Span]:
    window = tile + 2 * halo
    if length <= window:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - window, tile), length - window]
    stops = [*(start + window - halo for start in starts[:-1]), length]
    return [
        Span(start, start + window, begin, stop)
        for start, begin, stop in zip(starts, [0, *stops[:-1]], stops, strict=True)
    ]

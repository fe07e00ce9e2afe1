"""Cut a plane into tiles that fit, so that put together they equal the plane computed whole.

A tile is read with a halo, the pixels around it that its result depends on. At the border of the image there is no halo, so that
the convolutions' own zero padding acts there just as in the whole image. All tiles of a plane have one shape (an engine compiles for
it once): the last ones are moved inwards instead of being cut.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Span", "Tile", "count_tiles", "pad_to_multiple", "plan_tiles"]


@dataclass(frozen=True, slots=True)
class Span:
    """Along one axis: what is read, and which part of it is kept; in pixels of the padded plane."""

    start: int
    stop: int
    keep_start: int
    keep_stop: int


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a plane: rows and columns."""

    rows: Span
    columns: Span

    @property
    def window(self) -> tuple[slice, slice]:
        """What to read from the plane; it may end beyond the plane by less than the network's `shuffle`."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    def target(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Where the result goes in a plane of `shape`."""
        return tuple(slice(span.keep_start, min(span.keep_stop, size)) for span, size in self._with(shape))  # type: ignore[return-value]

    def core(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Which part of the window's result goes there."""
        return tuple(  # type: ignore[return-value]
            slice(span.keep_start - span.start, min(span.keep_stop, size) - span.start) for span, size in self._with(shape)
        )

    def _with(self, shape: tuple[int, int]) -> tuple[tuple[Span, int], tuple[Span, int]]:
        return (self.rows, shape[0]), (self.columns, shape[1])


def plan_tiles(shape: tuple[int, int], tile: int, halo: int, multiple: int = 1) -> list[Tile]:
    """Tiles of about `tile` x `tile` pixels, halo not counted, that cover a plane of `shape`.

    Parameters
    ----------
    halo
        Pixels around a tile that its result depends on, a multiple of `multiple`.
    multiple
        The network's `shuffle`: windows begin and end at its multiples.

    Returns
    -------
    list of Tile
        Row by row; their targets cover each pixel once.
    """
    return [Tile(row, column) for row, column in itertools.product(*_spans_of(shape, tile, halo, multiple))]


def count_tiles(shape: tuple[int, int], tile: int, halo: int, multiple: int = 1) -> tuple[int, int]:
    """How many tiles `plan_tiles` would give, and how many pixels one's window has."""
    rows, columns = _spans_of(shape, tile, halo, multiple)
    return len(rows) * len(columns), (rows[0].stop - rows[0].start) * (columns[0].stop - columns[0].start)


def pad_to_multiple(plane: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The plane with its last row and column repeated up to `shape`."""
    missing = [(0, wanted - extent) for extent, wanted in zip(plane.shape, shape, strict=True)]
    return np.pad(plane, missing, mode="edge") if any(after for _, after in missing) else plane


def _spans_of(shape: tuple[int, int], tile: int, halo: int, multiple: int) -> list[list[Span]]:
    size = -(-tile // multiple) * multiple
    return [_spans(-(-extent // multiple) * multiple, size, halo) for extent in shape]


def _spans(length: int, tile: int, halo: int) -> list[Span]:
    window = tile + 2 * halo
    if length <= window:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - window, tile), length - window]
    stops = [*(start + window - halo for start in starts[:-1]), length]
    return [Span(start, start + window, begin, stop) for start, begin, stop in zip(starts, [0, *stops[:-1]], stops, strict=True)]

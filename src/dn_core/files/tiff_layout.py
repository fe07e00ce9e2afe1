"""Layout of a TIFF: strips or tiles, compression, pyramid levels; read, and written again."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dn_core.files.image import ImageFile
from dn_core.files.pyramid import BAND_BYTES, shrunk_bands
from dn_core.files.raw_array import open_raw
from dn_core.safe_write import scratch_file

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = [
    "MEMORY_BYTES",
    "Level",
    "TiffLayout",
    "layout_of",
    "layout_of_levels",
    "levels_of",
    "rows_axis",
    "scratch_array",
    "write_in_layout",
]

MEMORY_BYTES = 64 * 2**20
"""Up to this size an image is kept in memory until it is compressed, else in a scratch file."""

# Lossless compressions that tifffile writes: none, LZW, Deflate under both its numbers, PackBits,
# LZMA, Zstandard.
_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
_DEFLATE = 8


@dataclass(frozen=True, slots=True)
class Level:
    """Rows and columns of a level and of its tiles; None for strips."""

    size: tuple[int, int]
    tile: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """The layout of the pixels in a TIFF.

    Attributes
    ----------
    tile : tuple (int, int), optional
        Rows and columns of a tile; None for strips.
    rows : int, optional
        Rows of a strip; None when a page is one strip.
    compression, predictor : int, default 1
        Numbers of TIFF; 1 is none.
    levels : tuple of Level, optional
        The smaller levels of a pyramid.
    nested : bool, default True
        Whether levels are in SubIFDs, as in OME-TIFF; otherwise they are pages after the image.
    thumbnail : tuple (int, int), optional
        Rows and columns of the small image between the image and its levels in Aperio's files.
    """

    tile: tuple[int, int] | None = None
    rows: int | None = None
    compression: int = 1
    predictor: int = 1
    levels: tuple[Level, ...] = ()
    nested: bool = True
    thumbnail: tuple[int, int] | None = None

    @property
    def is_flat(self) -> bool:
        """Whether all pixels are contiguous and uncompressed."""
        return self.tile is None and self.compression == 1 and not self.levels


def levels_of(tif: TiffFile) -> list[TiffPageSeries]:
    """The smaller levels of the first image.

    For stacks, where tifffile does not look for levels, those in SubIFDs.
    """
    series = tif.series[0]
    if len(series.levels) > 1 or not series.keyframe.subifds:
        return list(series.levels[1:])
    count = len(series.keyframe.subifds)
    return [
        other
        for other in tif.series[1 : count + 1]
        if other.keyframe.is_subifd and other.keyframe.is_reduced
    ]


def layout_of(
    tif: TiffFile, thumbnail: TiffPageSeries | None = None
) -> tuple[TiffLayout, tuple[str, ...]]:
    """The layout of an image, as far as it can be written again, and names of what cannot."""
    series = tif.series[0]
    page, lost = series.keyframe, list[str]()
    compression = int(page.compression)
    predictor = int(page.predictor) if int(page.predictor) in (1, 2, 3) else 1
    if compression not in _LOSSLESS:
        lost.append(
            f"{getattr(page.compression, 'name', compression)} compression (lossless Deflate "
            "instead)"
        )
        compression = _DEFLATE
        predictor = {"f": 3}.get(series.dtype.kind, 2)
    tile = _tile(page)
    if tile and (tile[0] % 16 or tile[1] % 16):
        lost.append(f"tiles of {tile[0]} x {tile[1]} pixels (not multiples of 16)")
        tile = (-(-tile[0] // 16) * 16, -(-tile[1] // 16) * 16)
    if series.dtype.kind in "ui" and page.bitspersample != 8 * series.dtype.itemsize:
        lost.append(f"{page.bitspersample} bits per sample ({8 * series.dtype.itemsize} instead)")
    if page.is_tiled and page.tiledepth > 1:
        lost.append(f"tiles that are {page.tiledepth} planes deep")
    levels = []
    for level in levels_of(tif):
        sizes = dict(zip(level.axes, level.shape, strict=True))
        if any(
            sizes.get(axis, 1) != extent
            for axis, extent in zip(series.axes, series.shape, strict=True)
            if axis not in "YX"
        ):
            lost.append("levels with fewer planes")
            break
        levels.append(Level((sizes["Y"], sizes["X"]), _tile(level.keyframe) and tile))
    rows = (
        None
        if tile or compression == 1 or page.rowsperstrip >= page.imagelength
        else int(page.rowsperstrip)
    )
    nested = bool(levels) and bool(page.subifds)
    small = (
        (thumbnail.keyframe.imagelength, thumbnail.keyframe.imagewidth)
        if levels and thumbnail is not None
        else None
    )
    return TiffLayout(tile, rows, compression, predictor, tuple(levels), nested, small), tuple(lost)


def layout_of_levels(sizes: list[tuple[int, int]]) -> TiffLayout:
    """The layout for a pyramid of another format: that of most OME-TIFFs with levels."""
    if not sizes:
        return TiffLayout()
    tile = (512, 512)
    levels = tuple(Level(size, tile) for size in sizes)
    return TiffLayout(tile=tile, compression=_DEFLATE, levels=levels)


def _tile(page: Any) -> tuple[int, int] | None:
    return (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else None


@contextlib.contextmanager
def scratch_array(target: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
    """An array of zeros, in memory or, if large, in a temporary file beside the target."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= MEMORY_BYTES or dtype.kind == "b":
        yield np.zeros(shape, dtype)
        return
    with scratch_file(target) as path:
        path.touch(0o600)  # unreadable for those who may not read the target
        with open(path, "r+b") as file:
            file.truncate(nbytes)
        array = open_raw(path, dtype, shape, 0, writable=True)
        try:
            yield array
        finally:
            array.close()


def write_in_layout(
    path: Path,
    target: Path,
    image: Any,
    like: ImageFile,
    layout: TiffLayout,
    options: dict[str, Any],
    *,
    ones: int = 0,
) -> None:
    """Write a TIFF with the pixels of an array, in a layout.

    Parameters
    ----------
    path, target : Path
        Where it is written, and the final name of that file.
    image : array
        A numpy or raw array in the shape of `like`; it is read piece by piece.
    like : ImageFile
        The image that is written, for its axes, shape and dtype.
    layout : TiffLayout
        Tiles or strips, compression and levels.
    options : dict of str to object
        Further arguments of tifffile's writer.
    ones : int, default 0
        Number of axes of length 1 that the shape in the file has after those of `like`.
    """
    import tifffile

    of_file = {
        key: options[key] for key in ("bigtiff", "byteorder", "ome", "imagej") if key in options
    }
    of_image = {key: value for key, value in options.items() if key not in of_file}
    of_level: dict[str, Any] = {
        key: options[key]
        for key in ("photometric", "planarconfig", "extrasamples", "colormap")
        if key in options
    }
    # If the image has tifffile's own description, tifffile needs it on the levels too.
    described = options.get("metadata") is not None and not options.get("ome")
    of_level["metadata"] = {"axes": options["metadata"]["axes"]} if described else None
    of_level["software"] = False
    # Aperio's levels are not tagged as reduced images, unlike those of all others.
    of_level["subfiletype"] = 0 if layout.thumbnail else 1
    if layout.nested and layout.levels:
        of_image["subifds"] = len(layout.levels)
    thumbnail = Level(layout.thumbnail, None) if layout.thumbnail else None
    smaller = [level for level in (thumbnail, *layout.levels) if level is not None]
    with tifffile.TiffWriter(path, **of_file) as writer, contextlib.ExitStack() as stack:
        write = _Writer(writer, like, layout, options["byteorder"], (1,) * ones)
        write.level(image, Level((0, 0), layout.tile), **of_image)
        larger = image
        for level in smaller:
            shape = _resized(like, level.size)
            array = stack.enter_context(scratch_array(target, shape, like.dtype))
            for index, band in shrunk_bands(larger, rows_axis(like.axes), level.size):
                array[index] = band
            write.level(array, level, **of_level)
            if level is not thumbnail:
                larger = array


def rows_axis(axes: str) -> int:
    """The axis of a page's rows, whatever its letter; columns are the next one."""
    return len(axes) - (3 if axes.endswith("S") else 2)


def _resized(like: ImageFile, size: tuple[int, int]) -> tuple[int, ...]:
    y = rows_axis(like.axes)
    return (*like.shape[:y], *size, *like.shape[y + 2 :])


class _Writer:
    """Writes levels one after the other, in pieces."""

    def __init__(
        self,
        writer: Any,
        like: ImageFile,
        layout: TiffLayout,
        byteorder: Any,
        ones: tuple[int, ...],
    ) -> None:
        self._writer, self._layout = writer, layout
        self._y, self._dtype = rows_axis(like.axes), like.dtype
        self._samples_first = like.axes[: self._y].endswith("S")
        self._byteorder, self._ones = byteorder, ones

    def level(self, array: Any, level: Level, **options: Any) -> None:
        if self._layout.compression != 1:
            options.update(
                compression=self._layout.compression,
                predictor=self._layout.predictor if self._dtype.kind != "b" else 1,
            )
        if self._dtype.kind == "b":  # eight pixels share a byte
            options["rowsperstrip"] = None if level.tile else self._layout.rows
            self._writer.write(array.reshape(*array.shape, *self._ones), tile=level.tile, **options)
            return
        if level.tile:
            pieces: Iterator[Any] = self._tiles(array, level.tile)
        elif self._layout.compression == 1:
            pieces = self._pages(array)
        else:
            rows = self._layout.rows or array.shape[self._y]
            options["rowsperstrip"] = rows
            pieces = self._strips(array, rows, options)
        self._writer.write(
            pieces,
            shape=(*array.shape, *self._ones),
            dtype=self._dtype,
            tile=level.tile,
            buffersize=BAND_BYTES,
            **options,
        )

    def _tiles(self, array: Any, tile: tuple[int, int]) -> Iterator[Any]:
        height, width = array.shape[self._y : self._y + 2]
        for leading in np.ndindex(*array.shape[: self._y]):
            for y, x in itertools.product(range(0, height, tile[0]), range(0, width, tile[1])):
                yield np.ascontiguousarray(
                    array[(*leading, slice(y, y + tile[0]), slice(x, x + tile[1]))]
                )

    def _pages(self, array: Any) -> Iterator[Any]:
        for leading in np.ndindex(*array.shape[: self._y - self._samples_first]):
            yield np.asarray(array[leading])

    def _strips(self, array: Any, rows: int, options: dict[str, Any]) -> Iterator[bytes]:
        """Strips, compressed in bands of a page: tifffile would hold whole pages in memory."""
        import tifffile

        height = array.shape[self._y]
        row_bytes = math.prod(array.shape[self._y + 1 :]) * self._dtype.itemsize
        band = max(1, BAND_BYTES // (row_bytes * rows)) * rows
        contiguous = {key: options[key] for key in ("compression", "predictor", "rowsperstrip")}
        samples = array.ndim > self._y + 2
        contiguous.update(photometric="minisblack", planarconfig="contig" if samples else None)
        for leading in np.ndindex(*array.shape[: self._y]):
            for start in range(0, height, band):
                block = np.asarray(array[(*leading, slice(start, start + band))])
                file = io.BytesIO()
                tifffile.imwrite(
                    file, block, byteorder=self._byteorder, metadata=None, **contiguous
                )
                file.seek(0)
                with tifffile.TiffFile(file) as tif:
                    page = tif.pages.first
                    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                        yield file.getvalue()[offset : offset + count]

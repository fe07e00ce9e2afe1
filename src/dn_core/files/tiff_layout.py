"""How the pixels of a TIFF lie, in tiles or strips, compressed, with smaller levels; and writing others in the same way."""

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
from dn_core.files.raw import open_raw
from dn_core.safe_write import scratch_file

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = [
    "MEMORY_BYTES", "Level", "TiffLayout", "layout_of", "layout_of_levels", "levels_of", "rows_axis",
    "scratch_array", "write_in_layout",
]  # fmt: skip

MEMORY_BYTES = 64 * 2**20
"""Up to this size an image that will be compressed is kept in memory until then; larger ones lie in a file beside the output."""

# What tifffile writes without any loss: LZW, Deflate under both its numbers, PackBits, LZMA, Zstandard.
_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
_DEFLATE = 8


@dataclass(frozen=True, slots=True)
class Level:
    """Rows and columns of a level, and its tiles, which it has not where it lies in strips."""

    size: tuple[int, int]
    tile: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class TiffLayout:
    """How the pixels lie.

    Attributes
    ----------
    tile
        Rows and columns of a tile; None where the image lies in strips.
    rows
        Rows of a strip; None where a page is one.
    compression, predictor
        As TIFF numbers them; 1 is none.
    levels
        The smaller levels of a pyramid.
    nested
        Whether levels lie in SubIFDs, as in OME-TIFF, else as pages of their own behind the image.
    thumbnail
        Rows and columns of the small picture that lies between the image and its levels in Aperio's files.
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
        """Whether all pixels lie one after the other."""
        return self.tile is None and self.compression == 1 and not self.levels


def levels_of(tif: TiffFile) -> list[TiffPageSeries]:
    """The smaller levels of the first image: those that tifffile finds, and for stacks that it does not look at those in SubIFDs."""
    series = tif.series[0]
    if len(series.levels) > 1 or not series.keyframe.subifds:
        return list(series.levels[1:])
    count = len(series.keyframe.subifds)
    return [other for other in tif.series[1 : count + 1] if other.keyframe.is_subifd and other.keyframe.is_reduced]


def layout_of(tif: TiffFile, thumbnail: TiffPageSeries | None = None) -> tuple[TiffLayout, tuple[str, ...]]:
    """The layout of an image, as far as it can be written again, and words for what cannot."""
    series = tif.series[0]
    page, lost = series.keyframe, list[str]()
    compression = int(page.compression)
    predictor = int(page.predictor) if int(page.predictor) in (1, 2, 3) else 1
    if compression not in _LOSSLESS:
        lost.append(f"{getattr(page.compression, 'name', compression)} compression (Deflate instead, which loses nothing)")
        compression = _DEFLATE
        predictor = {"f": 3}.get(series.dtype.kind, 2)
    tile = _tile(page)
    if tile and (tile[0] % 16 or tile[1] % 16):
        lost.append(f"tiles of {tile[0]} x {tile[1]} pixels, which are no multiples of 16")
        tile = (-(-tile[0] // 16) * 16, -(-tile[1] // 16) * 16)
    if series.dtype.kind in "ui" and page.bitspersample != 8 * series.dtype.itemsize:
        lost.append(f"{page.bitspersample} bits a number ({8 * series.dtype.itemsize} instead)")
    if page.is_tiled and page.tiledepth > 1:
        lost.append(f"tiles that are {page.tiledepth} planes deep")
    levels = []
    for level in levels_of(tif):
        sizes = dict(zip(level.axes, level.shape, strict=True))
        if any(sizes.get(axis, 1) != extent for axis, extent in zip(series.axes, series.shape, strict=True) if axis not in "YX"):
            lost.append("levels with fewer planes")
            break
        levels.append(Level((sizes["Y"], sizes["X"]), _tile(level.keyframe) and tile))
    rows = None if tile or compression == 1 or page.rowsperstrip >= page.imagelength else int(page.rowsperstrip)
    nested = bool(levels) and bool(page.subifds)
    small = (thumbnail.keyframe.imagelength, thumbnail.keyframe.imagewidth) if levels and thumbnail is not None else None
    return TiffLayout(tile, rows, compression, predictor, tuple(levels), nested, small), tuple(lost)


def layout_of_levels(sizes: list[tuple[int, int]]) -> TiffLayout:
    """The layout for an image of another format that has levels: that of most OME-TIFFs with such."""
    return TiffLayout((512, 512), None, _DEFLATE, 1, tuple(Level(size, (512, 512)) for size in sizes)) if sizes else TiffLayout()


def _tile(page: Any) -> tuple[int, int] | None:
    return (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else None


@contextlib.contextmanager
def scratch_array(target: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[Any]:
    """An empty array, in memory or for large ones in a file beside the target that goes away at the end."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= MEMORY_BYTES or dtype.kind == "b":
        yield np.zeros(shape, dtype)
        return
    with scratch_file(target) as path:
        path.touch(0o600)  # never to be read by those who may not read the target
        with open(path, "r+b") as file:
            file.truncate(nbytes)
        array = open_raw(path, dtype, shape, 0, writable=True)
        try:
            yield array
        finally:
            array.close()


def write_in_layout(
    path: Path, target: Path, image: Any, like: ImageFile, layout: TiffLayout, options: dict[str, Any], *, ones: int = 0
) -> None:
    """Write a TIFF with the pixels of an array, in a layout.

    Parameters
    ----------
    path, target
        Where it is written, and what that file will become.
    image
        A numpy or raw array in the shape of `like`; it is read piece by piece.
    options
        Further arguments of tifffile's writer.
    ones
        Axes of length 1 behind those of `like` that the shape in the file has.
    """
    import tifffile

    of_file = {key: options[key] for key in ("bigtiff", "byteorder", "ome", "imagej") if key in options}
    of_image = {key: value for key, value in options.items() if key not in of_file}
    of_level: dict[str, Any] = {key: options[key] for key in ("photometric", "planarconfig", "extrasamples", "colormap") if key in options}
    # By their tags Aperio's levels are no reduced images, unlike those of all others.
    # tifffile wants its own descriptions, where an image has one, on levels too.
    described = options.get("metadata") is not None and not options.get("ome")
    of_level.update(metadata={"axes": options["metadata"]["axes"]} if described else None)
    of_level.update(software=False, subfiletype=0 if layout.thumbnail else 1)
    nested = len(layout.levels) if layout.nested else 0
    small_picture = Level(layout.thumbnail, None) if layout.thumbnail else None
    smaller = [level for level in (small_picture, *layout.levels) if level is not None]
    with tifffile.TiffWriter(path, **of_file) as writer, contextlib.ExitStack() as stack:
        write = _Writer(writer, like, layout, options["byteorder"], (1,) * ones)
        write.level(image, Level((0, 0), layout.tile), **of_image, **({"subifds": nested} if nested else {}))
        larger = image
        for level in smaller:
            shape = _resized(like, level.size)
            array = stack.enter_context(scratch_array(target, shape, like.dtype))
            for index, band in shrunk_bands(larger, rows_axis(like.axes), level.size):
                array[index] = band
            write.level(array, level, **of_level)
            if level is not small_picture:
                larger = array


def rows_axis(axes: str) -> int:
    """Which axis the rows of a page are, whatever it is called; the columns are the next one."""
    return len(axes) - (3 if axes.endswith("S") else 2)


def _resized(like: ImageFile, size: tuple[int, int]) -> tuple[int, ...]:
    y = rows_axis(like.axes)
    return (*like.shape[:y], *size, *like.shape[y + 2 :])


class _Writer:
    """Writes one level after the other, in pieces."""

    def __init__(self, writer: Any, like: ImageFile, layout: TiffLayout, byteorder: Any, ones: tuple[int, ...]) -> None:
        self._writer, self._layout = writer, layout
        self._y, self._dtype = rows_axis(like.axes), like.dtype
        self._samples_first = like.axes[: self._y].endswith("S")
        self._byteorder, self._ones = byteorder, ones

    def level(self, array: Any, level: Level, **options: Any) -> None:
        if self._layout.compression != 1:
            options.update(compression=self._layout.compression, predictor=self._layout.predictor if self._dtype.kind != "b" else 1)
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
        self._writer.write(pieces, shape=(*array.shape, *self._ones), dtype=self._dtype, tile=level.tile, buffersize=BAND_BYTES, **options)

    def _tiles(self, array: Any, tile: tuple[int, int]) -> Iterator[Any]:
        height, width = array.shape[self._y : self._y + 2]
        for leading in np.ndindex(*array.shape[: self._y]):
            for y, x in itertools.product(range(0, height, tile[0]), range(0, width, tile[1])):
                yield np.ascontiguousarray(array[(*leading, slice(y, y + tile[0]), slice(x, x + tile[1]))])

    def _pages(self, array: Any) -> Iterator[Any]:
        for leading in np.ndindex(*array.shape[: self._y - self._samples_first]):
            yield np.asarray(array[leading])

    def _strips(self, array: Any, rows: int, options: dict[str, Any]) -> Iterator[bytes]:
        """Compressed strips, made in bands of a page: tifffile itself would have whole pages in memory."""
        import tifffile

        height = array.shape[self._y]
        row_bytes = math.prod(array.shape[self._y + 1 :]) * self._dtype.itemsize
        band = max(1, BAND_BYTES // (row_bytes * rows)) * rows
        contiguous = {key: options[key] for key in ("compression", "predictor", "rowsperstrip")}
        samples = array.ndim > self._y + 2
        contiguous.update(photometric="minisblack", planarconfig="contig" if samples else None)
        for leading in np.ndindex(*array.shape[: self._y]):
            for start in range(0, height, band):
                block, file = np.asarray(array[(*leading, slice(start, start + band))]), io.BytesIO()
                tifffile.imwrite(file, block, byteorder=self._byteorder, metadata=None, **contiguous)
                file.seek(0)
                with tifffile.TiffFile(file) as tif:
                    page = tif.pages.first
                    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                        yield file.getvalue()[offset : offset + count]

"""Checks of a TIFF's structure before its pixels are read: colours, planes, strips and tiles."""

from __future__ import annotations

import bisect
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dn_core.errors import ImageFileError
from dn_core.files.image import printable, share

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = ["check_colours", "check_planes", "check_segments"]

MAX_SEGMENT_BYTES = 2**29
"""What one compressed strip or tile may decode to; a gigabyte of zeros fits into a megabyte."""
MAX_EXPANSION = 2**14
"""How many times larger than its file a compressed image of over a GiB may be."""


_COLOUR_SPACES = {
    5: "CMYK",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32844: "LOGL",
    32845: "LOGLUV",
}
_DECODED_TO_RGB = {6, 7, 33003, 33004, 33005, 33007, 34712, 34892, 50001}
"""Compressions of photographs (JPEG and the like), whose codecs turn YCbCr into RGB."""
_BILEVEL = {2, 3, 4}
"""Compressions for images of one bit (CCITT)."""


def check_colours(path: Path, series: TiffPageSeries) -> None:
    """Refuse colours other than grey, RGB and palettes."""
    page = series.keyframe
    name = _COLOUR_SPACES.get(int(page.photometric))
    if int(page.photometric) == 6 and int(page.compression) not in _DECODED_TO_RGB:
        name = "YCbCr"
    if name:
        raise ImageFileError(
            f"{printable(path)} must be grey, RGB or RGBA, got {name} colours. Convert it to RGB "
            "first."
        )


def check_planes(
    path: Path, tif: TiffFile, series: TiffPageSeries, pages: list[Any], missing: str | None
) -> str:
    """Compare the planes that the description promises with the pages in the file.

    Returns
    -------
    str
        Number and share of missing planes, if they may be missing; empty when all are there.
    """
    absent = sum(page is None for page in pages)
    if absent and missing != "fill":  # not a sparse file, but one that contradicts itself
        raise ImageFileError(
            f"{printable(path)} lacks {absent} of {len(pages)} planes that its OME description "
            'promises. Export it again, or read them as zeros with missing="fill".'
        )
    planes = math.prod(series.shape) // max(1, math.prod(series.keyframe.shape))
    if series.dataoffset is None and planes != len(pages):
        raise ImageFileError(
            f"{printable(path)} must have {planes} planes, as its description promises, got "
            f"{len(pages)}. Export it again."
        )
    shaped = tif.shaped_metadata
    if series.kind != "ome" and shaped and "shape" in shaped[0]:
        promised = tuple(shaped[0]["shape"])
        if math.prod(promised) != math.prod(series.shape):
            raise ImageFileError(
                f"{printable(path)} must have shape {promised}, as its description promises, got "
                f"{series.shape}. Export it again."
            )
    return share(absent, len(pages), "planes") if absent else ""


def check_segments(
    path: Path, series: TiffPageSeries, pages: list[Any], missing: str | None
) -> str:
    """Refuse strips and tiles that lie outside the file or would decode to too much.

    Returns
    -------
    str
        Number and share of strips or tiles that a sparse file leaves out; empty when all are there.
    """
    size = path.stat().st_size
    present = [page for page in pages if page is not None]
    page = series.keyframe
    directories = {7, *(found.offset for found in present), *(tag.valueoffset for tag in page.tags)}
    if series.dataoffset is not None:
        nbytes = math.prod(series.shape) * series.dtype.itemsize
        _check_contiguous(path, series.dataoffset, nbytes, size, sorted(directories))
        return ""
    _check_compression(path, series, size)
    segments = math.prod(page.chunked)
    needed = -(-page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8)
    absent = sum(
        _check_page(path, found, size, segments, needed if page.is_contiguous else 0)
        for found in present
    )
    places = [
        place
        for found in present
        for place in zip(found.dataoffsets, found.databytecounts, strict=False)
        if place[1]
    ]
    _check_apart(path, sorted(directories), places)
    if int(page.compression) == 1:
        _check_overlap(path, places)
    if not absent:
        return ""
    total = segments * len(present)
    lacking = share(absent, total, "tiles" if page.is_tiled else "strips")
    if missing == "refuse":
        raise ImageFileError(
            f"{printable(path)} lacks {lacking}. Copy it again, or read them as the fill value "
            'with missing="fill".'
        )
    if absent == total and missing != "fill":
        raise ImageFileError(
            f"{printable(path)} lacks {lacking}: it was never finished. Export it again, or read "
            'the fill value everywhere with missing="fill".'
        )
    return lacking


def _check_contiguous(
    path: Path, offset: int, nbytes: int, size: int, directories: list[int]
) -> None:
    """Refuse uncompressed pixels, all in one piece, that are not in a file of this size."""
    if offset + nbytes > size:
        raise ImageFileError(
            f"{printable(path)} is cut off: it must have {offset + nbytes} bytes, got {size}. Copy "
            "it again."
        )
    if offset == 0:  # the file's own header
        raise ImageFileError(
            f"{printable(path)} has no pixels: it was never finished. Copy it again or export it "
            "again."
        )
    _check_apart(path, directories, [(offset, nbytes)])


def _check_compression(path: Path, series: TiffPageSeries, size: int) -> None:
    """Refuse compressed pixels that contradict their codec or would decode to too much."""
    page = series.keyframe
    if int(page.compression) in _BILEVEL and page.bitspersample != 1:
        raise ImageFileError(
            f"{printable(path)} is damaged: its compression must have 1 bit per sample, got "
            f"{page.bitspersample}. Copy it again or export it again."
        )
    if int(page.compression) == 1:
        return
    largest = math.prod(page.chunks) * series.dtype.itemsize
    if largest > MAX_SEGMENT_BYTES:
        raise ImageFileError(
            f"{printable(path)} must have compressed strips or tiles of at most "
            f"{MAX_SEGMENT_BYTES} bytes, got {largest}. Save it with smaller strips or tiles, or "
            "uncompressed."
        )
    nbytes = math.prod(series.shape) * series.dtype.itemsize
    if nbytes > max(2**30, MAX_EXPANSION * size):
        raise ImageFileError(
            f"{printable(path)} claims {nbytes} bytes of pixels in a file of {size} bytes: it is "
            "damaged or not a real image."
        )


def _check_page(path: Path, page: Any, size: int, segments: int, needed: int) -> int:
    """Refuse a page that contradicts itself; return how many strips or tiles it leaves out."""
    offsets, counts = page.dataoffsets, page.databytecounts
    # tifffile joins strips that follow each other.
    joined = page.is_contiguous and len(offsets) == 1
    if (min(len(offsets), len(counts)) < segments and not joined) or sum(counts) < needed:
        raise ImageFileError(
            f"{printable(path)} is damaged: page {page.index} lacks part of its data. Copy it "
            "again or export it again."
        )
    for offset, count in zip(offsets, counts, strict=False):
        if not (isinstance(offset, int) and isinstance(count, int) and offset >= 0):
            raise ImageFileError(
                f"{printable(path)} is damaged: page {page.index} has data at {offset}. Copy it "
                "again or export it again."
            )
        if offset + count > size:
            raise ImageFileError(
                f"{printable(path)} is cut off: page {page.index} needs {offset + count} bytes, "
                f"the file has {size}. Copy it again."
            )
        if count and not offset:
            raise ImageFileError(
                f"{printable(path)} is damaged: page {page.index} has data without an offset. "
                "Export it again."
            )
    return sum(count == 0 for count in counts)


def _check_apart(path: Path, directories: list[int], places: list[tuple[int, int]]) -> None:
    """Refuse pixels that overlap the file's header or page directories: their offset is damaged."""
    for offset, count in places:
        first = bisect.bisect_left(directories, offset)
        if first < len(directories) and directories[first] < offset + count:
            raise ImageFileError(
                f"{printable(path)} is damaged: pixels at byte {offset} overlap a page directory. "
                "Copy it again."
            )


def _check_overlap(path: Path, places: list[tuple[int, int]]) -> None:
    """Refuse strips or tiles that overlap in part; identical ones may be stored once."""
    for (offset, count), (following, _) in itertools.pairwise(sorted(set(places))):
        if following < offset + count:
            raise ImageFileError(
                f"{printable(path)} is damaged: pixels at byte {following} overlap others. Copy "
                "it again."
            )

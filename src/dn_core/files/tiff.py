"""Reading TIFF, OME-TIFF and ImageJ TIFF, piece by piece where the file allows it."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import (
    CheckedSource,
    ImageFile,
    check_numeric_dtype,
    check_pixel_count,
    printable,
    reading,
)
from dn_core.files.raw_array import open_raw
from dn_core.files.tiff_checks import check_colours, check_planes, check_segments
from dn_core.files.tiff_layout import levels_of
from dn_core.files.tiff_metadata import read_tiff_metadata

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = ["collected_tifffile_errors", "open_tiff"]

EAGER_BYTES = 64 * 2**20
"""Up to this size a compressed image is decoded at once, which spares the import of zarr."""

_lock = threading.RLock()


def open_tiff(path: Path, stack: contextlib.ExitStack, *, missing: str | None) -> ImageFile:
    """Open a TIFF for as long as `stack` lives."""
    import tifffile

    with reading(path), collected_tifffile_errors() as errors:
        tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False))
        if not tif.pages:
            raise ImageFileError(
                f"{printable(path)} is a TIFF without any image: it was cut off or never "
                "finished. Copy it again."
            )
        series = tif.series[0]
        pages = list(series.pages)  # loads the page directories, which shows damage to them
        notes = _notes(path, tif, errors)
        check_pixel_count(path, series.shape)
        check_numeric_dtype(path, series.dtype)
        check_colours(path, series)
        absent = [
            check_planes(path, tif, series, pages, missing),
            check_segments(path, series, pages, missing),
        ]
        kind = {"ome": "ome-tiff", "imagej": "imagej-tiff"}.get(series.kind, "tiff")
        metadata = read_tiff_metadata(tif, series, kind)
        source, axes = _source(path, stack, series, kind, metadata), series.axes.replace("I", "Q")
    if len(axes) < source.ndim:
        axes += "S"  # a palette was expanded
    missing_data = " and ".join(filter(None, absent))
    if missing_data:
        missing_data += f" are missing and were read as {series.keyframe.nodata:g}"
        notes = (*notes, missing_data)
    return ImageFile(path, source, axes, kind, metadata, notes, missing_data)


@contextlib.contextmanager
def collected_tifffile_errors() -> Iterator[list[str]]:
    """Collect the errors that tifffile logs: the only sign of several kinds of damage."""
    errors: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and record.thread == thread:
                errors.append(record.getMessage())

    logger, collector = logging.getLogger("tifffile"), Collector()
    with _lock:  # all threads share the logger
        propagate, level, disabled = logger.propagate, logger.level, logging.root.manager.disable
        logger.propagate = False
        logger.addHandler(collector)
        logger.setLevel(logging.ERROR)  # many programs silence tifffile, but damage must be heard
        if disabled >= logging.ERROR:
            logging.disable(logging.WARNING)
        try:
            yield errors
        finally:
            logger.removeHandler(collector)
            logger.propagate = propagate
            logger.setLevel(level)
            if disabled >= logging.ERROR:
                logging.disable(disabled)


def _notes(path: Path, tif: TiffFile, errors: list[str]) -> tuple[str, ...]:
    """What a user should know of the file; errors other than those in OME-XML are raised."""
    notes = []
    fatal = [message for message in errors if "OME series raised" not in message]
    if fatal:
        raise ImageFileError(
            f"{printable(path)} is damaged or cut off ({fatal[0]:.200}). Copy it again or export "
            "it again."
        )
    series = tif.series[0]
    if errors:
        notes.append(
            "the OME description is damaged and is not used: the meaning of the axes is unknown"
        )
    elif tif.is_ome and series.kind != "ome":
        notes.append(
            "the OME description refers to other files: only the pixels of this file are used, "
            "and their axes are unknown"
        )
    levels = levels_of(tif)
    count = len(tif.series) - len(set(levels) & set(tif.series))
    if count > 1:
        names = ", ".join(other.name for other in tif.series)
        named = f" ({names})" if series.kind == "svs" else ""
        notes.append(f"{count} images in the file{named}; the first is used")
    if levels:
        notes.append(f"pyramid of {len(levels) + 1} levels; level 0 is used")
    page = series.keyframe
    if int(page.planarconfig) == 2 and (
        page.samplesperpixel == 4 or {1, 2} & {int(kind) for kind in page.extrasamples or ()}
    ):
        notes.append(
            f"{page.samplesperpixel} samples in separate planes; each is a plane of the image, "
            "none is alpha"
        )
    return tuple(notes)


def _source(
    path: Path,
    stack: contextlib.ExitStack,
    series: TiffPageSeries,
    kind: str,
    metadata: dict[str, Any],
) -> Any:
    """The pixels: on disk where they are uncompressed or large, else in memory."""
    page = series.keyframe
    if int(page.photometric) == 3 and kind == "tiff":
        return _expanded_palette(series.asarray(), page.colormap, metadata)
    if series.dataoffset is not None and series.dtype.kind != "b":
        byteorder = series.dtype.newbyteorder(metadata["byteorder"])
        source = open_raw(path, byteorder, series.shape, series.dataoffset)
        stack.callback(source.close)
        return source
    if math.prod(series.shape) * series.dtype.itemsize <= EAGER_BYTES:
        return series.asarray().reshape(series.shape)
    import zarr

    return CheckedSource(zarr.open_array(series.aszarr(level=0), mode="r"), path)


def _expanded_palette(
    indices: NDArray[Any], colours: NDArray[Any] | None, metadata: dict[str, Any]
) -> NDArray[Any]:
    """RGB of a palette image, whose values are indices of colours, not intensities."""
    if colours is None:
        raise ImageFileError("a palette image must have a palette, got none")
    metadata.update(photometric="rgb", planarconfig=1)
    return np.moveaxis((colours >> 8).astype(np.uint8)[:, indices], 0, -1)

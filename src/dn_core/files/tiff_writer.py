"""Writing TIFF, OME-TIFF and ImageJ TIFF block by block."""

from __future__ import annotations

import contextlib
import errno
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dn_core.files.image import ImageFile, Target, check_written
from dn_core.files.raw_array import RawArray, open_raw, writing
from dn_core.files.tiff import collected_tifffile_errors, open_tiff
from dn_core.files.tiff_description import (
    imagej_axes,
    needs_bigtiff,
    tags_to_write,
    tiff_layout_for,
    without_trailing_ones,
    writer_options,
)
from dn_core.files.tiff_layout import MEMORY_BYTES, scratch_array, write_in_layout
from dn_core.files.tiff_tags import write_page_tags
from dn_core.safe_write import atomic_write, free_bytes

__all__ = ["check_tiff", "create_tiff", "tiff_kind"]

_OME_DTYPES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "uint8",
    "uint16",
    "uint32",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
_TIFF_DTYPES = (*_OME_DTYPES, "int64", "uint64", "float16")
_IMAGEJ_DTYPES = ("uint8", "uint16", "int16", "float32")


def check_tiff(path: Path, like: ImageFile) -> None:
    """Refuse, before anything is computed, what cannot be written."""
    kind = tiff_kind(path, like)
    allowed = _OME_DTYPES if kind == "ome-tiff" else _TIFF_DTYPES
    if like.dtype.name not in allowed:
        raise ValueError(
            f"{like.dtype} cannot be written as {kind}; the dtype must be one of "
            f"{', '.join(allowed)}. Convert the image first."
        )
    known_axes = set(like.axes) <= set("TZCYXSAPRHEQ") and len(set(like.axes)) == len(like.axes)
    if kind == "ome-tiff" and not known_axes:
        raise ValueError(
            f"axes {like.axes} cannot be written as OME-TIFF. Choose a name that ends in .tif, not "
            "in .ome.tif."
        )
    last = without_trailing_ones(like).axes.endswith(("YXS", "SYX") if like.rgb else "YX")
    if not last and (like.rgb or kind != "tiff"):
        raise ValueError(
            f"axes {like.axes} cannot be written as {kind}; the last axes must be YX, YXS or SYX. "
            "Transpose the image first."
        )
    needed, free = math.prod(like.shape) * like.dtype.itemsize, free_bytes(path.parent)
    if needed > MEMORY_BYTES and not tiff_layout_for(kind, like).is_flat:
        needed *= 2  # the uncompressed pixels lie beside it until they are compressed
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the output needs {needed} bytes, {free} are free. Free some disk space or choose "
            "another folder",
            str(path),
        )


def tiff_kind(path: Path, like: ImageFile) -> str:
    """Which kind of TIFF is written, one of `ImageFile.format`."""
    if _is_named_ome(path):
        return "ome-tiff"
    if like.format != "imagej-tiff":
        return like.format if like.format == "ome-tiff" else "tiff"
    in_order = [axis for axis in "TZCYXS" if axis in like.axes] == list(imagej_axes(like.axes))
    colours = not like.rgb or like.shape[like.axes.index("S")] in (3, 4)
    # ImageJ itself reads no BigTIFF, but its OME reader does.
    plain = like.dtype.name in _IMAGEJ_DTYPES and not needs_bigtiff(like)
    return "imagej-tiff" if in_order and colours and plain else "ome-tiff"


def _is_named_ome(path: Path) -> bool:
    return re.search(r"\.ome\.tiff?$", path.name, re.IGNORECASE) is not None


@contextlib.contextmanager
def create_tiff(path: Path, like: ImageFile) -> Iterator[Target]:
    """Create a TIFF with the metadata of an image, whose blocks go to the `Target`.

    Uncompressed pixels are written straight to their place in the file, others to a scratch array
    that is compressed at the end.
    """

    def check(written: Path) -> None:
        with contextlib.ExitStack() as stack:
            found = open_tiff(written, stack, missing="refuse")
            check_written(written, found, like.shape, like.dtype)

    kind = tiff_kind(path, like)
    if like.format == "imagej-tiff" and kind == "ome-tiff" and not _is_named_ome(path):
        warnings.warn(
            f"{path.name} is too large or of another dtype or axis order than ImageJ TIFF allows; "
            "it is written as OME-TIFF",
            stacklevel=4,
        )
    stored = without_trailing_ones(like)
    first_pixels = (0,) * (len(like.axes) - len(stored.axes))  # indexes away axes of length 1
    layout = tiff_layout_for(kind, like)
    options = writer_options(kind, like if kind == "tiff" else stored)
    shape = like.shape if kind == "tiff" else stored.shape
    flat = layout.is_flat and like.dtype.kind != "b"  # of bools, eight pixels share a byte
    with atomic_write(path, check=check) as temporary, contextlib.ExitStack() as stack:
        if flat:
            array = _pixels_in_place(temporary, shape, like, options)
            stack.callback(array.close)
        else:
            array = stack.enter_context(scratch_array(path, like.shape, like.dtype))
        target = Target(array)
        stack.callback(target.close)
        yield target
        if not flat:
            index = (..., *first_pixels)
            pages = array.view(index) if isinstance(array, RawArray) else array[index]
            ones = len(shape) - len(stored.shape)
            write_in_layout(temporary, path, pages, stored, layout, options, ones=ones)
        with collected_tifffile_errors():  # about tags whose content is still missing
            write_page_tags(temporary, tags_to_write(kind, like))


def _pixels_in_place(
    path: Path, shape: tuple[int, ...], like: ImageFile, options: dict[str, Any]
) -> RawArray:
    """Write an uncompressed TIFF with all but its pixels, and give the array that they lie in."""
    import tifffile

    with writing(path, math.prod(like.shape) * like.dtype.itemsize):
        place = tifffile.imwrite(path, shape=shape, dtype=like.dtype, returnoffset=True, **options)
    assert place is not None  # since nothing is compressed
    dtype = like.dtype.newbyteorder(options["byteorder"])
    return open_raw(path, dtype, like.shape, place[0], writable=True)

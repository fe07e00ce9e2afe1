"""An image in a file, independent of its format: description, pixels, blocks to write, errors."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError

__all__ = [
    "CheckedSource",
    "ImageFile",
    "Target",
    "check_numeric_dtype",
    "check_pixel_count",
    "check_written",
    "printable",
    "reading",
    "share",
]

MAX_PIXELS = 2**40
"""More pixels than any real image has; a header that claims more is damaged or an attack."""

SYMBOLS = {
    "angstrom": "Å",
    "nanometer": "nm",
    "micrometer": "µm",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "nanosecond": "ns",
    "microsecond": "µs",
    "millisecond": "ms",
    "second": "s",
    "minute": "min",
    "hour": "h",
    "day": "d",
}
"""Units: the name in OME-Zarr and the symbol in OME-XML and `ImageFile.metadata`."""

METRES = {"Å": 1e-10, "nm": 1e-9, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
"""Units of length, by the symbols in `ImageFile.metadata`."""

# Failures of the storage, which a caller may want to retry; other errors, such as a seek to an
# impossible offset, come from damaged content.
_STORAGE = {
    errno.ESTALE,
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
}


@dataclass(frozen=True)
class ImageFile:
    """An image in a file: level 0 of a pyramid, the first of several images.

    Attributes
    ----------
    path : Path
        The file or folder.
    source : array
        A numpy array or an array on disk with ``shape``, ``dtype`` and slicing, in the axis order
        of the file. Reading damaged data through it raises `ImageFileError`.
    axes : str
        A letter for each axis: T, Z, C, Y, X, S (samples of RGB, RGBA or grey with alpha), Q (not
        described by the file).
    format : str
        ``"tiff"``, ``"ome-tiff"``, ``"imagej-tiff"``, ``"png"``, ``"jpeg"``, ``"ome-zarr"`` or
        ``"zarr"``.
    metadata : dict
        What writing needs. In all formats, where known: ``pixel_size`` and ``pixel_unit`` (for each
        of X, Y, Z), ``channel_names``, ``time_increment`` and ``time_unit``, ``dpi``,
        ``icc_profile``, ``xmp``, ``words`` (description, software, date and the like, by their tag
        numbers in TIFF and EXIF) and ``lost``, names of what no format keeps; further keys are of
        one format alone.
    notes : tuple of str
        What a user should know, such as that only the first of two images is used.
    missing : str
        Number and share of the data that are not in the file and were read as a fill value; also
        one of the notes. Empty when nothing is missing.
    """

    path: Path
    source: Any
    axes: str
    format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, in the order of `axes`."""
        return tuple(self.source.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The data type, in native byte order."""
        dtype: np.dtype[Any] = np.dtype(self.source.dtype).newbyteorder("=")
        return dtype

    @property
    def rgb(self) -> bool:
        """Whether there is a samples axis: RGB, RGBA or grey with alpha."""
        return "S" in self.axes

    @property
    def pixels(self) -> NDArray[Any]:
        """All pixels, as a numpy array in memory."""
        return np.array(self.source[...], dtype=self.dtype, order="C", copy=None, subok=False)

    @property
    def alpha(self) -> bool:
        """Whether the last sample is opacity, not intensity; never when samples are planes."""
        # Writers of planar TIFFs take any four planes for RGB and alpha. A TIFF describes the
        # samples beyond the colours in its ExtraSamples, of which 0 means unspecified.
        if not self.axes.endswith("S"):
            return False
        extra = self.metadata.get("extrasamples", ())
        return extra[-1] in (1, 2) if extra else self.shape[-1] in (2, 4)

    @property
    def display(self) -> dict[str, Any]:
        """How to display it: ``orientation`` 1 to 8 as in EXIF; ``inverted``: 0 is white."""
        return {
            "orientation": self.metadata.get("orientation", 1),
            "inverted": self.metadata.get("photometric") == "miniswhite",
        }

    @property
    def channel_axis(self) -> int | None:
        """The index of the samples, else of the channels, else None."""
        return next((self.axes.index(axis) for axis in "SC" if axis in self.axes), None)

    @property
    def axes_known(self) -> bool:
        """Whether the file describes its axes, as plain TIFF and zarr often do not."""
        described = (
            self.format in ("ome-tiff", "imagej-tiff", "ome-zarr")
            or "dimension_names" in self.metadata
        )
        return {"Y", "X"} <= set(self.axes) and (described or self.rgb or "Q" not in self.axes)

    def channels(self, channel_axis: int | str | None = "auto") -> dict[str, Any]:
        """The arguments ``channel_axis`` and ``alpha`` of `dn_core.denoise` for this image.

        Parameters
        ----------
        channel_axis : int, str or None, default "auto"
            ``"auto"``: as the file describes its axes; anything else is returned as it is.

        Returns
        -------
        dict
            ``{"channel_axis": ..., "alpha": ...}``.

        Raises
        ------
        ImageFileError
            When rows and columns are not the last two axes (channels aside).
        """
        if channel_axis != "auto" or not self.axes_known:
            return {"channel_axis": channel_axis, "alpha": None}
        if self.axes.endswith("S"):
            return {"channel_axis": len(self.axes) - 1, "alpha": self.alpha}
        for apart in (None, *range(len(self.axes))):
            others = [letter for axis, letter in enumerate(self.axes) if axis != apart]
            if set(others[-2:]) == {"Y", "X"}:
                return {"channel_axis": apart, "alpha": None if apart is None else False}
        raise ImageFileError(
            f"{printable(self.path)} must have Y and X as its last two axes, except for one other "
            f"axis, got {self.axes}. Transpose it first."
        )


class CheckedSource:
    """An array on disk whose reading errors name the file."""

    def __init__(self, array: Any, name: Path | str) -> None:
        self._array, self.name = array, printable(name)
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        self.chunks: tuple[int, ...] = tuple(array.chunks)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        with reading(self.name, lambda: self._where(index)):
            return np.asarray(self._array[index])

    def _where(self, index: Any) -> str:
        """Where in the array reading `index` failed, as ``"chunk 0.1 of "``, if that is known."""
        return ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]


class Target:
    """The pixels of an image that is being written: ``target[index] = block``, in any order.

    It can be read as well, and is closed at the end of the ``with`` block that created it.

    Parameters
    ----------
    array : array
        Where the blocks go: anything with ``shape``, ``dtype`` and basic numpy indexing.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __setitem__(self, index: Any, block: Any) -> None:
        if self._array is None:
            raise ValueError(
                "the image is complete already. Write its blocks inside the with block of "
                "create_image."
            )
        self._array[index] = block

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if self._array is None:
            raise ValueError("the image is complete already. Open it with open_image to read it.")
        return np.asarray(self._array[index])

    def close(self) -> None:
        """Release the array."""
        self._array = None


@contextlib.contextmanager
def reading(path: Path | str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn errors of libraries on damaged content into an `ImageFileError` that names the file.

    Parameters
    ----------
    path : Path or str
        The file.
    where : callable, default str
        Called after an error; gives the part of the file, such as ``"chunk 0.1 of "``.
    """
    try:
        yield
    except (ImageFileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            raise
        if isinstance(error, ImportError) or (
            "imagecodecs" in str(error) and "requires" in str(error)
        ):
            raise ImageFileError(
                f"{printable(path)} has a compression that needs another package ({error}). "
                "Install it: pip install imagecodecs"
            ) from error
        raise ImageFileError(
            f"{where()}{printable(path)} is damaged or of an unsupported kind "
            f"({type(error).__name__}: {error!s:.200}). Copy it again, or export it again from the "
            "program that created it."
        ) from error


def share(part: int, whole: int, what: str) -> str:
    """``"12 of 400 chunks (3%)"``."""
    percent = 100 * part / whole
    rounded = "under 1" if percent < 1 else "over 99" if 99 < percent < 100 else f"{percent:.0f}"
    return f"{part} of {whole} {what} ({rounded}%)"


def printable(path: Path | str) -> str:
    """The path with undecodable bytes escaped, so that printing it never fails."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def check_pixel_count(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse headers that claim more than `MAX_PIXELS`, or nothing at all."""
    count = math.prod(int(size) for size in shape)  # Python integers: numpy's overflow silently
    if not shape or count == 0:
        raise ImageFileError(
            f"{printable(path)} must have pixels, got an empty image of shape {shape}. Export it "
            "again."
        )
    if count > MAX_PIXELS:
        raise ImageFileError(
            f"{printable(path)} must have at most {MAX_PIXELS} pixels, but claims {count} (shape "
            f"{shape}). It is damaged or not a real image."
        )


def check_numeric_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse data types other than numbers and bools."""
    if dtype.kind not in "biufc":
        raise ImageFileError(
            f"{printable(path)} must hold numbers, got {dtype}. Convert it to integers or floats."
        )


def check_written(
    path: Path, found: ImageFile, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Check that a file just written reads back with its dtype and shape.

    Axes of length 1 do not count, since kinds of TIFF drop them.
    """
    expected = [size for size in shape if size != 1]
    same_shape = [size for size in found.shape if size != 1] == expected
    if not same_shape or found.dtype != dtype.newbyteorder("="):
        raise ImageFileError(
            f"{printable(path)} reads back as {found.dtype} {found.shape} after writing {dtype} "
            f"{shape}. Write to another format."
        )

"""What all formats share: the image that a file holds, where its blocks are written, and how reading errors are told."""

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

__all__ = ["CheckedSource", "ImageFile", "Target", "check_dtype", "check_pixel_count", "check_written", "printable", "reading", "share"]

MAX_PIXELS = 2**40
"""More pixels than any real image; a header that claims more is a mistake or an attack."""

SYMBOLS = {
    "angstrom": "Å", "nanometer": "nm", "micrometer": "µm", "millimeter": "mm", "centimeter": "cm", "meter": "m",
    "nanosecond": "ns", "microsecond": "µs", "millisecond": "ms", "second": "s", "minute": "min", "hour": "h", "day": "d",
}  # fmt: skip
"""Units: NGFF's word -> OME's symbol, which is the one in `ImageFile.metadata`."""

METRES = {"Å": 1e-10, "nm": 1e-9, "µm": 1e-6, "mm": 1e-3, "cm": 1e-2, "m": 1.0}
"""Units of length, by the symbols in `ImageFile.metadata`."""

# Failures of the storage, which a caller may want to retry; others, such as a seek to a bad place, come from bad content.
_STORAGE = {errno.ESTALE, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ENOTCONN}


@dataclass(frozen=True)
class ImageFile:
    """An image as it lies in a file: level 0 of a pyramid, the first of several images.

    Attributes
    ----------
    path
        The file or folder.
    source
        A numpy array or an array on disk with ``shape``, ``dtype`` and slicing, in the order of the file. Reading
        damaged data through it raises `ImageFileError`.
    axes
        A letter for each axis: T, Z, C, Y, X, S (samples of RGB, RGBA or grey with alpha), Q (the file does not say).
    format
        ``"tiff"``, ``"ome-tiff"``, ``"imagej-tiff"``, ``"png"``, ``"jpeg"``, ``"ome-zarr"`` or ``"zarr"``.
    metadata
        What writing needs. In all formats, where known: ``pixel_size`` and ``pixel_unit`` (for each of X, Y, Z),
        ``channel_names``, ``time_increment`` and ``time_unit``, ``dpi``, ``icc_profile``, ``xmp``, ``words`` (description, software, date
        and the like, by their numbers in TIFF and EXIF) and ``lost``, words for what no format keeps; besides, what is the format's own.
    notes
        What a user should know, such as that only the first of two images is used.
    missing
        What is not in the file and was read as a fill value, with number and share; also one of the notes. Empty where all is there.
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
        """The kind of number, in the machine's own byte order."""
        dtype: np.dtype[Any] = np.dtype(self.source.dtype).newbyteorder("=")
        return dtype

    @property
    def rgb(self) -> bool:
        """Whether there are samples: RGB, RGBA or grey with alpha."""
        return "S" in self.axes

    @property
    def pixels(self) -> NDArray[Any]:
        """All of `source`, in memory."""
        return np.array(self.source[...], dtype=self.dtype, order="C", copy=None, subok=False)

    @property
    def alpha(self) -> bool:
        """Whether the last sample is opacity, not intensity; never where samples are separate planes."""
        # Writers of planar TIFFs take four of any planes for RGB and alpha. What samples beyond the colours are, a TIFF says in its
        # extra samples, of which 0 means: just another one.
        if not self.axes.endswith("S"):
            return False
        extra = self.metadata.get("extrasamples", ())
        return extra[-1] in (1, 2) if extra else self.shape[-1] in (2, 4)

    @property
    def shown(self) -> dict[str, Any]:
        """How the pixels are to be shown: their ``orientation``, as EXIF numbers it, and whether 0 is white (``inverted``)."""
        return {"orientation": self.metadata.get("orientation", 1), "inverted": self.metadata.get("photometric") == "miniswhite"}

    @property
    def channel_axis(self) -> int | None:
        """The index of the samples, else of the channels, else None."""
        return next((self.axes.index(axis) for axis in "SC" if axis in self.axes), None)

    @property
    def axes_known(self) -> bool:
        """Whether the file itself says which axes are rows and columns; plain TIFF and zarr often do not."""
        in_words = self.format in ("ome-tiff", "imagej-tiff", "ome-zarr") or "dimension_names" in self.metadata
        return {"Y", "X"} <= set(self.axes) and (in_words or self.rgb or "Q" not in self.axes)

    def channels(self, channel_axis: int | str | None = "auto") -> dict[str, Any]:
        """``channel_axis`` and ``alpha`` for `dn_core.denoise`, as the caller says, or with ``"auto"`` the file.

        Raises
        ------
        ImageFileError
            When the file has its rows and columns where planes cannot be read.
        """
        if channel_axis != "auto" or not self.axes_known:
            return {"channel_axis": channel_axis, "alpha": None}
        if self.axes.endswith("S"):
            return {"channel_axis": len(self.axes) - 1, "alpha": self.alpha}
        for apart in (None, *range(len(self.axes))):
            if {"Y", "X"} == set([letter for axis, letter in enumerate(self.axes) if axis != apart][-2:]):
                return {"channel_axis": apart, "alpha": None if apart is None else False}
        raise ImageFileError(
            f"{printable(self.path)} has axes {self.axes}; Y and X as the last two, but for one axis, are expected. Transpose it first."
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
        """Words before the name that say where in the array reading `index` failed, if that is known."""
        return ""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]


class Target:
    """Where the blocks of a new image go: ``target[index] = block`` for any basic numpy index, in any order.

    It ends with the ``with`` block that made it, so that the file does not stay open.
    """

    def __init__(self, array: Any) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)

    def __setitem__(self, index: Any, block: Any) -> None:
        if self._array is None:
            raise ValueError("the image has been written already; write its blocks inside the with block of create_image")
        self._array[index] = block

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if self._array is None:
            raise ValueError("the image has been written already; open it with open_image to read it")
        return np.asarray(self._array[index])

    def close(self) -> None:
        """Let go of the array."""
        self._array = None


@contextlib.contextmanager
def reading(path: Path | str, where: Callable[[], str] = str) -> Iterator[None]:
    """Turn what libraries raise on bad content into an `ImageFileError` that names the file, and `where` in it."""
    try:
        yield
    except (ImageFileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _STORAGE:
            raise
        if isinstance(error, ImportError) or ("imagecodecs" in str(error) and "requires" in str(error)):
            raise ImageFileError(
                f"{printable(path)} is compressed in a way that needs a package to read ({error}). Install it: pip install imagecodecs"
            ) from error
        raise ImageFileError(
            f"{where()}{printable(path)} is damaged or not of a kind that can be read ({type(error).__name__}: {error!s:.200}). "
            "A whole image is expected; copy it again or export it again from the program that made it."
        ) from error


def share(part: int, whole: int, what: str) -> str:
    """``"12 of 400 chunks (3%)"``."""
    percent = 100 * part / whole
    rounded = "under 1" if percent < 1 else "over 99" if 99 < percent < 100 else f"{percent:.0f}"
    return f"{part} of {whole} {what} ({rounded}%)"


def printable(path: Path | str) -> str:
    """The path, with bytes that are no text escaped, so that printing it never fails."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def check_pixel_count(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse headers that claim more than `MAX_PIXELS`, or nothing at all."""
    count = math.prod(int(size) for size in shape)  # Python integers: numpy's overflow silently
    if not shape or count == 0:
        raise ImageFileError(f"{printable(path)} holds an empty image of shape {shape}; an image with pixels is expected. Export it again.")
    if count > MAX_PIXELS:
        raise ImageFileError(
            f"{printable(path)} claims {count} pixels (shape {shape}), at most {MAX_PIXELS} are expected. It is damaged or no real image."
        )


def check_dtype(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuse what is not numbers."""
    if dtype.kind not in "biufc":
        raise ImageFileError(f"{printable(path)} holds values of type {dtype}; numbers are expected. Convert it to integers or floats.")


def check_written(path: Path, found: ImageFile, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """See that a file just written reads back with its shape (axes of length 1 aside, which TIFF kinds drop) and dtype."""
    same_shape = [size for size in found.shape if size != 1] == [size for size in shape if size != 1]
    if not same_shape or found.dtype != dtype.newbyteorder("="):
        raise ImageFileError(
            f"{printable(path)} reads back as {found.dtype} {found.shape} after writing {dtype} {shape}. Write to another format."
        )

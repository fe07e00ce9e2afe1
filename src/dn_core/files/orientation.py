"""Orientation and photometric interpretation: pixels as they are displayed.

TIFF tags may say that an image is rotated or mirrored, or that 0 is white. Other formats cannot
express that, so their pixels are transformed.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files.image import ImageFile, Target

__all__ = [
    "DisplayTarget",
    "display_image",
    "is_white_zero",
    "needs_display_transform",
    "oriented",
    "reset_xmp_orientation",
]

# By the orientation's number in TIFF and EXIF: flip rows, flip columns, then transpose.
_ORIENTATIONS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def _flips(orientation: int) -> tuple[bool, bool, bool]:
    return _ORIENTATIONS.get(orientation, (False, False, False))


def oriented(pixels: NDArray[Any], orientation: int, y: int = 0, x: int = 1) -> NDArray[Any]:
    """A view of an array in display orientation; `y` and `x` are its axes of rows and columns."""
    flip_y, flip_x, transposed = _flips(orientation)
    flips = {y: flip_y, x: flip_x}
    view: NDArray[Any] = pixels[
        tuple(slice(None, None, -1 if flips.get(axis) else 1) for axis in range(pixels.ndim))
    ]
    return view.swapaxes(y, x) if transposed else view


def is_white_zero(like: ImageFile) -> bool:
    """Whether 0 is white, in a data type with a known value for black."""
    return (
        like.metadata.get("photometric") == "miniswhite"
        and not like.rgb
        and like.dtype.kind in "bu"
    )


def needs_display_transform(like: ImageFile) -> bool:
    """Whether pixels are displayed in other places or with other values than in the file."""
    return like.metadata.get("orientation", 1) in _ORIENTATIONS or is_white_zero(like)


def _black_value(like: ImageFile) -> int:
    """The value of black where 0 is white."""
    return (
        1
        if like.dtype.kind == "b"
        else 2 ** int(like.metadata.get("bits", 8 * like.dtype.itemsize)) - 1
    )


def display_image(like: ImageFile) -> ImageFile:
    """The image as formats without orientation and white-is-zero have to hold it."""
    transposed = _flips(like.metadata.get("orientation", 1))[2]
    metadata = {
        key: value for key, value in like.metadata.items() if key not in ("orientation", "bits")
    }
    if is_white_zero(like):
        metadata["photometric"] = "minisblack"
    if "orientation" in like.metadata and "xmp" in metadata:
        metadata["xmp"] = reset_xmp_orientation(metadata["xmp"])
    if transposed:
        for key in ("pixel_size", "pixel_unit"):
            if key in metadata:
                metadata[key] = {
                    {"X": "Y", "Y": "X"}.get(axis, axis): value
                    for axis, value in metadata[key].items()
                }
        for key in ("resolution", "dpi"):
            if key in metadata:
                metadata[key] = metadata[key][::-1]
        shape = list(like.shape)
        y, x = like.axes.index("Y"), like.axes.index("X")
        shape[y], shape[x] = shape[x], shape[y]
        like = dataclasses.replace(like, source=np.broadcast_to(np.zeros((), like.dtype), shape))
    if "layout" in metadata and metadata["layout"].levels and not like.rgb:
        sizes = [
            level.size[::-1] if transposed else level.size for level in metadata["layout"].levels
        ]
        metadata["levels"] = _levels(like, sizes)
    return dataclasses.replace(like, metadata=metadata)


def _levels(like: ImageFile, sizes: list[tuple[int, int]]) -> list[tuple[str, tuple[int, ...]]]:
    """The levels of a TIFF as those of an OME-Zarr, which has its own axis order."""
    leading = [axis for axis in "TQCZ" if axis in like.axes]
    extents = [like.shape[like.axes.index(axis)] for axis in leading]
    whole = (like.shape[like.axes.index("Y")], like.shape[like.axes.index("X")])
    return [(str(number), (*extents, *size)) for number, size in enumerate([whole, *sizes])]


def reset_xmp_orientation(xmp: bytes) -> bytes:
    """XMP of an image whose orientation has been applied: its orientation is 1."""
    return re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))\d", rb"\g<1>1", xmp)


class DisplayTarget:
    """A target in the orientation and values of the input, over one with those of the display."""

    def __init__(self, target: Target, like: ImageFile) -> None:
        self._target, self.shape, self.dtype = target, like.shape, like.dtype
        self._y, self._x = like.axes.index("Y"), like.axes.index("X")
        self._orientation = int(like.metadata.get("orientation", 1))
        self._black = _black_value(like) if is_white_zero(like) else None

    def __setitem__(self, index: Any, block: Any) -> None:
        place, ranges, kept = self._place(index)
        whole = np.broadcast_to(np.asarray(block, self.dtype), [len(ranges[axis]) for axis in kept])
        whole = oriented(
            whole.reshape([len(taken) for taken in ranges]), self._orientation, self._y, self._x
        )
        self._target[place] = self._inverted(whole)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        place, ranges, kept = self._place(index)
        back = {6: 8, 8: 6}.get(self._orientation, self._orientation)
        block = self._inverted(oriented(self._target[place], back, self._y, self._x))
        return block.reshape([len(ranges[axis]) for axis in kept])

    def _inverted(self, block: NDArray[Any]) -> NDArray[Any]:
        if self._black is None:
            return block
        # Black minus the value, for values of as many bits as black has.
        inverted: NDArray[Any] = np.bitwise_xor(block, self.dtype.type(self._black))
        return inverted

    def _place(self, index: Any) -> tuple[tuple[slice, ...], list[range], list[int]]:
        """A block's index in the display, its range along each axis, and the axes it keeps."""
        given = index if isinstance(index, tuple) else (index,)
        if not any(item is ... for item in given):
            given = (*given, ...)
        at = next(number for number, item in enumerate(given) if item is ...)
        full = (*given[:at], *(slice(None),) * (len(self.shape) - len(given) + 1), *given[at + 1 :])
        ranges = [
            range(size)[item]
            if isinstance(item, slice)
            else range(start := range(size)[operator.index(item)], start + 1)
            for item, size in zip(full, self.shape, strict=True)
        ]
        if any(taken.step < 0 for taken in ranges):
            raise ValueError(f"the index must run forwards, got {index!r}. Flip the block instead.")
        flip_y, flip_x, transposed = _flips(self._orientation)
        place = [slice(taken.start, taken.stop, taken.step) for taken in ranges]
        for axis, flipped in ((self._y, flip_y), (self._x, flip_x)):
            if flipped and (taken := ranges[axis]):
                last = self.shape[axis] - 1
                place[axis] = slice(last - taken[-1], last - taken[0] + 1, taken.step)
        if transposed:
            place[self._y], place[self._x] = place[self._x], place[self._y]
        return (
            tuple(place),
            ranges,
            [axis for axis, item in enumerate(full) if isinstance(item, slice)],
        )

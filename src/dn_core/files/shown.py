"""Pixels as they are shown: TIFF tags may say that an image is turned or that 0 is white, which other formats cannot say."""

from __future__ import annotations

import dataclasses
import operator
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files.image import ImageFile, Target

__all__ = ["AsShown", "as_shown", "is_inverted", "is_turned_or_inverted", "turned", "upright_xmp"]

# Orientation, as TIFF and EXIF number it: rows from the bottom up, columns from right to left, then rows and columns exchanged.
_TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


def _turn(orientation: int) -> tuple[bool, bool, bool]:
    return _TURNS.get(orientation, (False, False, False))


def turned(pixels: NDArray[Any], orientation: int, y: int = 0, x: int = 1) -> NDArray[Any]:
    """A view of an array with its axes `y` and `x` as an orientation says that it is shown."""
    flip_y, flip_x, exchanged = _turn(orientation)
    flips = {y: flip_y, x: flip_x}
    view: NDArray[Any] = pixels[tuple(slice(None, None, -1 if flips.get(axis) else 1) for axis in range(pixels.ndim))]
    return view.swapaxes(y, x) if exchanged else view


def is_inverted(like: ImageFile) -> bool:
    """Whether 0 is white, in numbers of which it is known what black is."""
    return like.metadata.get("photometric") == "miniswhite" and not like.rgb and like.dtype.kind in "bu"


def is_turned_or_inverted(like: ImageFile) -> bool:
    """Whether pixels are shown elsewhere, or as other numbers, than they lie in the file."""
    return like.metadata.get("orientation", 1) in _TURNS or is_inverted(like)


def _white_value(like: ImageFile) -> int:
    """What is black where 0 is white."""
    return 1 if like.dtype.kind == "b" else 2 ** int(like.metadata.get("bits", 8 * like.dtype.itemsize)) - 1


def as_shown(like: ImageFile) -> ImageFile:
    """The image as formats have to hold it that know neither turned pictures nor a white 0."""
    exchanged = _turn(like.metadata.get("orientation", 1))[2]
    metadata = {key: value for key, value in like.metadata.items() if key not in ("orientation", "bits")}
    if is_inverted(like):
        metadata["photometric"] = "minisblack"
    if "orientation" in like.metadata and "xmp" in metadata:
        metadata["xmp"] = upright_xmp(metadata["xmp"])
    if exchanged:
        for key in ("pixel_size", "pixel_unit"):
            if key in metadata:
                metadata[key] = {{"X": "Y", "Y": "X"}.get(axis, axis): value for axis, value in metadata[key].items()}
        for key in ("resolution", "dpi"):
            if key in metadata:
                metadata[key] = metadata[key][::-1]
        shape = list(like.shape)
        y, x = like.axes.index("Y"), like.axes.index("X")
        shape[y], shape[x] = shape[x], shape[y]
        like = dataclasses.replace(like, source=np.broadcast_to(np.zeros((), like.dtype), shape))
    if "layout" in metadata and metadata["layout"].levels and not like.rgb:
        sizes = [level.size[::-1] if exchanged else level.size for level in metadata["layout"].levels]
        metadata["levels"] = _levels(like, sizes)
    return dataclasses.replace(like, metadata=metadata)


def _levels(like: ImageFile, sizes: list[tuple[int, int]]) -> list[tuple[str, tuple[int, ...]]]:
    """The levels of a TIFF as those of an OME-Zarr, whose axes have an order of their own."""
    leading = [axis for axis in "TQCZ" if axis in like.axes]
    extents = [like.shape[like.axes.index(axis)] for axis in leading]
    whole = (like.shape[like.axes.index("Y")], like.shape[like.axes.index("X")])
    return [(str(number), (*extents, *size)) for number, size in enumerate([whole, *sizes])]


def upright_xmp(xmp: bytes) -> bytes:
    """An XMP description of a picture whose turning has been done."""
    return re.sub(rb"(tiff:Orientation\s*(?:=\s*[\"']|>\s*))\d", rb"\g<1>1", xmp)


class AsShown:
    """A target in the input's own order and numbers, over one that holds them as they are shown."""

    def __init__(self, target: Target, like: ImageFile) -> None:
        self._target, self.shape, self.dtype = target, like.shape, like.dtype
        self._y, self._x = like.axes.index("Y"), like.axes.index("X")
        self._orientation = int(like.metadata.get("orientation", 1))
        self._white = _white_value(like) if is_inverted(like) else None

    def __setitem__(self, index: Any, block: Any) -> None:
        place, ranges, kept = self._place(index)
        whole = np.broadcast_to(np.asarray(block, self.dtype), [len(ranges[axis]) for axis in kept])
        whole = turned(whole.reshape([len(taken) for taken in ranges]), self._orientation, self._y, self._x)
        self._target[place] = self._inverted(whole)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        place, ranges, kept = self._place(index)
        back = {6: 8, 8: 6}.get(self._orientation, self._orientation)
        block = self._inverted(turned(self._target[place], back, self._y, self._x))
        return block.reshape([len(ranges[axis]) for axis in kept])

    def _inverted(self, block: NDArray[Any]) -> NDArray[Any]:
        if self._white is None:
            return block
        inverted: NDArray[Any] = np.bitwise_xor(block, self.dtype.type(self._white))  # the difference, of numbers of that many bits
        return inverted

    def _place(self, index: Any) -> tuple[tuple[slice, ...], list[range], list[int]]:
        """Where a block lies as it is shown, what it takes of each axis, and the axes that the index keeps."""
        given = index if isinstance(index, tuple) else (index,)
        if not any(item is ... for item in given):
            given = (*given, ...)
        at = next(number for number, item in enumerate(given) if item is ...)
        full = (*given[:at], *(slice(None),) * (len(self.shape) - len(given) + 1), *given[at + 1 :])
        ranges = [
            range(size)[item] if isinstance(item, slice) else range(start := range(size)[operator.index(item)], start + 1)
            for item, size in zip(full, self.shape, strict=True)
        ]
        if any(taken.step < 0 for taken in ranges):
            raise ValueError(f"the index {index!r} runs backwards; forwards is expected. Turn the block round.")
        flip_y, flip_x, exchanged = _turn(self._orientation)
        place = [slice(taken.start, taken.stop, taken.step) for taken in ranges]
        for axis, flipped in ((self._y, flip_y), (self._x, flip_x)):
            if flipped and (taken := ranges[axis]):
                last = self.shape[axis] - 1
                place[axis] = slice(last - taken[-1], last - taken[0] + 1, taken.step)
        if exchanged:
            place[self._y], place[self._x] = place[self._x], place[self._y]
        return tuple(place), ranges, [axis for axis, item in enumerate(full) if isinstance(item, slice)]

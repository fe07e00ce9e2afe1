"""Planes of an array: which axes they are, what is in them, how their pixels become numbers for a network and come back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import NDArray

from dn_core.inference.tiling import pad_to_multiple

__all__ = [
    "Axes",
    "ChannelAxis",
    "NonFinite",
    "Plane",
    "Statistics",
    "blend",
    "blocks",
    "check_dtype",
    "find_axes",
    "from_float",
    "power_of_two",
    "read_window",
    "statistics",
    "to_float",
]

NonFinite = Literal["raise", "fill"]
ChannelAxis = int | Literal["auto"] | None

# Statistics are taken from blocks of about this many pixels, so that a huge plane needs little memory.
BLOCK_PIXELS = 2**21
# A pixel that is not finite is replaced by the mean of the finite ones this near, while the network runs.
FILL_RADIUS = 3
# Beyond this range float32 arithmetic would overflow or lose digits; such planes are scaled by a power of two.
LARGE, SMALL = 1e30, 1e-30
MAX_NDIM = 32
# A last axis is taken for channels up to this length, and below this part of both axes before it.
MOST_CHANNELS, CHANNEL_PART = 16, 8
# So many planes of at least so many rows and 3 or 4 columns could as well be a small picture in colours.
SMALL_PICTURE = 16
# What arrays with named axes call them.
ROWS, COLUMNS = {"y", "row", "rows", "height", "latitude", "lat"}, {"x", "col", "cols", "column", "columns", "width", "longitude", "lon"}
COLOURS = {"s", "sample", "samples", "rgb", "rgba", "color", "colors", "colour", "colours"}
CHANNELS = {"c", "ch", "channel", "channels", "band", "bands", "wavelength", "wavelengths"}
# Letters of rows and columns, for axes that turn out to be neither.
_UNKNOWN = str.maketrans("YX", "QQ")


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axes of an array are a plane's rows and columns, and which samples are not denoised."""

    shape: tuple[int, ...]
    spatial: tuple[int, int]
    alpha: tuple[int, int] | None = None
    """Axis and index of an alpha channel, which passes through unchanged."""
    guess: str | None = None
    """What was guessed, or left alone as alpha unasked; None where the caller or the names of the axes said all."""
    otherwise: str = ""
    """How a caller says what was guessed, or otherwise."""

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[self.spatial[0]], self.shape[self.spatial[1]]

    @property
    def others(self) -> tuple[int, ...]:
        """Axes that are neither rows nor columns."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.spatial)

    @property
    def note(self) -> str | None:
        """What a user should know of the axes, and can do about it; None where nothing was guessed or left alone."""
        return None if self.guess is None else f"image has shape {self.shape}: {self.guess}. {self.otherwise}"

    @property
    def options(self) -> dict[str, Any]:
        """``channel_axis`` and ``alpha`` with which a caller says that the axes are these.

        Raises
        ------
        ValueError
            When no `channel_axis` leaves rows and columns as the last two axes.
        """
        found = replace(self, guess=None, otherwise="")
        for channel_axis in (None, *range(len(self.shape))) if self.alpha is None else (self.alpha[0],):
            if find_axes(self.shape, channel_axis, self.alpha is not None) == found:
                return {"channel_axis": channel_axis, "alpha": self.alpha is not None}
        raise ValueError(
            f"axes {self.spatial} of {self.shape} are rows and columns; the last two, with at most one of channels beside them, are "
            "expected. Transpose the image first."
        )

    def letters(self, names: str) -> str:
        """Letters for the axes: Y and X for a plane's, as `names` say for the others."""
        rows, columns = self.spatial
        return "".join("Y" if axis == rows else "X" if axis == columns else name for axis, name in enumerate(names.translate(_UNKNOWN)))

    def planes(self, *, alpha: bool = False) -> Iterator[Plane]:
        """Every plane in C order, or with `alpha` those of the alpha channel only."""
        for position in itertools.product(*(range(self.shape[axis]) for axis in self.others)):
            where = dict(zip(self.others, position, strict=True))
            if (self.alpha is not None and where[self.alpha[0]] == self.alpha[1]) == alpha:
                yield Plane(self, tuple(where.get(axis, -1) for axis in range(len(self.shape))))


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of an array; `position` has its index on every axis, -1 on rows and columns."""

    axes: Axes
    position: tuple[int, ...]

    def index(self, rows: slice, columns: slice) -> tuple[int | slice, ...]:
        """The index of a part of the plane in the array."""
        window = dict(zip(self.axes.spatial, (rows, columns), strict=True))
        return tuple(window.get(axis, where) for axis, where in enumerate(self.position))

    def pixel(self, row: int, column: int) -> tuple[int, ...]:
        """The index of one pixel in the array."""
        pixel = dict(zip(self.axes.spatial, (row, column), strict=True))
        return tuple(int(pixel.get(axis, where)) for axis, where in enumerate(self.position))


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is known of a plane before it is denoised; of its finite pixels."""

    low: float
    high: float
    mean: float
    bad: int = 0
    first_bad: tuple[int, int] | None = None

    @property
    def constant(self) -> bool:
        """Whether all pixels are the same: there is no noise then."""
        return self.low == self.high

    @property
    def scale(self) -> float:
        """A power of two by which the pixels are divided: exact, and 1 but for extreme values."""
        return float(power_of_two(np.float64(self.low), np.float64(self.high)))


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse what is not an intensity image.

    Raises
    ------
    TypeError
        With what to do instead.
    """
    advice = {
        "b": "a mask, not an intensity image; use image.astype('float32') if that is meant",
        "c": "a real intensity image is expected; denoise image.real and image.imag separately",
        "U": "an array is expected; for a file use dn-resnet denoise, or read it first, for instance with dn_core.files.read_image",
    }
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise TypeError(
            f"image has dtype {dtype}: {advice.get(dtype.kind, 'integers or floats of up to 64 bits are expected; convert the image')}."
        )


def find_axes(
    shape: Sequence[int], channel_axis: ChannelAxis = "auto", alpha: bool | None = None, names: Sequence[Hashable] = ()
) -> Axes:
    """The planes of an array: as the caller says, else as its axes are named, else by one rule for all arrays, files and layers.

    The rule: axes of length 1 at the end are left aside. A last axis of at most 16, below an eighth of both axes before it, is channels,
    and the last of 4 is alpha. Otherwise the last two axes are planes. What was guessed is said in `Axes.guess`.

    Parameters
    ----------
    shape
        Of the array.
    channel_axis
        The axis of channels, which are all denoised; None when there are none and the last two axes are planes; ``"auto"`` to find out.
    alpha
        Whether the last channel is alpha; by default only where it is found out, in the last axis.
    names
        Of the axes, such as ``("time", "y", "x", "channel")``. Only the names of rows, columns, channels and colours count.

    Raises
    ------
    AxisError
        When `channel_axis` is not an axis of the array.
    TypeError
        When it is not an integer.
    ValueError
        When there are too few or too many axes, one of them is empty, or no channel can be alpha.

    Examples
    --------
    >>> find_axes((5, 256, 256)).spatial, find_axes((256, 256, 5)).spatial, find_axes((256, 256, 5), None).spatial
    ((1, 2), (0, 1), (1, 2))
    """
    shape = tuple(shape)
    auto = isinstance(channel_axis, str) and channel_axis == "auto"
    given = None if auto or channel_axis is None else _checked_channel(channel_axis, shape)
    _check_shape(shape, given)
    named = _named(shape, names) if auto else None
    if named is not None:
        spatial, channel = named
    else:
        channel = _guessed_channel(shape) if auto else given
        end = len(shape) if channel_axis is None else _end(shape, channel)
        rows, columns = [axis for axis in range(end) if axis != channel][-2:]
        spatial = rows, columns
    if alpha and (channel is None or shape[channel] < 2):
        raise ValueError(f"alpha is true, but shape {shape} with channel_axis {channel_axis} has no channel beside it; leave alpha out.")
    guessed = auto and named is None
    if channel is None:
        return Axes(shape, spatial, None, *(_doubt(shape, spatial) if guessed else ()))
    colours = named is None or (channel == len(shape) - 1 and str(names[channel]).lower() in COLOURS)
    found_alpha = auto and alpha is None and shape[channel] == 4 and colours
    words = _guess(shape, channel, found_alpha) if found_alpha or guessed else ()
    return Axes(shape, spatial, (channel, shape[channel] - 1) if alpha or found_alpha else None, *words)


def _checked_channel(channel_axis: Any, shape: tuple[int, ...]) -> int:
    if isinstance(channel_axis, (bool, np.bool_)) or not isinstance(channel_axis, (int, np.integer)):
        raise TypeError(f'channel_axis is {channel_axis!r}; "auto", an integer or None is expected. Give the index of the axis.')
    ndim = len(shape)
    if not -ndim <= channel_axis < ndim:
        raise AxisError(
            f"channel_axis is {channel_axis}, the image has {ndim} axes {shape}; one of {-ndim}..{ndim - 1} is "
            "expected. Change channel_axis."
        )
    return int(channel_axis) % ndim


def _check_shape(shape: tuple[int, ...], channel: int | None) -> None:
    if not 2 <= len(shape) - (channel is not None) <= MAX_NDIM:
        where = "" if channel is None else f" with channel_axis {channel}"
        raise ValueError(
            f"image has shape {shape}{where}; (..., height, width) is expected, with channels (..., height, width, channels). Reshape it."
        )
    if 0 in shape:
        raise ValueError(f"image has shape {shape}: axis {shape.index(0)} is empty; at least one pixel is expected. Check how it was cut.")


def _named(shape: tuple[int, ...], names: Sequence[Hashable]) -> tuple[tuple[int, int], int | None] | None:
    """Rows and columns and the channels, as the axes' names say; None where they say neither."""
    words = [str(name).lower() for name in names]
    rows, columns, colours, channels = (
        [axis for axis, word in enumerate(words) if word in known] for known in (ROWS, COLUMNS, COLOURS, CHANNELS)
    )
    channel = next(iter(colours + channels), None)
    if len(rows) == len(columns) == 1:
        first, second = sorted(rows + columns)
        return (first, second), channel
    if channel is None or len(shape) < 3:
        return None
    first, second = [axis for axis in range(_end(shape, channel)) if axis != channel][-2:]
    return (first, second), channel


def _end(shape: tuple[int, ...], channel: int | None) -> int:
    """Where the axes of length 1 at the end begin; two axes beside the channels stay."""
    end = len(shape)
    while shape[end - 1] == 1 and end - (channel is not None and channel < end) > 2:
        end -= 1
    return end


def _guessed_channel(shape: tuple[int, ...]) -> int | None:
    end = _end(shape, None)
    few = end > 2 and shape[end - 1] <= MOST_CHANNELS and shape[end - 1] * CHANNEL_PART < min(shape[end - 3 : end - 1])
    return end - 1 if few else None


def _guess(shape: tuple[int, ...], channel: int, alpha: bool) -> tuple[str, str]:
    """What was guessed of the channels, and how to say otherwise."""
    last = "its last axis" if channel == len(shape) - 1 else f"its axis {channel}"
    what = "colours, and the last of them as alpha, which is left alone" if alpha else "channels"
    so = f"if all {shape[channel]} are channels" if alpha else "to say so"
    return (
        f"{last}, of {shape[channel]}, is taken as {what}",
        f"Give channel_axis={channel - len(shape)} {so}, or channel_axis=None if the last two axes are planes.",
    )


def _doubt(shape: tuple[int, ...], spatial: tuple[int, int]) -> tuple[str, str] | tuple[()]:
    """Words for planes as narrow as pixels have colours, which a small picture in colours could be as well."""
    first, last = spatial
    if first == 0 or shape[last] not in (3, 4) or min(shape[first - 1 : last]) < SMALL_PICTURE:
        return ()
    return (
        f"planes of {shape[first]} x {shape[last]} pixels are taken",
        f"Give channel_axis=None to say so, or channel_axis={last - len(shape)} if there are {shape[last]} colours.",
    )


def power_of_two(low: Any, high: Any) -> Any:
    """The scale for planes of this range: 1 for ordinary ones, else the power of two that brings them near 1; of any shape."""
    largest = np.maximum(np.abs(np.asarray(low, np.float64)), np.abs(np.asarray(high, np.float64)))
    ordinary = ((largest > SMALL) & (largest < LARGE)) | (largest == 0)
    return np.where(ordinary, 1.0, np.ldexp(1.0, np.minimum(np.frexp(largest)[1], 1023)))


def statistics(source: Any, plane: Plane) -> Statistics:
    """Range, mean and non-finite pixels of one plane, read block by block."""
    low, high, bad, first = math.inf, -math.inf, 0, None
    means, counts = [], []
    for rows, columns in blocks(source, plane):
        pixels = np.asarray(source[plane.index(rows, columns)])
        if pixels.dtype.kind == "f" and not (finite := np.isfinite(pixels)).all():
            bad += pixels.size - int(np.count_nonzero(finite))
            row, column = np.argwhere(~finite)[0]
            found = (rows.start + int(row), columns.start + int(column))
            first = found if first is None else min(first, found)
            pixels = pixels[finite]
        if pixels.size:
            low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
            with np.errstate(over="ignore"):
                means.append(float(pixels.astype(np.float64).mean()))
            counts.append(pixels.size)
    if not counts:
        return Statistics(0.0, 0.0, 0.0, bad, first)
    total = sum(counts)
    mean = math.fsum(value * (count / total) for value, count in zip(means, counts, strict=True))
    return Statistics(low, high, min(max(mean, low), high) if math.isfinite(mean) else low / 2 + high / 2, bad, first)


def blocks(source: Any, plane: Plane) -> Iterator[tuple[slice, slice]]:
    """Blocks of about `BLOCK_PIXELS` that cover a plane, along the chunks of an array that has some: each is then decoded once."""
    height, width = plane.axes.plane_shape
    chunks = getattr(source, "chunks", None)
    chunk_rows, chunk_columns = (chunks[axis] for axis in plane.axes.spatial) if chunks else (1, width)
    columns = min(width, chunk_columns * max(1, BLOCK_PIXELS // (chunk_rows * chunk_columns)))
    rows = min(height, chunk_rows * max(1, BLOCK_PIXELS // (chunk_rows * columns)))
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        yield slice(top, min(top + rows, height)), slice(left, min(left + columns, width))


def read_window(source: Any, plane: Plane, window: tuple[slice, slice], found: Statistics) -> NDArray[Any]:
    """The pixels of a window, which may end a little beyond the plane: the last row and column are repeated there."""
    height, width = plane.axes.plane_shape
    rows, columns = (slice(part.start, min(part.stop, extent)) for part, extent in zip(window, (height, width), strict=True))
    if found.bad:
        pixels = _filled(source, plane, rows, columns, found.mean)
    else:
        pixels = np.asarray(source[plane.index(rows, columns)])
    return pad_to_multiple(pixels, (window[0].stop - window[0].start, window[1].stop - window[1].start))


def to_float(pixels: NDArray[Any], offset: float, scale: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """``(pixels - offset) / scale`` in `dtype`; computed in float64 where float32 would lose digits of the pixels."""
    narrow = pixels.dtype.itemsize <= 2 or (pixels.dtype.kind == "f" and pixels.dtype.itemsize == 4)
    wide = dtype == np.float64 or not narrow or scale != 1.0
    values: NDArray[Any] = pixels.astype(np.float64 if wide else np.float32)
    if scale != 1.0:  # before the offset, whose subtraction could overflow
        values, offset = values / scale, offset / scale
    if offset:
        values = values - values.dtype.type(offset)
    return values.astype(dtype, copy=False)


def from_float(pixels: NDArray[Any], change: NDArray[Any]) -> NDArray[Any]:
    """``pixels - change`` in the pixels' dtype; integers are rounded and clipped, pixels that are not finite stay as they are."""
    dtype = pixels.dtype
    wide = np.float64 if dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize > 2) else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        values = pixels.astype(wide) - change.astype(wide, copy=False)
        if dtype.kind == "f":
            limit = float(np.finfo(dtype).max)
            result = np.clip(values, -limit, limit).astype(dtype)
            return np.where(np.isfinite(pixels), result, pixels)
    info = np.iinfo(dtype)
    np.rint(values, out=values)
    # The largest float that fits: float64 cannot hold the largest 64-bit integers and would round them up, out of range.
    top = float(info.max) if int(float(info.max)) <= info.max else float(np.nextafter(float(info.max), 0))
    clipped: NDArray[Any] = np.clip(values, float(info.min), top).astype(dtype)
    # float64 cannot hold all 64-bit integers: what does not change is kept as it is.
    return np.where(change == 0, pixels, clipped) if dtype.itemsize > 4 else clipped


def blend(image: NDArray[Any], denoised: NDArray[Any], amount: float) -> NDArray[Any]:
    """Between an image and its denoised version: 0 gives the image, 1 the denoised one; integers are rounded.

    ``denoise(image, amount=a)`` is ``blend(image, denoise(image), a)``, pixel for pixel.

    Parameters
    ----------
    image, denoised
        Arrays of one shape and dtype.
    amount
        0 to 1.

    >>> blend(np.array([100, 200], np.uint8), np.array([110, 190], np.uint8), 0.25)
    array([102, 198], dtype=uint8)
    """
    if amount == 1:
        return denoised
    wide = np.float64 if image.dtype.itemsize > 2 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        change = image.astype(wide) - denoised.astype(wide)
    return from_float(image, change * wide(amount))


def _filled(source: Any, plane: Plane, rows: slice, columns: slice, fallback: float) -> NDArray[Any]:
    """Finite pixels: those that are not get the mean of the finite ones near, however the plane is cut into tiles."""
    height, width = plane.axes.plane_shape
    top, left = max(rows.start - FILL_RADIUS, 0), max(columns.start - FILL_RADIUS, 0)
    pixels = np.array(
        source[plane.index(slice(top, min(rows.stop + FILL_RADIUS, height)), slice(left, min(columns.stop + FILL_RADIUS, width)))]
    )
    finite = np.isfinite(pixels)
    result = pixels.copy()
    for row, column in np.argwhere(~finite):
        near = (slice(max(row - FILL_RADIUS, 0), row + FILL_RADIUS + 1), slice(max(column - FILL_RADIUS, 0), column + FILL_RADIUS + 1))
        values = pixels[near][finite[near]]
        result[row, column] = values.mean(dtype=np.float64) if values.size else fallback
    return result[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]

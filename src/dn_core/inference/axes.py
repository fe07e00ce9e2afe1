"""Image axes: which of them are rows, columns and channels, and the planes they make."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.exceptions import AxisError

__all__ = ["Axes", "ChannelAxis", "Plane", "find_axes"]

ChannelAxis = int | Literal["auto"] | None

MAX_NDIM = 32
# A last axis is taken as channels up to this length, and below this part of both axes before it.
MOST_CHANNELS, CHANNEL_PART = 16, 8
# At least this many planes of at least this many rows and 3 or 4 columns may also be a small RGB
# or RGBA image.
SMALL_PICTURE = 16
# Names of axes, as in xarray.
ROWS, COLUMNS = (
    {"y", "row", "rows", "height", "latitude", "lat"},
    {"x", "col", "cols", "column", "columns", "width", "longitude", "lon"},
)
COLOURS = {"s", "sample", "samples", "rgb", "rgba", "color", "colors", "colour", "colours"}
CHANNELS = {"c", "ch", "channel", "channels", "band", "bands", "wavelength", "wavelengths"}
# Letters of rows and columns, for axes that turn out to be neither.
_UNKNOWN = str.maketrans("YX", "QQ")


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axes of an array are the rows and columns of its planes, and what is not denoised.

    Attributes
    ----------
    shape : tuple of int
        Shape of the array.
    spatial : tuple (int, int)
        Axes of rows and columns, in the order in which they lie in the array.
    alpha : tuple (int, int), optional
        Axis and index of an alpha channel, which passes through unchanged; None without one.
    guess : str, optional
        What was guessed, or left alone as alpha without being asked to; None where the caller or
        the names of the axes settle everything.
    otherwise : str, default ""
        How a caller confirms the guess, or asks for something else.
    """

    shape: tuple[int, ...]
    spatial: tuple[int, int]
    alpha: tuple[int, int] | None = None
    guess: str | None = None
    otherwise: str = ""

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[self.spatial[0]], self.shape[self.spatial[1]]

    @property
    def others(self) -> tuple[int, ...]:
        """Axes that are neither rows nor columns."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.spatial)

    @property
    def plane_count(self) -> int:
        """How many planes are denoised: those of an alpha channel are not."""
        counts = [self.shape[axis] for axis in self.others]
        if self.alpha is not None:
            counts[self.others.index(self.alpha[0])] -= 1
        return math.prod(counts)

    @property
    def note(self) -> str | None:
        """What was guessed, and how to say otherwise; None where nothing was guessed."""
        return (
            None
            if self.guess is None
            else f"image has shape {self.shape}: {self.guess}. {self.otherwise}"
        )

    @property
    def options(self) -> dict[str, Any]:
        """``channel_axis`` and ``alpha`` that give these axes without a guess.

        Raises
        ------
        ValueError
            When no `channel_axis` leaves rows and columns as the last two axes.
        """
        found = replace(self, guess=None, otherwise="")
        for channel_axis in (
            (None, *range(len(self.shape))) if self.alpha is None else (self.alpha[0],)
        ):
            if find_axes(self.shape, channel_axis, self.alpha is not None) == found:
                return {"channel_axis": channel_axis, "alpha": self.alpha is not None}
        raise ValueError(
            f"rows and columns must be the last two axes, with at most one axis of channels beside "
            f"them, got axes {self.spatial} of {self.shape}. Transpose the image first."
        )

    def letters(self, names: str) -> str:
        """Letters for the axes: Y and X for a plane's, as `names` say for the others."""
        rows, columns = self.spatial
        return "".join(
            "Y" if axis == rows else "X" if axis == columns else name
            for axis, name in enumerate(names.translate(_UNKNOWN))
        )

    def planes(self, *, alpha: bool = False) -> Iterator[Plane]:
        """Every plane in C order, or with `alpha` those of the alpha channel only."""
        for position in itertools.product(*(range(self.shape[axis]) for axis in self.others)):
            where = dict(zip(self.others, position, strict=True))
            if (self.alpha is not None and where[self.alpha[0]] == self.alpha[1]) == alpha:
                yield Plane(self, tuple(where.get(axis, -1) for axis in range(len(self.shape))))


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of an array.

    Attributes
    ----------
    axes : Axes
        Axes of the array.
    position : tuple of int
        Index of the plane on every axis of the array; -1 for rows and columns.
    """

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


def find_axes(
    shape: Sequence[int],
    channel_axis: ChannelAxis = "auto",
    alpha: bool | None = None,
    names: Sequence[Hashable] = (),
) -> Axes:
    """Find the planes of an array.

    The caller decides, else the names of the axes, else one rule for all arrays, files and layers:
    axes of length 1 at the end are ignored. A last axis of at most 16, below an eighth of both axes
    before it, is taken as channels, and the last of 4 as alpha. Otherwise the last two axes are
    planes. `Axes.guess` says what was guessed.

    Parameters
    ----------
    shape : sequence of int
        Shape of the array.
    channel_axis : int, None or "auto", default "auto"
        The axis of channels, which are all denoised; None when there are none and the last two axes
        are planes; ``"auto"`` (default) to find out.
    alpha : bool, optional
        Whether the last channel is alpha. By default only where channels are found automatically.
    names : sequence of Hashable, optional
        Names of the axes, such as ``("time", "y", "x", "channel")``; default none. Only names of
        rows, columns, channels and colours count.

    Returns
    -------
    Axes
        Rows, columns and alpha.

    Raises
    ------
    AxisError
        If `channel_axis` is not an axis of the array.
    TypeError
        If `channel_axis` is not an integer, None or ``"auto"``.
    ValueError
        If there are too few or too many axes, one of them is empty, or no channel can be alpha.

    Examples
    --------
    >>> find_axes((5, 256, 256)).spatial, find_axes((256, 256, 5)).spatial
    ((1, 2), (0, 1))
    >>> find_axes((256, 256, 5), channel_axis=None).spatial
    (1, 2)
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
        raise ValueError(
            f"alpha=True needs at least two channels, got shape {shape} with channel_axis "
            f"{channel_axis}. Leave out alpha."
        )
    guessed = auto and named is None
    if channel is None:
        return Axes(shape, spatial, None, *(_doubt(shape, spatial) if guessed else ()))
    colours = named is None or (
        channel == len(shape) - 1 and str(names[channel]).lower() in COLOURS
    )
    found_alpha = auto and alpha is None and shape[channel] == 4 and colours
    words = _guess(shape, channel, found_alpha) if found_alpha or guessed else ()
    return Axes(
        shape, spatial, (channel, shape[channel] - 1) if alpha or found_alpha else None, *words
    )


def _checked_channel(channel_axis: Any, shape: tuple[int, ...]) -> int:
    if isinstance(channel_axis, (bool, np.bool_)) or not isinstance(
        channel_axis, (int, np.integer)
    ):
        raise TypeError(
            f'channel_axis must be "auto", an integer or None, got {channel_axis!r}. Give the '
            "index of the axis."
        )
    ndim = len(shape)
    if not -ndim <= channel_axis < ndim:
        raise AxisError(
            f"channel_axis must be {-ndim} to {ndim - 1} for an image of shape {shape}, got "
            f"{channel_axis}. Change channel_axis."
        )
    return int(channel_axis) % ndim


def _check_shape(shape: tuple[int, ...], channel: int | None) -> None:
    if not 2 <= len(shape) - (channel is not None) <= MAX_NDIM:
        where = "" if channel is None else f" with channel_axis {channel}"
        raise ValueError(
            "image must have shape (..., height, width), or (..., height, width, channels), got "
            f"{shape}{where}. Reshape it."
        )
    if 0 in shape:
        raise ValueError(
            f"image must have at least one pixel, got shape {shape}: axis {shape.index(0)} is "
            "empty. Check how it was cropped."
        )


def _named(
    shape: tuple[int, ...], names: Sequence[Hashable]
) -> tuple[tuple[int, int], int | None] | None:
    """Rows, columns and channels by the names of the axes; None where the names say neither."""
    words = [str(name).lower() for name in names]
    rows, columns, colours, channels = (
        [axis for axis, word in enumerate(words) if word in known]
        for known in (ROWS, COLUMNS, COLOURS, CHANNELS)
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
    """Where the axes of length 1 at the end begin; at least two axes besides channels are kept."""
    end = len(shape)
    while shape[end - 1] == 1 and end - (channel is not None and channel < end) > 2:
        end -= 1
    return end


def _guessed_channel(shape: tuple[int, ...]) -> int | None:
    end = _end(shape, None)
    few = (
        end > 2
        and shape[end - 1] <= MOST_CHANNELS
        and shape[end - 1] * CHANNEL_PART < min(shape[end - 3 : end - 1])
    )
    return end - 1 if few else None


def _guess(shape: tuple[int, ...], channel: int, alpha: bool) -> tuple[str, str]:
    """What was guessed about the channels, and how to say otherwise."""
    last = "its last axis" if channel == len(shape) - 1 else f"its axis {channel}"
    what = "colours, and the last of them as alpha, which is left alone" if alpha else "channels"
    so = f"if all {shape[channel]} are channels" if alpha else "to say so"
    return (
        f"{last}, of {shape[channel]}, is taken as {what}",
        f"Give channel_axis={channel - len(shape)} {so}, or channel_axis=None if the last two "
        "axes are planes.",
    )


def _doubt(shape: tuple[int, ...], spatial: tuple[int, int]) -> tuple[str, str] | tuple[()]:
    """Words for planes of 3 or 4 columns, which may also be a small RGB or RGBA image."""
    first, last = spatial
    if first == 0 or shape[last] not in (3, 4) or min(shape[first - 1 : last]) < SMALL_PICTURE:
        return ()
    return (
        f"planes of {shape[first]} x {shape[last]} pixels are taken",
        f"Give channel_axis=None to say so, or channel_axis={last - len(shape)} if there are "
        f"{shape[last]} colours.",
    )

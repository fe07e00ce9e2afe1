"""User images as they are given: arrays, lists of arrays, files or folders, with their axes."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.exceptions import AxisError
from numpy.typing import NDArray

from dn_core import files
from dn_core.files.raw_array import RawArray, open_npy
from dn_core.inference.arrays import as_array, axes_of, axes_of_file, check_dtype
from dn_core.inference.axes import Axes, ChannelAxis

__all__ = ["Pixels", "SourceImage", "planes_of", "read_sources", "split_repeats", "warn_of_axes"]

Pixels = NDArray[Any] | RawArray
"""In memory, or in a .npy file that is read piece by piece."""


@dataclass(frozen=True)
class SourceImage:
    """An array with its name in messages and what says its axes.

    Attributes
    ----------
    name : str
        As messages call it.
    array : array
        What can be sliced; in memory, or an array on disk.
    channel_axis : int, None or "auto"
        As the caller says.
    origin : object
        The file or array that it came as, which may know its axes.
    """

    name: str
    array: Any
    channel_axis: ChannelAxis
    origin: Any

    def axes(self) -> Axes:
        """Which of its axes are planes and channels."""
        if isinstance(self.origin, files.ImageFile):
            return axes_of_file(self.origin, self.channel_axis)
        return axes_of(self.origin, self.array.shape, self.channel_axis)

    def planes(self) -> list[Pixels]:
        """Its planes, ``(height, width)`` each, not read yet where they lie on disk."""
        return planes_of(self.array, self.axes())


def planes_of(array: Any, axes: Axes) -> list[Pixels]:
    """The planes of an array, ``(height, width)`` each."""
    return [_part(array, plane.index(slice(None), slice(None))) for plane in axes.planes()]


def read_sources(images: Any, what: str, channel_axis: ChannelAxis) -> list[SourceImage]:
    """Open a path, an array or several arrays, called `what` in messages.

    Files that end in .npy stay on disk.
    """
    if isinstance(images, (str, Path)):
        return [_read_file(path, name, channel_axis) for path, name in _paths(Path(images))]
    if isinstance(images, (list, tuple)) and not any(
        isinstance(image, (str, Path, int, float)) for image in images
    ):
        found = [
            SourceImage(f"{what} {number}", np.asarray(as_array(image)), channel_axis, image)
            for number, image in enumerate(images)
        ]
    else:
        found = [SourceImage(what, np.asarray(as_array(images)), channel_axis, images)]
    if not found:
        raise ValueError(f"{what} must have at least one image, got none. Give some.")
    return found


def _paths(root: Path) -> list[tuple[Path, str]]:
    """Files under a folder with their names in it, or the one file."""
    if root.suffix.lower() == ".npy":
        return [(root, root.stem)]
    paths = files.image_paths([root])
    if len(paths) == 1 and os.path.samefile(paths[0], root):
        return [(root, root.stem)]
    named = [(path, path.relative_to(root).with_suffix("").as_posix()) for path in paths]
    names = [name for _, name in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"file names must be unique without their endings, got several files named {twice[0]}. "
            "Move the others away."
        )
    return named


def _read_file(path: Path, name: str, channel_axis: ChannelAxis) -> SourceImage:
    if path.suffix.lower() == ".npy":
        try:
            array = open_npy(path)
        except ValueError as error:
            raise ValueError(
                f"{path} is not an array that can be read ({error}). Write it with numpy.save."
            ) from error
        return SourceImage(name, as_array(array), channel_axis, array)
    image = files.read_image(path)
    check_dtype(image.dtype)
    return SourceImage(name, image.source, channel_axis, image)


def split_repeats(image: SourceImage, axis: int) -> tuple[Axes, list[Pixels]]:
    """Split an image into its repeats along `axis`: the axes of one of them, and all of them."""
    ndim = image.array.ndim
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(
            f"axis must be a whole number, got {axis!r}. Give the index of the axis of repeats."
        )
    if not -ndim <= axis < ndim:
        raise AxisError(
            f"axis must be one of the {ndim} axes of {image.name}, of shape {image.array.shape}, "
            f"got {axis}. Change axis."
        )
    if ndim < 3:
        raise ValueError(
            f"{image.name} must have shape (repeats, height, width), got {image.array.shape}. "
            "Stack the repeats, or give their folder."
        )
    axis = int(axis) % ndim
    before = (slice(None),) * axis
    found = [_part(image.array, (*before, number)) for number in range(image.array.shape[axis])]
    channel = image.channel_axis
    if isinstance(channel, int) and not isinstance(channel, bool) and -ndim <= channel < ndim:
        if channel % ndim == axis:
            raise ValueError(
                f"axis and channel_axis must be different, got {axis} for both in {image.name}. "
                "Change one."
            )
        channel = channel % ndim - (channel % ndim > axis)
    origin = image.origin
    if isinstance(origin, files.ImageFile):
        origin = replace(origin, source=found[0], axes=origin.axes[:axis] + origin.axes[axis + 1 :])
    elif hasattr(origin, "dims") and hasattr(origin, "isel"):  # an xarray, whose names stay
        origin = origin.isel({origin.dims[axis]: 0})
    return SourceImage(image.name, found[0], channel, origin).axes(), found


def warn_of_axes(found: Sequence[Axes]) -> None:
    """Warn of guessed axes and of alpha that is left out, once for images of one shape."""
    for note, count in Counter(axes.note for axes in found if axes.note is not None).items():
        warnings.warn(note if count == 1 else f"{count} images: {note}", UserWarning, stacklevel=3)


def _part(array: Pixels, index: tuple[Any, ...]) -> Pixels:
    """A part of an array that is not read yet."""
    return array.view(index) if isinstance(array, RawArray) else array[index]

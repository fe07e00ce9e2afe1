"""From a layer to an array that can be denoised, and back to a layer with everything kept. No Qt here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari.components import Dims, ViewerModel
    from napari.layers import Image

__all__ = [
    "Axes",
    "LazyArray",
    "Region",
    "bare",
    "camera",
    "canvas",
    "default_axes",
    "highest_level",
    "is_zarr",
    "layer_settings",
    "readable",
    "region_affine",
    "shown_plane",
    "time_axes",
    "visible_region",
]

NAMES = {"T": "time points", "Z": "depths", "C": "channels", "Q": "planes", "Y": "rows", "X": "columns", "S": "colours"}
CACHED_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class Axes:
    """What the axes of an array are, a letter each: ``Y`` and ``X`` make a plane, all others are denoised one by one.

    Parameters
    ----------
    letters
        Such as ``"TCYX"``; ``"S"`` are the colours of an RGB(A) layer.
    shape
        Of the array.

    Raises
    ------
    ValueError
        When the letters do not fit the shape.
    """

    letters: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.letters) != len(self.shape):
            raise ValueError(
                f"axes are {self.letters!r}, the layer has {len(self.shape)} {self.shape}; a letter for each is expected. Change the axes."
            )
        if not self.letters.isalpha() or self.letters.count("Y") != 1 or self.letters.count("X") != 1:
            raise ValueError(f"axes are {self.letters!r}; letters with one Y (rows) and one X (columns) are expected. Change the axes.")
        if not (self.letters[:-1] if self.letters[-1] in "CS" else self.letters).endswith(("YX", "XY")):
            raise ValueError(
                f"axes are {self.letters!r}; Y and X are expected last, but for channels (C) or colours (S). Move the layer's axes first."
            )

    @property
    def channel_axis(self) -> int | None:
        """What `dn_core.denoise` is told: the axis behind the planes, None where they are last."""
        return None if self.letters[-1] in "YX" else len(self.shape) - 1

    @property
    def must_be_said(self) -> bool:
        """Whether `dn_core.denoise` would guess, or find other planes, if it were told nothing."""
        from dn_core.inference.planes import find_axes

        found = find_axes(self.shape)
        return found.guess is not None or found.spatial != self.spatial

    @property
    def spatial(self) -> tuple[int, int]:
        """The axes of a plane, rows and columns, in the order in which they lie."""
        first = min(self.letters.index("Y"), self.letters.index("X"))
        return first, first + 1

    @property
    def alpha(self) -> bool:
        """Whether the last colour is alpha, which is left alone."""
        return "S" in self.letters and self.shape[self.letters.index("S")] == 4

    def in_words(self) -> str:
        """What will be done with each axis, for a person to check."""
        words = []
        for letter, extent in zip(self.letters, self.shape, strict=True):
            if letter not in "YX":
                each = "alpha left alone" if letter == "S" and self.alpha else "each denoised on its own"
                words.append(f"{letter}: {extent} {NAMES.get(letter, 'planes')}, {each}")
        first, last = self.spatial
        return "\n".join([*words, f"{self.letters[first : last + 1]}: planes of {self.shape[first]} x {self.shape[last]} pixels"])


def time_axes(layer: Image) -> tuple[int, ...]:
    """Axes of a layer whose unit is one of time."""
    return tuple(axis for axis, unit in enumerate(layer.units) if unit.dimensionality == {"[time]": 1})


def default_axes(labels: tuple[str, ...], shape: tuple[int, ...], rgb: bool, times: tuple[int, ...] = ()) -> str:
    """Letters for a layer's axes: from its labels, where they say it, otherwise ``TZYX`` from the right, ``Q`` beyond.

    ``C`` is last where the library's rule for arrays finds channels there, or the last axis has length 1; see `guess_in_words`. An axis of
    `times`, whose unit is one of time, is ``T`` then.

    `shape` and the result include the colours of an RGB layer, `labels` do not.
    """
    count = len(shape) - rgb
    first = [label[:1].upper() for label in labels]
    if _say_it(labels, count):
        letters = "".join(first)
    else:
        channels_last = not rgb and _found(shape).spatial == (count - 3, count - 2)
        guess = ["Q"] * max(0, count - 4 - channels_last) + list("TZYX")[-(count - channels_last) :] + ["C"] * channels_last
        if len(times) == 1 and times[0] < count - 2 - channels_last:
            guess = ["Q" if letter == "T" else letter for letter in guess]
            guess[times[0]] = "T"
        letters = "".join(guess)
    return letters + "S" * rgb


def guess_in_words(layer: Image, letters: str) -> str:
    """What `default_axes` guessed of a layer's channels, and what to do about it; "" where it guessed nothing, or other letters stand."""
    labels, shape = tuple(map(str, layer.axis_labels)), tuple(highest_level(layer).shape)
    guess = None if layer.rgb or _say_it(labels, len(shape)) else _found(shape).guess
    if guess is None or letters != default_axes(labels, shape, layer.rgb, time_axes(layer)):
        return ""
    return f"A guess from the shape {shape}: {guess}. Change the letters where it is wrong."


def _say_it(labels: tuple[str, ...], count: int) -> bool:
    """Whether labels name the axes, rows and columns among them."""
    first = [label[:1].upper() for label in labels]
    return len(set(first)) == count and {"Y", "X"} <= set(first) and all(letter.isalpha() for letter in first)


def _found(shape: tuple[int, ...]) -> Any:
    """What the library finds in a layer that is no picture in colours: without alpha."""
    from dn_core.inference.planes import find_axes

    return find_axes(shape, "auto", alpha=False)


def highest_level(layer: Image) -> Any:
    """The layer's array, of a multiscale one the finest."""
    return layer.data[0] if layer.multiscale else layer.data


def readable(data: Any) -> Any:
    """What `dn_core.denoise_steps` reads window by window: dask arrays and other lazy ones are computed a plane at a time."""
    return data if isinstance(data, np.ndarray) or is_zarr(data) else LazyArray(data)


def is_zarr(data: Any) -> bool:
    """Whether a layer's array is zarr's own; napari shows those without dask around them too."""
    return type(data).__module__.split(".")[0] == "zarr"


class LazyArray:
    """A lazy array (dask, xarray, ...) as one that is computed when it is sliced; the last plane is kept, since tiles overlap."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.shape: tuple[int, ...] = tuple(int(extent) for extent in data.shape)
        self.dtype = np.dtype(data.dtype)
        self.ndim = len(self.shape)
        chunks = getattr(data, "chunksize", None) or self.shape
        self.chunks: tuple[int, ...] = tuple(max(1, int(extent)) for extent in chunks)
        self._key: Any = None
        self._plane: NDArray[Any] | None = None

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The pixels of `index`."""
        index = index if isinstance(index, tuple) else (index,)
        if any(not isinstance(part, (slice, int, np.integer)) for part in index):
            return np.asarray(self._data[index])
        key = tuple(None if isinstance(part, slice) else int(part) for part in index)
        extent = [size for size, part in zip(self.shape, key, strict=False) if part is None]
        if math.prod(extent) * self.dtype.itemsize > CACHED_BYTES:
            return np.asarray(self._data[index])
        if self._plane is None or self._key != key:
            whole = tuple(slice(None) if part is None else part for part in key)
            self._key, self._plane = key, np.asarray(self._data[whole])
        return self._plane[tuple(part for part in index if isinstance(part, slice))]


def layer_settings(layer: Image) -> dict[str, Any]:
    """All settings of a layer but its data and name, for `napari.layers.Image`: transform, units, labels, colours, limits, metadata."""
    _, settings, _ = layer.as_layer_data_tuple()
    settings = {key: value for key, value in settings.items() if key not in ("name", "multiscale", "visible", "locked_data_level", "cache")}
    return {**settings, "metadata": dict(layer.metadata), "multiscale": False}


@dataclass(frozen=True, slots=True)
class Region:
    """What is on screen: an index into the layer's array, with whole slices for colours, and where it begins on each axis of the layer."""

    index: tuple[Any, ...]
    begin: tuple[int, ...]

    def crop(self, data: Any) -> NDArray[Any]:
        """The pixels, with all axes of the array (those of one plane have length 1)."""
        return np.asarray(data[self.index])

    def within(self, other: Region) -> tuple[slice, ...]:
        """Where these pixels lie among those of another region, colours whole."""
        pairs = zip(self.index[: len(self.begin)], other.begin, strict=True)
        return (*(slice(part.start - begin, part.stop - begin) for part, begin in pairs), *self.index[len(self.begin) :])

    def lies_in(self, other: Region) -> bool:
        """Whether all of these pixels are among those of another region."""
        pairs = zip(self.index[: len(self.begin)], other.index, strict=False)
        return all(outer.start <= inner.start and inner.stop <= outer.stop for inner, outer in pairs)

    def grown(self, axes: Axes, limit: int) -> Region:
        """With half as much again on each side of a plane, where the layer has it, but at most `limit` pixels around the same middle."""
        begin, index = list(self.begin), list(self.index)
        for axis in axes.spatial:
            low, high, extent = index[axis].start, index[axis].stop, axes.shape[axis]
            margin = (high - low) // 2
            length = min(high - low + 2 * margin, limit, extent)
            low = min(max(0, (low + high - length) // 2), extent - length)
            begin[axis], index[axis] = low, slice(low, low + length)
        return Region(tuple(index), tuple(begin))


def visible_region(viewer: ViewerModel, layer: Image, axes: Axes, limit: int, step: int = 64) -> Region:
    """The part of the current plane that is on screen, at most `limit` pixels on a side, its sides multiples of `step` where it fits.

    Raises
    ------
    ValueError
        When the view does not show rows and columns, or nothing of the layer.
    """
    dims, spatial = viewer.dims, axes.spatial
    if dims.ndisplay != 2:
        raise ValueError("the preview shows planes, and the view is in 3D; press the cube button for 2D.")
    offset = dims.ndim - layer.ndim
    if {axis - offset for axis in dims.displayed} != set(spatial):
        raise ValueError("the preview shows rows and columns (Y and X), and the view shows other axes; roll the dimensions back.")
    first, last = _corners_on_screen(viewer, layer)
    current = _shown_point(layer, dims)
    begin, index = [0] * layer.ndim, [slice(None)] * len(axes.shape)
    for axis in range(layer.ndim):
        extent = axes.shape[axis]
        if axis in spatial:
            low, high = int(max(0, math.floor(first[axis]))), int(min(extent, math.ceil(last[axis]) + 1))
            if high - low < 2:
                raise ValueError("nothing of the layer is on screen; press the home button.")
            low, high = _fitted(low, high, extent, limit, step)
        else:
            low = int(np.clip(current[axis], 0, extent - 1))
            high = low + 1
        begin[axis], index[axis] = low, slice(low, high)
    return Region(tuple(index), tuple(begin))


def shown_plane(layer: Image, dims: Dims, axes: Axes) -> tuple[int, ...]:
    """The index of the plane on screen, or the one nearest to it, in the axes before rows and columns."""
    point = _shown_point(layer, dims)[: axes.spatial[0]]
    return tuple(int(min(max(at, 0), extent - 1)) for at, extent in zip(point, axes.shape, strict=False))


def _shown_point(layer: Image, dims: Dims) -> NDArray[np.intp]:
    """The pixel that the sliders stand at, on the axes that are not displayed; 0 on the others.

    Step by step as napari does it, rounding included: where layers have other units, sliders stand just between the planes of this one too.
    """
    offset = dims.ndim - layer.ndim
    hidden = [axis for axis in range(layer.ndim) if axis + offset not in dims.displayed]
    inverse = np.linalg.inv(region_affine(layer, (0,) * layer.ndim))
    linear = inverse[:-1, :-1] @ np.diag(_world_units(layer, dims))
    world = np.asarray(dims.point)[-layer.ndim :]
    point = np.zeros(layer.ndim, np.intp)
    point[hidden] = np.round(world[hidden] @ linear[np.ix_(hidden, hidden)].T + inverse[hidden, -1])
    return point


def _world_units(layer: Image, dims: Dims) -> NDArray[np.float64]:
    """How many units of the layer one of the viewer's world is, on each axis: napari (since 0.7) converts units that agree in kind."""
    world = getattr(dims, "units", None)
    if world is None or len(world) < layer.ndim:
        return np.ones(layer.ndim)
    in_base = [[float((1 * unit).to_base_units().magnitude) for unit in units] for units in (world[-layer.ndim :], layer.units)]
    return np.divide(*in_base)


def _corners_on_screen(viewer: ViewerModel, layer: Image) -> NDArray[np.float64]:
    """The first and the last pixel that is on screen, on the displayed axes, of a multiscale layer in those of the finest level."""
    units = _world_units(layer, viewer.dims)
    if np.all(units == 1):
        factor = layer.downsample_factors[layer.data_level] if layer.multiscale else np.ones(layer.ndim)
        return np.asarray(layer.corner_pixels) * factor
    # `corner_pixels` leaves the units out.
    offset = viewer.dims.ndim - layer.ndim
    displayed = [axis - offset for axis in viewer.dims.displayed]
    matrix = region_affine(layer, (0,) * layer.ndim)
    linear, origin = matrix[np.ix_(displayed, displayed)], matrix[displayed, -1]
    view = camera(viewer)
    half = np.asarray(_canvas_size(viewer)) / (2 * view.zoom)
    on_screen = [np.asarray(view.center)[-2:] + half * side for side in ((-1, -1), (-1, 1), (1, -1), (1, 1))]
    pixels = np.linalg.solve(linear, (np.asarray(on_screen) * units[displayed] - origin).T)
    corners = np.zeros((2, layer.ndim))
    corners[:, displayed] = pixels.min(axis=1), pixels.max(axis=1)
    return corners


def bare(thing: Any) -> Any:
    """A napari object without the proxy that plugins are given, whose identity is another one each time."""
    return getattr(thing, "__wrapped__", thing)


def canvas(viewer: ViewerModel) -> Any:
    """What has the viewer's grid, since napari 0.9 an object of its own."""
    return getattr(viewer, "canvas", viewer)


def camera(viewer: ViewerModel) -> Any:
    """The viewer's camera, since napari 0.9 the scene's."""
    return getattr(viewer, "scene", viewer).camera


def _canvas_size(viewer: ViewerModel) -> tuple[int, int]:
    """Rows and columns of the canvas."""
    return viewer.canvas.size if hasattr(viewer, "canvas") else bare(viewer)._canvas_size


def _fitted(low: int, high: int, extent: int, limit: int, step: int) -> tuple[int, int]:
    """A stretch around the same middle whose length is a multiple of `step`, at most `limit`, within ``0..extent``."""
    length = min(-(-(high - low) // step) * step, limit, extent)
    begin = min(max(0, (low + high - length) // 2), extent - length)
    return begin, begin + length


def region_affine(layer: Image, begin: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine transform that puts a crop which begins at `begin` exactly over its layer."""
    ndim = layer.ndim
    origin = np.asarray(layer.data_to_world((0.0,) * ndim))
    matrix = np.eye(ndim + 1)
    for axis, unit in enumerate(np.eye(ndim)):
        matrix[:ndim, axis] = np.asarray(layer.data_to_world(tuple(unit))) - origin
    matrix[:ndim, ndim] = np.asarray(layer.data_to_world(begin))
    return matrix

"""What the viewer shows of a layer: the visible region, the current plane, units. No Qt here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_dnresnet.axes import LayerAxes
from napari_dnresnet.layers import unwrapped

if TYPE_CHECKING:
    from napari.components import Dims, ViewerModel
    from napari.layers import Image

__all__ = [
    "Region",
    "camera",
    "canvas",
    "region_affine",
    "shown_plane",
    "visible_region",
]


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a layer.

    Attributes
    ----------
    index : tuple of slice
        Index into the layer's array, with whole slices for colours.
    begin : tuple of int
        First pixel on each axis of the layer.
    """

    index: tuple[slice, ...]
    begin: tuple[int, ...]

    def crop(self, data: Any) -> NDArray[Any]:
        """The pixels, with all axes of the array (those of one plane have length 1)."""
        return np.asarray(data[self.index])

    def within(self, other: Region) -> tuple[slice, ...]:
        """Where these pixels are in another region, colours whole."""
        pairs = zip(self.index[: len(self.begin)], other.begin, strict=True)
        return (
            *(slice(part.start - begin, part.stop - begin) for part, begin in pairs),
            *self.index[len(self.begin) :],
        )

    def is_inside(self, other: Region) -> bool:
        """Whether all of these pixels are in another region."""
        pairs = zip(self.index[: len(self.begin)], other.index, strict=False)
        return all(
            outer.start <= inner.start and inner.stop <= outer.stop for inner, outer in pairs
        )

    def grown(self, axes: LayerAxes, limit: int) -> Region:
        """A region with half as much again on each side of a plane, where the layer has it.

        At most `limit` pixels on a side, around the same middle.
        """
        begin, index = list(self.begin), list(self.index)
        for axis in axes.spatial:
            low, high, extent = index[axis].start, index[axis].stop, axes.shape[axis]
            margin = (high - low) // 2
            length = min(high - low + 2 * margin, limit, extent)
            low = min(max(0, (low + high - length) // 2), extent - length)
            begin[axis], index[axis] = low, slice(low, low + length)
        return Region(tuple(index), tuple(begin))


def visible_region(
    viewer: ViewerModel, layer: Image, axes: LayerAxes, limit: int, step: int = 64
) -> Region:
    """The part of the current plane that is on screen.

    Parameters
    ----------
    viewer : ViewerModel
        The viewer that shows the layer.
    layer : Image
        An image layer of the viewer.
    axes : LayerAxes
        Axes of the layer's array.
    limit : int
        At most this many pixels on a side.
    step : int, default 64
        The sides are multiples of it where that fits.

    Raises
    ------
    ValueError
        When the view does not show rows and columns, or nothing of the layer.
    """
    dims, spatial = viewer.dims, axes.spatial
    if dims.ndisplay != 2:
        raise ValueError(
            "The preview needs the 2D view, but the view is in 3D. Press the cube button."
        )
    offset = dims.ndim - layer.ndim
    if {axis - offset for axis in dims.displayed} != set(spatial):
        raise ValueError(
            "The preview needs rows and columns (Y and X), but the view shows other axes. Show "
            "Y and X again (roll-dimensions button)."
        )
    first, last = _corners_on_screen(viewer, layer)
    current = _shown_point(layer, dims)
    begin, index = [0] * layer.ndim, [slice(None)] * len(axes.shape)
    for axis in range(layer.ndim):
        extent = axes.shape[axis]
        if axis in spatial:
            low = int(max(0, math.floor(first[axis])))
            high = int(min(extent, math.ceil(last[axis]) + 1))
            if high - low < 2:
                raise ValueError("The layer is not on screen. Press the home button.")
            low, high = _fitted(low, high, extent, limit, step)
        else:
            low = int(np.clip(current[axis], 0, extent - 1))
            high = low + 1
        begin[axis], index[axis] = low, slice(low, high)
    return Region(tuple(index), tuple(begin))


def shown_plane(layer: Image, dims: Dims, axes: LayerAxes) -> tuple[int, ...]:
    """Index of the plane on screen, or of the nearest one, on the axes before rows and columns.

    Parameters
    ----------
    layer : Image
        The layer.
    dims : Dims
        The viewer's dimensions, with the sliders.
    axes : LayerAxes
        Axes of the layer.
    """
    point = _shown_point(layer, dims)[: axes.spatial[0]]
    return tuple(
        int(min(max(at, 0), extent - 1)) for at, extent in zip(point, axes.shape, strict=False)
    )


def _shown_point(layer: Image, dims: Dims) -> NDArray[np.intp]:
    """The pixel at the sliders, on the axes that are not displayed; 0 on the others.

    Step by step as napari computes it, with the same rounding: where layers have different units,
    sliders may stand just between two planes of this layer.
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
    """Length of the viewer's unit in the layer's units, on each axis.

    napari (since 0.7) converts units of one dimension, such as nm and um, into each other.
    """
    world = getattr(dims, "units", None)
    if world is None or len(world) < layer.ndim:
        return np.ones(layer.ndim)
    viewer_units, layer_units = (
        np.array([float((1 * unit).to_base_units().magnitude) for unit in units])
        for units in (world[-layer.ndim :], layer.units)
    )
    return np.asarray(viewer_units / layer_units)


def _corners_on_screen(viewer: ViewerModel, layer: Image) -> NDArray[np.float64]:
    """First and last pixel on screen on the displayed axes, in pixels of the finest level."""
    units = _world_units(layer, viewer.dims)
    if np.all(units == 1):
        factor = (
            layer.downsample_factors[layer.data_level] if layer.multiscale else np.ones(layer.ndim)
        )
        return np.asarray(layer.corner_pixels * factor)
    # napari's `corner_pixels` ignores units, so the corners are computed from the camera: the four
    # corners of the canvas in the viewer's units, mapped back through the layer's affine transform.
    offset = viewer.dims.ndim - layer.ndim
    displayed = [axis - offset for axis in viewer.dims.displayed]
    matrix = region_affine(layer, (0,) * layer.ndim)
    linear, origin = matrix[np.ix_(displayed, displayed)], matrix[displayed, -1]
    view = camera(viewer)
    half = np.asarray(_canvas_size(viewer)) / (2 * view.zoom)
    on_screen = [
        np.asarray(view.center)[-2:] + half * side for side in ((-1, -1), (-1, 1), (1, -1), (1, 1))
    ]
    pixels = np.linalg.solve(linear, (np.asarray(on_screen) * units[displayed] - origin).T)
    corners = np.zeros((2, layer.ndim))
    corners[:, displayed] = pixels.min(axis=1), pixels.max(axis=1)
    return corners


def canvas(viewer: ViewerModel) -> Any:
    """The object with the viewer's grid: the viewer, or its canvas since napari 0.9."""
    return getattr(viewer, "canvas", viewer)


def camera(viewer: ViewerModel) -> Any:
    """The viewer's camera, or that of its scene since napari 0.9."""
    return getattr(viewer, "scene", viewer).camera


def _canvas_size(viewer: ViewerModel) -> tuple[int, int]:
    """Rows and columns of the canvas."""
    size = viewer.canvas.size if hasattr(viewer, "canvas") else unwrapped(viewer)._canvas_size
    rows, columns = size
    return int(rows), int(columns)


def _fitted(low: int, high: int, extent: int, limit: int, step: int) -> tuple[int, int]:
    """A range around the same middle whose length is a multiple of `step`, at most `limit`."""
    length = min(-(-(high - low) // step) * step, limit, extent)
    begin = min(max(0, (low + high - length) // 2), extent - length)
    return begin, begin + length


def region_affine(layer: Image, begin: tuple[int, ...]) -> NDArray[np.float64]:
    """The affine transform that puts a crop beginning at `begin` exactly over its layer."""
    ndim = layer.ndim
    origin = _world(layer, (0.0,) * ndim)
    matrix = np.eye(ndim + 1)
    for axis, unit in enumerate(np.eye(ndim)):
        matrix[:ndim, axis] = _world(layer, tuple(unit)) - origin
    matrix[:ndim, ndim] = _world(layer, begin)
    return matrix


def _world(layer: Any, pixel: tuple[float, ...]) -> NDArray[np.float64]:
    """World coordinates of a pixel; napari's method has no types."""
    return np.asarray(layer.data_to_world(pixel))

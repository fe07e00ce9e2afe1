"""From a layer to an array that can be denoised, and to the settings of its result. No Qt here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = [
    "LazyArray",
    "highest_level",
    "is_zarr",
    "layer_settings",
    "readable",
    "unwrapped",
]

CACHED_BYTES = 2**28
"""A plane above this is not kept by `LazyArray`."""


def highest_level(layer: Image) -> Any:
    """The layer's array; the finest level of a multiscale layer."""
    data: Any = layer.data
    return data[0] if layer.multiscale else data


def readable(data: Any) -> Any:
    """An array that `dn_core.denoise_steps` reads window by window.

    Lazy arrays such as dask's are computed one plane at a time.
    """
    return data if isinstance(data, np.ndarray) or is_zarr(data) else LazyArray(data)


def is_zarr(data: Any) -> bool:
    """Whether a layer's array is a zarr array, which napari shows without dask too."""
    return type(data).__module__.split(".")[0] == "zarr"


class LazyArray:
    """A lazy array (dask, xarray, ...) that is computed when it is sliced.

    The last plane is kept, since tiles overlap.

    Parameters
    ----------
    data : array
        The lazy array.
    """

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
    """All settings of a layer except data and name, as keywords of `napari.layers.Image`.

    Transform, units, labels, colours, contrast limits and metadata are among them.
    """
    untyped: Any = layer
    _, settings, _ = untyped.as_layer_data_tuple()
    settings = {
        key: value
        for key, value in settings.items()
        if key not in ("name", "multiscale", "visible", "locked_data_level", "cache")
    }
    return {**settings, "metadata": dict(layer.metadata), "multiscale": False}


def unwrapped(thing: Any) -> Any:
    """A napari object without the proxy given to plugins, whose identity changes each time."""
    return getattr(thing, "__wrapped__", thing)

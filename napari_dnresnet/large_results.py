"""Large results: zarr arrays in temporary folders that are deleted when no layer uses them."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from napari_dnresnet.request import DenoiseRequest

__all__ = ["discard", "empty_target", "placeholder"]

CHUNK_SIDE = 1024
"""Pixels on a side of a chunk."""
PREFIX = "dnresnet"


def empty_target(request: DenoiseRequest, folder: str = "") -> Any:
    """A zarr array for a large result, in a temporary folder of its own.

    The folder is deleted when no array uses it any more; what a napari that was killed left behind
    is deleted first.

    Parameters
    ----------
    request : DenoiseRequest
        What is denoised.
    folder : str, default ""
        Where to put the temporary folder; empty for the system's.

    Raises
    ------
    OSError
        When the folder is missing, or the disk has too little space.
    """
    from dn_core.safe_write import clear_leftovers, free_bytes, named_by_process

    place = Path(folder) if folder else Path(tempfile.gettempdir())
    if not place.is_dir():
        raise FileNotFoundError(
            2,
            "The folder for large results is missing. Create it, or choose another one in the "
            "plugin's preferences",
            str(place),
        )
    clear_leftovers(place, PREFIX, aged=False)  # whatever their age: a result may be open for days
    free = free_bytes(place)
    if request.nbytes > free:
        raise OSError(
            28,
            f"The result needs {request.nbytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are "
            "free. Free some space, or choose another folder in the plugin's preferences",
            str(place),
        )
    own = named_by_process(place, PREFIX, "zarr")
    own.mkdir(0o700)
    return _create(_temporary_store(own), request)


def placeholder(request: DenoiseRequest) -> Any:
    """An array like that of `empty_target`, for planning only: it takes no space."""
    return _create({}, request)


def _create(store: Any, request: DenoiseRequest) -> Any:
    """An empty zarr array for the result of a request, in chunks of one plane or a part of it."""
    import zarr

    axes = request.axes
    chunks = [1] * len(axes.shape)
    for axis in axes.spatial:
        chunks[axis] = min(axes.shape[axis], CHUNK_SIDE)
    if "S" in axes.letters:
        chunks[-1] = axes.shape[-1]
    dtype = np.dtype(request.data.dtype).newbyteorder("=")
    return zarr.create_array(store, shape=axes.shape, dtype=dtype, chunks=tuple(chunks))


def discard(array: Any) -> None:
    """Delete the files of an array by `empty_target` that is not needed."""
    if not isinstance(array, np.ndarray):
        shutil.rmtree(Path(array.store.root).parent, ignore_errors=True)


def _temporary_store(folder: Path) -> Any:
    """A store that deletes its folder when it is garbage collected.

    Copies of a layer copy its array deeply; they share the store, and so the files.
    """
    from zarr.storage import LocalStore

    class TemporaryStore(LocalStore):
        def __deepcopy__(self, memo: Any) -> Any:
            return self

    store = TemporaryStore(folder / "denoised.zarr")
    weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
    return store

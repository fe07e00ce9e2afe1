"""Kinds of arrays: what comes in as something that can be sliced, and the array that the result goes to."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.inference.planes import check_dtype
from dn_core.memory import check_memory

__all__ = ["as_array", "bytes_of", "check_out", "from_torch", "kind_of", "new_array", "to_torch"]


def kind_of(image: Any) -> str:
    """Which library an array comes from, without importing any of them; "chunked" is any other array on disk."""
    root = type(image).__module__.split(".")[0]
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        return "numpy"
    if root in ("dask", "zarr", "torch", "xarray"):
        return root
    return "chunked" if hasattr(image, "chunks") else "numpy"


def as_array(image: Any) -> Any:
    """What can be sliced window by window: arrays on disk (zarr, h5py, `ImageFile.source`) as they are, everything else as numpy."""
    if isinstance(image, (str, Path)):
        check_dtype(np.dtype(np.str_))
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("image is a masked array, whose mask would be lost; a plain array is expected. Use image.filled(value).")
    if hasattr(image, "__cuda_array_interface__"):
        raise TypeError("image lives on a GPU; a numpy array or a torch tensor is expected. Use image.get(), or torch.from_dlpack(image).")
    if kind_of(image) in ("zarr", "chunked"):
        check_dtype(np.dtype(image.dtype))
        return image
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise ValueError(
            f"image is a {type(image).__name__} that is not a rectangular array ({error}); give rows of equal length."
        ) from error
    check_dtype(array.dtype)
    return array


def check_out(out: Any, image: Any, source: Any) -> None:
    """Refuse an `out` that the result for `source`, which is `image` as an array, cannot be written to."""
    shape, dtype = tuple(source.shape), np.dtype(source.dtype)
    if not (hasattr(out, "shape") and hasattr(out, "dtype") and hasattr(out, "__setitem__")):
        raise TypeError(f"out is a {type(out).__name__}; an array to write to is expected. Use numpy.empty_like(image).")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out is read-only; an array that can be written to is expected. Open a memory map with mode 'r+' or 'w+'.")
    if tuple(out.shape) != shape or np.dtype(out.dtype).newbyteorder("=") != dtype.newbyteorder("="):
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)}; {dtype} {shape}, as the image, is expected. Make it with these.")
    if _same_storage(out, image):
        raise ValueError(
            "out shares memory with the image, which is never written to; a separate array is expected. Use numpy.empty_like(image)."
        )


def new_array(source: Any, available: int) -> Any:
    """An array in memory for the result: for a zarr array one with its chunks, shards and codecs, numpy's else."""
    shape, dtype = tuple(source.shape), np.dtype(source.dtype)
    advice = "Give out=, a memory map or a zarr array on disk, or a dask array, or use the command dn-resnet denoise."
    check_memory(f"the result of shape {shape}", bytes_of(source), available, advice)
    if kind_of(source) == "zarr":
        from dn_core.files.zarr_layout import create_as, read_layout, tell_dropped

        layout = read_layout(source)
        tell_dropped(layout.dropped, str(source.store_path), stacklevel=4)
        return create_as(layout, shape)
    return np.empty(shape, dtype)


def bytes_of(source: Any) -> int:
    """What a copy takes; `nbytes` of a view may be more than it can count."""
    return math.prod(int(extent) for extent in source.shape) * int(np.dtype(source.dtype).itemsize)


def _same_storage(out: Any, image: Any) -> bool:
    """Whether writing to `out` may change `image`: the same memory, the same file, the same zarr store."""
    if out is image:
        return True
    if isinstance(out, np.memmap) and isinstance(image, np.memmap) and out.filename and image.filename:
        return os.path.samefile(out.filename, image.filename)
    if isinstance(out, np.ndarray) and isinstance(image, np.ndarray):
        return bool(np.may_share_memory(out, image))
    stores = getattr(out, "store_path", None), getattr(image, "store_path", None)
    return stores[0] is not None and stores[0] == stores[1]


def from_torch(tensor: Any) -> NDArray[Any]:
    """A tensor as numpy; bfloat16, which numpy lacks, as float32."""
    import torch

    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # type: ignore[no-any-return]


def to_torch(array: NDArray[Any], like: Any) -> Any:
    """A tensor of the kind and on the device of another."""
    import torch

    return torch.from_numpy(array).to(like.device, like.dtype)

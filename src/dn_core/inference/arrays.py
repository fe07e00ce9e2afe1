"""Kinds of arrays: what comes in as something that can be sliced, and the array that the result goes to."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files import ImageFile
from dn_core.inference.planes import Axes, ChannelAxis, check_dtype, find_axes
from dn_core.memory import check_memory

__all__ = ["as_array", "axes_of", "axes_of_file", "bytes_of", "check_out", "kind_of", "new_array", "to_torch"]

# Modes of PIL whose numbers are intensities; the others and what to convert them to.
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PIL_CONVERTED = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_WITH_ALPHA = "Give channel_axis=-1 if it is a channel as the others."


def kind_of(image: Any) -> str:
    """Which library an array comes from, without importing any of them; "chunked" is any other array on disk."""
    root = type(image).__module__.split(".")[0]
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        return "numpy"
    if root in ("dask", "zarr", "torch", "xarray"):
        return root
    return "chunked" if hasattr(image, "chunks") else "numpy"


def as_array(image: Any) -> Any:
    """What can be sliced window by window: arrays on disk (zarr, h5py, `ImageFile.source`) and dask's as they are, others as numpy."""
    if isinstance(image, (str, Path)):
        check_dtype(np.dtype(np.str_))
    kind = kind_of(image)
    if kind in ("xarray", "torch"):
        return as_array(image.data if kind == "xarray" else _from_torch(image))
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError("image is a masked array, whose mask would be lost; a plain array is expected. Use image.filled(value).")
    if hasattr(image, "__cuda_array_interface__"):
        raise TypeError("image lives on a GPU; a numpy array or a torch tensor is expected. Use image.get(), or torch.from_dlpack(image).")
    if (mode := _pil_mode(image)) is not None and mode not in _PIL_MODES:
        raise TypeError(
            f"image is a PIL image of mode {mode}, whose numbers are no intensities of grey or red, green and blue; one of "
            f"{', '.join(_PIL_MODES[:4])} is expected. Use image.convert({_PIL_CONVERTED.get(mode, 'RGB')!r})."
        )
    if kind in ("zarr", "chunked", "dask"):
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


def axes_of(image: Any, shape: tuple[int, ...], channel_axis: ChannelAxis = "auto", alpha: bool | None = None) -> Axes:
    """The planes of an image of `shape`; nothing is guessed of an xarray or a PIL image that says what its axes are."""
    mode = _pil_mode(image)
    if mode is None or len(shape) < 3:
        return find_axes(shape, channel_axis, alpha, image.dims if kind_of(image) == "xarray" else ())
    has_alpha = mode.endswith("A")
    found = find_axes(shape, channel_axis, has_alpha if alpha is None and channel_axis == "auto" else alpha, ("y", "x", "colour"))
    if not has_alpha or alpha is not None or channel_axis != "auto":
        return found
    return replace(found, guess=f"the last of its {len(mode)} samples is alpha, which is left alone", otherwise=_WITH_ALPHA)


def axes_of_file(image: ImageFile, channel_axis: ChannelAxis = "auto") -> Axes:
    """The planes of a file, as the caller or the file says, else by the rule for arrays; what is left alone as alpha is told."""
    found = find_axes(image.shape, **image.channels(channel_axis))
    if found.alpha is not None and found.guess is None:
        samples = found.shape[found.alpha[0]]
        return replace(found, guess=f"the last of its {samples} samples is alpha, which is left alone", otherwise=_WITH_ALPHA)
    if channel_axis == "auto" and image.axes_known and len(found.shape) > 2 and found.plane_shape[1] == 1 and image.axes[-1] == "X":
        return replace(
            found,
            guess=f"planes of {found.plane_shape[0]} x 1 pixels are taken, as its axes {image.axes} say",
            otherwise="Give channel_axis=-1 if the last axis is one channel.",
        )
    return found


def _pil_mode(image: Any) -> str | None:
    mode = getattr(image, "mode", None)
    return mode if isinstance(mode, str) and any(base.__module__ == "PIL.Image" for base in type(image).__mro__) else None


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


def _from_torch(tensor: Any) -> NDArray[Any]:
    """A tensor as numpy; bfloat16, which numpy lacks, as float32."""
    import torch

    values = tensor.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # type: ignore[no-any-return]


def to_torch(array: NDArray[Any], like: Any) -> Any:
    """A tensor of the kind and on the device of another."""
    import torch

    return torch.from_numpy(array).to(like.device, like.dtype)

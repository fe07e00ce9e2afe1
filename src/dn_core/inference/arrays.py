"""Array types: how numpy, zarr, dask, torch, xarray and PIL images are read and written."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files import ImageFile
from dn_core.inference.axes import Axes, ChannelAxis, find_axes

__all__ = [
    "InputImage",
    "as_array",
    "axes_of",
    "axes_of_file",
    "check_dtype",
    "check_out",
    "kind_of",
    "new_array",
]

# Modes of PIL whose numbers are intensities; the others and what to convert them to.
_PIL_MODES = ("L", "LA", "RGB", "RGBA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_PIL_CONVERTED = {"1": "L", "La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
_WITH_ALPHA = "Give channel_axis=-1 if it is a channel like the others."


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image as the caller gave it; its pixels are not read, nor copied, before `opened`.

    Attributes
    ----------
    given : object
        The image.
    kind : str
        See `kind_of`; that of the data in an xarray.
    shape : tuple of int
        Its shape.
    dtype : dtype
        The type of its pixels as numpy sees them: float32 for bfloat16 tensors.
    """

    given: Any
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, image: Any) -> InputImage:
        """Describe an image.

        Raises
        ------
        TypeError, ValueError
            If it is not an array of intensities.
        """
        if kind_of(image) == "xarray":
            return replace(cls.of(image.data), given=image)
        if kind_of(image) == "torch":
            dtype = _from_torch(image.new_empty(0)).dtype
            check_dtype(dtype)
            return cls(image, "torch", tuple(image.shape), dtype)
        array = as_array(image)
        is_array = hasattr(image, "dtype") or _pil_mode(image) is not None
        return cls(
            image if is_array else array, kind_of(array), tuple(array.shape), np.dtype(array.dtype)
        )

    @property
    def data(self) -> Any:
        """The image, or the data of an xarray."""
        return self.given.data if kind_of(self.given) == "xarray" else self.given

    @property
    def nbytes(self) -> int:
        """Bytes of a copy; `nbytes` of a view may be more than numpy can count."""
        return math.prod(int(extent) for extent in self.shape) * int(self.dtype.itemsize)

    def opened(self) -> Any:
        """An array that can be sliced: dask, on disk or numpy."""
        return as_array(self.given)

    def restored(self, result: Any) -> Any:
        """A result as the kind of array that the image was."""
        if kind_of(self.given) == "xarray":
            data = _to_torch(result, self.data) if self.kind == "torch" else result
            return self.given.copy(data=data)
        return _to_torch(result, self.given) if self.kind == "torch" else result


def kind_of(image: Any) -> str:
    """Which library an array comes from, without importing any of them.

    Returns
    -------
    str
        ``"numpy"`` (also for what numpy can convert), ``"dask"``, ``"zarr"``, ``"torch"``,
        ``"xarray"``, or ``"chunked"`` for any other array on disk.
    """
    root = type(image).__module__.split(".")[0]
    if not (hasattr(image, "shape") and hasattr(image, "dtype")):
        return "numpy"
    if root in ("dask", "zarr", "torch", "xarray"):
        return root
    return "chunked" if hasattr(image, "chunks") else "numpy"


def as_array(image: Any) -> Any:
    """An array that can be sliced window by window.

    Arrays on disk (zarr, h5py, `ImageFile.source`) and dask arrays stay as they are, others become
    numpy arrays.

    Raises
    ------
    TypeError, ValueError
        If it is not an array of intensities.
    """
    if isinstance(image, (str, Path)):
        raise TypeError(
            f"image must be an array, got a {type(image).__name__}. For a file use dn-resnet "
            "denoise, or read it first, for instance with dn_core.files.read_image."
        )
    kind = kind_of(image)
    if kind in ("xarray", "torch"):
        return as_array(image.data if kind == "xarray" else _from_torch(image))
    if isinstance(image, np.ma.MaskedArray):
        raise TypeError(
            "image must be a plain array, got a masked array, whose mask would be lost. Use "
            "image.filled(value)."
        )
    if hasattr(image, "__cuda_array_interface__"):
        raise TypeError(
            "image must be a numpy array or a torch tensor, got an array on a GPU. Use "
            "image.get(), or torch.from_dlpack(image)."
        )
    if (mode := _pil_mode(image)) is not None and mode not in _PIL_MODES:
        raise TypeError(
            f"image must have grey or RGB intensities (mode {', '.join(_PIL_MODES[:4])}), got a "
            f"PIL image of mode {mode}. Use "
            f"image.convert({_PIL_CONVERTED.get(mode, 'RGB')!r})."
        )
    if kind in ("zarr", "chunked", "dask"):
        check_dtype(np.dtype(image.dtype))
        return image
    try:
        array = np.asarray(image)
    except ValueError as error:
        raise ValueError(
            f"image must be a rectangular array, got a {type(image).__name__} that is not "
            f"({error}). Give rows of equal length."
        ) from error
    check_dtype(array.dtype)
    return array


def axes_of(
    image: Any,
    shape: tuple[int, ...],
    channel_axis: ChannelAxis = "auto",
    alpha: bool | None = None,
) -> Axes:
    """Find the planes of an image.

    Nothing is guessed about an xarray or a PIL image that says what its axes are.

    Parameters
    ----------
    image : array
        The image as given, see `InputImage`.
    shape : tuple of int
        Its shape as an array.
    channel_axis, alpha
        As in `find_axes`.
    """
    mode = _pil_mode(image)
    if mode is None or len(shape) < 3:
        return find_axes(
            shape, channel_axis, alpha, image.dims if kind_of(image) == "xarray" else ()
        )
    has_alpha = mode.endswith("A")
    found = find_axes(
        shape,
        channel_axis,
        has_alpha if alpha is None and channel_axis == "auto" else alpha,
        names=("y", "x", "colour"),
    )
    if not has_alpha or alpha is not None or channel_axis != "auto":
        return found
    return replace(
        found,
        guess=f"the last of its {len(mode)} samples is alpha, which is left alone",
        otherwise=_WITH_ALPHA,
    )


def axes_of_file(image: ImageFile, channel_axis: ChannelAxis = "auto") -> Axes:
    """Find the planes of a file: by the caller, else by the file, else by the rule for arrays.

    Parameters
    ----------
    image : ImageFile
        The open file.
    channel_axis : int, None or "auto", default "auto"
        As in `find_axes`.

    Returns
    -------
    Axes
        Its `note` also says what is left alone as alpha.
    """
    found = find_axes(image.shape, **image.channels(channel_axis))
    if found.alpha is not None and found.guess is None:
        samples = found.shape[found.alpha[0]]
        return replace(
            found,
            guess=f"the last of its {samples} samples is alpha, which is left alone",
            otherwise=_WITH_ALPHA,
        )
    if (
        channel_axis == "auto"
        and image.axes_known
        and len(found.shape) > 2
        and found.plane_shape[1] == 1
        and image.axes[-1] == "X"
    ):
        return replace(
            found,
            guess=f"planes of {found.plane_shape[0]} x 1 pixels are taken, as its axes "
            f"{image.axes} say",
            otherwise="Give channel_axis=-1 if the last axis is one channel.",
        )
    return found


def _pil_mode(image: Any) -> str | None:
    mode = getattr(image, "mode", None)
    return (
        mode
        if isinstance(mode, str)
        and any(base.__module__ == "PIL.Image" for base in type(image).__mro__)
        else None
    )


def check_dtype(dtype: np.dtype[Any]) -> None:
    """Refuse arrays that are not intensities.

    Raises
    ------
    TypeError
        If it is not an integer or float type of up to 64 bits.
    """
    advice = {
        "b": "A mask is not an image; use image.astype('float32') if that is meant",
        "c": "Denoise image.real and image.imag separately",
    }
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise TypeError(
            "image must have real intensities, integers or floats of up to 64 bits, got dtype "
            f"{dtype}. {advice.get(dtype.kind, 'Convert the image')}."
        )


def check_out(out: Any, image: InputImage) -> None:
    """Refuse an array that the result cannot be written to.

    Parameters
    ----------
    out : array
        The array for the result.
    image : InputImage
        The image.

    Raises
    ------
    TypeError, ValueError
        If it is not a writable array of the image's shape and dtype with memory of its own.
    """
    shape, dtype = image.shape, image.dtype
    if image.kind == "dask":
        raise ValueError(
            "out must be left out for a dask array, which stays lazy, got one. Use "
            "denoise(image).store(out)."
        )
    if not (hasattr(out, "shape") and hasattr(out, "dtype") and hasattr(out, "__setitem__")):
        raise TypeError(
            f"out must be an array to write to, got a {type(out).__name__}. Use "
            "numpy.empty_like(image)."
        )
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(
            "out must be writable, got a read-only array. Open a memory map with mode 'r+' or 'w+'."
        )
    if tuple(out.shape) != shape or np.dtype(out.dtype).newbyteorder("=") != dtype.newbyteorder(
        "="
    ):
        raise ValueError(
            f"out must be {dtype} {shape}, as the image is, got {out.dtype} {tuple(out.shape)}. "
            "Create it with these."
        )
    if _same_storage(out, image.data):
        raise ValueError(
            "out must be a separate array, got one that shares memory with the image, which is "
            "never written to. Use numpy.empty_like(image)."
        )


def new_array(source: Any) -> Any:
    """An array in memory for the result.

    Parameters
    ----------
    source : array
        The image as an array that can be sliced. For a zarr array the result has its chunks,
        shards and codecs; otherwise it is a numpy array.
    """
    shape, dtype = tuple(source.shape), np.dtype(source.dtype)
    if kind_of(source) == "zarr":
        from dn_core.files.zarr_layout import create_as, read_layout, warn_of_dropped_codecs

        layout = read_layout(source)
        warn_of_dropped_codecs(layout.dropped, str(source.store_path), stacklevel=4)
        return create_as(layout, shape)
    return np.empty(shape, dtype)


def _same_storage(out: Any, image: Any) -> bool:
    """Whether both may lie in the same memory, file or zarr store."""
    if out is image:
        return True
    if (
        isinstance(out, np.memmap)
        and isinstance(image, np.memmap)
        and out.filename
        and image.filename
    ):
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


def _to_torch(array: NDArray[Any], like: Any) -> Any:
    """A tensor with the dtype and on the device of another."""
    import torch

    return torch.from_numpy(array).to(like.device, like.dtype)

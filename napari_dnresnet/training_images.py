"""Training images: layers written to files for the process that trains on them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_dnresnet.axes import default_axes
from napari_dnresnet.layers import highest_level, readable

if TYPE_CHECKING:
    from napari.layers import Image

__all__ = [
    "PlaneStack",
    "forget_training_run",
    "plane_stack",
    "training_runs_folder",
    "write_images",
]


def training_runs_folder() -> Path:
    """Where training runs keep their files: beside the models folder."""
    from dn_core.models import models_folder

    return models_folder().parent / "training-runs"


class PlaneStack:
    """An array with rows and columns last that is read one plane at a time.

    Channels (C) or colours (S) of the last axis come first, without alpha.

    Parameters
    ----------
    data : array
        A layer's array.
    last : str
        The letter of its last axis.

    Attributes
    ----------
    shape, dtype
        Of the array that is written.
    channels_last
        Whether the last axis of `data` comes first.
    has_alpha
        Whether alpha is left out.
    """

    def __init__(self, data: Any, last: str) -> None:
        self._data, self.channels_last = data, last in "CS"
        self.has_alpha = last == "S" and data.shape[-1] > 3
        count = min(data.shape[-1], 3) if last == "S" else data.shape[-1]
        self.shape = (count, *data.shape[:-1]) if self.channels_last else tuple(data.shape)
        self.dtype = np.dtype(data.dtype).newbyteorder("=")

    @property
    def nbytes(self) -> int:
        """Bytes of the array that is written."""
        return int(np.prod(self.shape, dtype=object)) * int(self.dtype.itemsize)

    def plane(self, index: tuple[int, ...]) -> NDArray[Any]:
        """The plane at `index` of all axes but the last two."""
        if self.channels_last:
            channel, *rest = index
            return np.asarray(self._data[(*rest, slice(None), slice(None), channel)])
        return np.asarray(self._data[index])


def plane_stack(layer: Image) -> PlaneStack:
    """A layer's array with rows and columns last, and without alpha."""
    data = highest_level(layer)
    letters = default_axes(tuple(map(str, layer.axis_labels)), tuple(data.shape), layer.rgb)
    return PlaneStack(readable(data), letters[-1])


def write_images(images: dict[str, PlaneStack], folder: Path) -> Iterator[dict[str, Path]]:
    """Write images to files that the training run reads piece by piece.

    Parameters
    ----------
    images : dict of str to PlaneStack
        The images by the option of ``dn-resnet finetune`` that takes them.
    folder : Path
        Where to write them.

    Yields
    ------
    dict
        The files by the same options, once.

    Raises
    ------
    OSError
        When the disk has too little space.
    """
    from dn_core.safe_write import atomic_write, free_bytes

    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(stack.nbytes for stack in images.values()), free_bytes(folder)
    if needed > free:
        raise OSError(
            28,
            f"The images need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free. Free "
            "some space, or crop the images",
            str(folder),
        )
    files = {}
    for option, stack in images.items():
        files[option] = folder / f"{option}.npy"
        header = {
            "descr": np.lib.format.dtype_to_descr(stack.dtype),
            "fortran_order": False,
            "shape": stack.shape,
        }
        with atomic_write(files[option]) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for index in np.ndindex(stack.shape[:-2]):
                file.write(np.ascontiguousarray(stack.plane(index), stack.dtype).data)
    yield files


def forget_training_run(folder: Path, name: str) -> None:
    """Remove the files of a finished training run, whose model is in the models folder."""
    shutil.rmtree(folder / f"{name}-training", ignore_errors=True)
    (folder / f"{name}.safetensors").unlink(missing_ok=True)

"""Before/after pictures: noisy left, denoised right, with the same contrast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.safe_write import atomic_write

__all__ = ["write_comparison"]

MAX_SIDE = 1024
GAP = 4


def write_comparison(
    path: str | Path,
    before: Any,
    after: Any,
    axes: str,
    *,
    orientation: int = 1,
    inverted: bool = False,
) -> None:
    """Write a PNG of two images side by side, each the middle 1024 x 1024 pixels at most.

    Parameters
    ----------
    path : str or Path
        The PNG; an existing one is replaced.
    before, after : array
        Arrays of the same shape.
    axes : str
        Their axes, such as ``"TZCYX"`` or ``"YXS"``; of all axes except rows, columns and samples,
        the middle index is shown.
    orientation : int, default 1
        How to display the image: 1 to 8 as in TIFF and EXIF.
    inverted : bool, default False
        Whether low values are bright.
    """
    from PIL import Image

    index = _middle(tuple(before.shape), axes)
    pictures = [_samples_last(np.asarray(array[index]), axes) for array in (before, after)]
    finite = pictures[0][np.isfinite(pictures[0])]
    low, high = np.percentile(finite.astype(np.float64), (0.2, 99.8)) if finite.size else (0.0, 1.0)
    shown = [
        _oriented(_to_bytes(picture, float(low), float(high)), orientation) for picture in pictures
    ]
    if inverted:
        shown = [255 - picture for picture in shown]
    gap = np.full((shown[0].shape[0], GAP, *shown[0].shape[2:]), 255, np.uint8)
    with atomic_write(Path(path)) as temporary:
        Image.fromarray(np.concatenate([shown[0], gap, shown[1]], axis=1)).save(
            temporary, format="PNG", optimize=True
        )


def _middle(shape: tuple[int, ...], axes: str) -> tuple[Any, ...]:
    index: list[Any] = []
    for extent, axis in zip(shape, axes, strict=True):
        if axis in "YX":
            start = max(0, (extent - MAX_SIDE) // 2)
            index.append(slice(start, min(start + MAX_SIDE, extent)))
        elif axis == "S":
            index.append(slice(0, 3) if extent >= 3 else 0)
        else:
            index.append(extent // 2)
    return tuple(index)


def _samples_last(picture: NDArray[Any], axes: str) -> NDArray[Any]:
    planar = "S" in axes and axes.index("S") < axes.index("Y")
    return np.moveaxis(picture, 0, -1) if planar and picture.ndim == 3 else picture


def _oriented(picture: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation in (3, 4, 6, 7):
        picture = picture[::-1]
    if orientation in (2, 3, 7, 8):
        picture = picture[:, ::-1]
    return picture.swapaxes(0, 1) if orientation >= 5 else picture


def _to_bytes(picture: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Pixels as 8 bits between two grey levels; NaN is black, infinities are black or white."""
    values = np.nan_to_num(picture.astype(np.float64), nan=low, posinf=high, neginf=low)
    if high <= low:  # a constant image is grey, whatever its value
        return np.full(values.shape, 127, np.uint8)
    return np.rint((np.clip(values, low, high) - low) / (high - low) * 255).astype(np.uint8)

"""Grey planes of image files: colours converted by the rule of the field's grey test sets."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.files import ImageFile, read_image
from dn_core.inference.arrays import axes_of_file

__all__ = ["read_grey", "to_grey"]

# MATLAB's rgb2gray, the rule of the field's grey test sets; Pillow's "L" differs by one grey value
# here and there.
GREY = (0.298936, 0.587043, 0.114021)


def to_grey(image: NDArray[Any]) -> NDArray[Any]:
    """Convert RGB to grey by MATLAB's rule, rounded.

    Parameters
    ----------
    image : ndarray
        ``(..., 3)``; further samples, such as alpha, are left out.

    Returns
    -------
    numpy.ndarray
        ``(...)``, of the same dtype.
    """
    grey: NDArray[Any] = np.floor(image[..., :3] @ np.array(GREY) + 0.5).astype(image.dtype)
    return grey


def read_grey(path: Path, smallest: int) -> list[NDArray[Any]]:
    """Read the grey planes of an image file.

    Parameters
    ----------
    path : Path
        The file.
    smallest : int
        Sides of the planes must have at least this many pixels.

    Returns
    -------
    list of numpy.ndarray
        ``(height, width)`` each, uint8 or uint16. Colours become grey, alpha is left out, and other
        samples and channels are planes of their own.

    Raises
    ------
    ValueError
        When the file cannot be read, is of another dtype, is too small, or has a constant plane.
    """
    image = read_image(path)
    pixels = _grey_planes(image)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"the dtype must be uint8 or uint16, got {pixels.dtype}")
    if min(pixels.shape[-2:]) < smallest:
        raise ValueError(
            f"the image must be at least {smallest}x{smallest} pixels, got "
            f"{pixels.shape[-1]}x{pixels.shape[-2]}"
        )
    planes = list(pixels.reshape(-1, *pixels.shape[-2:]))
    if any(plane.min() == plane.max() for plane in planes):
        raise ValueError("an image is needed, got a constant plane")
    return planes


def _grey_planes(image: ImageFile) -> NDArray[Any]:
    """``(..., height, width)``, colours converted and alpha left out."""
    pixels, axes = image.pixels, axes_of_file(image)
    if axes.guess is not None:
        warnings.warn(
            f"{image.path.parent.name}: an image has shape {image.shape}: {axes.guess}.",
            UserWarning,
            stacklevel=4,
        )
    if axes.alpha is not None:
        axis, last = axes.alpha
        pixels = pixels[(slice(None),) * axis + (slice(0, last),)]
    if image.rgb:
        samples = image.axes.index("S")
        if pixels.shape[samples] == 3:
            return to_grey(np.moveaxis(pixels, (*axes.spatial, samples), (-3, -2, -1)))
    return np.moveaxis(pixels, axes.spatial, (-2, -1))

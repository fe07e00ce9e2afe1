"""Dihedral augmentation: the eight rotations and reflections of square patches."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["dihedral", "dihedral_walks"]


def dihedral(patch: NDArray[Any], which: int) -> NDArray[Any]:
    """Rotate or reflect a square.

    Parameters
    ----------
    patch : ndarray
        ``(size, size)``.
    which : int
        0 to 7: the quarter turns of `numpy.rot90`, from 4 on transposed after it.

    Returns
    -------
    numpy.ndarray
        A view of the patch.
    """
    rotated = np.rot90(patch, which % 4)
    return rotated.T if which >= 4 else rotated


@cache
def dihedral_walks(size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How each of the eight patches that `dihedral` makes is read from the image.

    A rotated or reflected patch is read in straight lines too: from one corner of the square in the
    image, with one step in it for a row down in the patch and another for a column to the right. So
    all patches of a batch can be gathered at once by index, without cutting and turning each.

    Parameters
    ----------
    size : int
        Side of the square in pixels.

    Returns
    -------
    rows, columns
        Both ``(8, 3)``: for each patch the offset of its first pixel from the square's upper left
        corner, the step of a row down, and the step of a column to the right.
    """
    walks = []
    for axis in np.indices((2, 2)):  # the corners of a square of 2 x 2 show both steps
        corners = np.array([dihedral(axis, which).flat[:3] for which in range(8)])
        down, right = corners[:, 2] - corners[:, 0], corners[:, 1] - corners[:, 0]
        walks.append(np.stack([corners[:, 0] * (size - 1), down, right], axis=1))
    rows, columns = walks
    return rows, columns

"""A stabilising transform for noise of unknown gain and offset, estimated from the image.

The noise's variance is taken as slope * brightness + offset. Behind the generalised Anscombe
transform (Starck, Murtagh and Bijaoui 1998) it is near 1 everywhere; back goes the closed-form
approximation of the exact unbiased inverse (Mäkitalo and Foi, IEEE TIP 2011 and 2013).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from comparison.methods import anscombe, inverse_anscombe
from scipy import ndimage

from micrographs.cases import Image

__all__ = ["behind_transform", "estimate_noise"]

BLOCK, BINS = 8, 24
HIGH_PASS = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]]) / 6
"""Keeps the standard deviation of white noise and takes away all that is locally linear."""
SMALLEST_SLOPE = 1e-3
"""Of the slope's share in the variance at the brightest, below which noise counts as Gaussian."""


def estimate_noise(image: Image) -> tuple[float, float]:
    """Slope and offset of the noise's variance against brightness, from one image.

    Blocks of 8x8 pixels are sorted by brightness into 24 groups; of each, the lower half of the
    variances after a high-pass filter gives the noise (the upper half has the structure), and a
    line is fitted through the groups by weighted least squares.

    Parameters
    ----------
    image : Image
        ``(height, width)``, at least 64 x 64.

    Returns
    -------
    tuple of float
        Slope (at least 0) and offset.
    """
    y = np.asarray(image, np.float64)
    height, width = (side // BLOCK * BLOCK for side in y.shape)

    def blocks(values: np.ndarray) -> np.ndarray:
        return (
            values[:height, :width]
            .reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
            .mean((1, 3))
            .ravel()
        )

    brightness = blocks(y)
    variance = blocks(ndimage.convolve(y, HIGH_PASS, mode="reflect") ** 2)
    order = np.argsort(brightness)
    groups = [group for group in np.array_split(order, BINS) if len(group) >= 4]
    x = np.array([brightness[group].mean() for group in groups])
    v = np.array([_lower_mean(variance[group]) for group in groups])
    slope, offset = _line(x, v)
    if slope * (x[-1] - x[0]) < SMALLEST_SLOPE * v.max():
        slope, offset = 0.0, float(np.median(v))
    return slope, offset


LOWER_HALF = 0.75
"""Mean of the lower half of block variances over their mean.

White Gaussian noise after the filter, 8x8 blocks: simulated, as neighbours are correlated there.
"""


def _lower_mean(values: np.ndarray) -> float:
    """The mean of all, from the lower half of them."""
    half = np.sort(values)[: max(1, len(values) // 2)]
    return float(half.mean()) / LOWER_HALF


def _line(x: np.ndarray, v: np.ndarray) -> tuple[float, float]:
    """Weighted least squares, the weights from the line itself: a variance's error is its size."""
    weights = 1 / np.maximum(v, 1e-12)
    for _ in range(5):
        slope, offset = np.polyfit(x, v, 1, w=weights)
        weights = 1 / np.maximum(slope * x + offset, 0.05 * v.max())
    return float(max(slope, 0.0)), float(offset if slope > 0 else np.average(v, weights=weights))


def behind_transform(
    method: Callable[[Image], Image], image: Image, noise: tuple[float, float]
) -> Image:
    """A method for noise of standard deviation 1, applied behind the transform.

    Parameters
    ----------
    method : callable
        Denoises an image whose noise has a standard deviation of 1.
    image : Image
        The noisy image.
    noise : tuple of float
        Slope and offset of the noise's variance; with a slope of 0 the image is only divided.

    Returns
    -------
    Image
        On the scale of `image`.
    """
    slope, offset = noise
    if slope == 0:
        scale = float(np.sqrt(max(offset, 1e-12)))
        return (method((image / scale).astype(np.float32)) * scale).astype(np.float32)
    shift = offset / slope**2
    stable = anscombe(np.asarray(image, np.float64) / slope + shift, 0.0)
    counts = inverse_anscombe(method(stable.astype(np.float32)), 0.0)
    return ((counts - shift) * slope).astype(np.float32)

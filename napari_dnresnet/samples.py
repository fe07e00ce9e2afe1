"""Sample data (File > Open Sample): noisy images with their truth, made from what scikit-image ships or drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cells", "photograph", "time_lapse"]

LayerData = tuple[NDArray[Any], dict[str, Any], str]
PHOTOGRAPH_SIGMA = 25
OFFSET, READ_NOISE = 100, 2.0
"""Of the camera: grey levels."""


def cells() -> list[LayerData]:
    """Stained nuclei (drawn) at eight depths, uint16, with few photons: Poisson-Gaussian noise of a camera."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(2)
    shape = (8, 256, 256)
    grid = np.indices(shape, np.float32)
    chromatin = gaussian_filter(random.normal(size=shape).astype(np.float32), (1, 1.5, 1.5))
    texture = 1 + 0.35 * chromatin / chromatin.std()
    truth = np.full(shape, 1.5, np.float32)
    for _ in range(45):
        centre, radius = random.uniform((0, 8, 8), (8, 248, 248)), random.uniform((2, 9, 9), (4, 15, 15))
        inside = sum(((grid[axis] - centre[axis]) / radius[axis]) ** 2 for axis in range(3)) < 1
        truth[inside] = random.uniform(15, 50) * texture[inside].clip(0.2)
    truth = gaussian_filter(truth, (0.5, 1, 1))
    settings = {"scale": (1.0, 0.25, 0.25), "units": ("um",) * 3, "axis_labels": ("z", "y", "x"), "colormap": "green"}
    noise = f"Poisson of up to {truth.max():.0f} photons, offset {OFFSET}, read noise {READ_NOISE:g}"
    return _pair(truth, settings, noise, (OFFSET - 10, OFFSET + 60))


def photograph() -> list[LayerData]:
    """A photograph, uint8, with Gaussian noise of standard deviation 25."""
    from skimage import data

    truth = data.camera()
    noisy = np.clip(np.rint(truth + np.random.default_rng(0).normal(0, PHOTOGRAPH_SIGMA, truth.shape)), 0, 255).astype(np.uint8)
    noise = f"Gaussian, standard deviation {PHOTOGRAPH_SIGMA}"
    return [
        (truth, {"name": "photograph truth", "visible": False}, "image"),
        (noisy, {"name": "photograph", "metadata": {"noise": noise}}, "image"),
    ]


def time_lapse() -> list[LayerData]:
    """Moving spots, 12 time points, 3 channels, uint16, with the noise of a camera; time and channels are axes of the array."""
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:192, :192].astype(np.float32)
    places, speeds = random.uniform(20, 172, (3, 30, 2)), random.normal(0, 1.5, (3, 30, 2))
    widths, lights = random.uniform(2, 6, (3, 30)), random.uniform(10, 50, (3, 30))
    truth = np.zeros((12, 3, 192, 192), np.float32)
    for time, channel in np.ndindex(12, 3):
        for place, speed, width, light in zip(places[channel], speeds[channel], widths[channel], lights[channel], strict=True):
            row, column = place + time * speed
            truth[time, channel] += light * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2))
    settings = {"scale": (1.0, 1.0, 0.2, 0.2), "axis_labels": ("t", "c", "y", "x"), "colormap": "magenta"}
    noise = f"Poisson of up to {truth.max():.0f} photons, offset {OFFSET}, read noise {READ_NOISE:g}"
    return _pair(truth, settings, noise, (OFFSET - 10, OFFSET + 60), name="time-lapse")


def _pair(photons: NDArray[Any], settings: dict[str, Any], noise: str, limits: tuple[int, int], name: str = "nuclei") -> list[LayerData]:
    """Truth, hidden, and what a camera sees of it."""
    random = np.random.default_rng(0)
    seen = random.poisson(photons) + random.normal(OFFSET, READ_NOISE, photons.shape)
    noisy = np.clip(np.rint(seen), 0, 65535).astype(np.uint16)
    common = {**settings, "contrast_limits": limits}
    truth = (photons + OFFSET).astype(np.float32)
    return [
        (truth, {**common, "name": f"{name} truth", "visible": False}, "image"),
        (noisy, {**common, "name": name, "metadata": {"noise": noise}}, "image"),
    ]

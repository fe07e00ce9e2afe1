"""Sample data (File > Open Sample): noisy images with their clean originals.

The photograph comes with scikit-image; the others are drawn.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["cells", "photograph", "time_lapse"]

LayerData = tuple[NDArray[Any], dict[str, Any], str]
PHOTOGRAPH_SIGMA = 25
OFFSET, READ_NOISE = 100, 2.0
"""Of the simulated camera, in grey levels."""


def cells() -> list[LayerData]:
    """Stained nuclei (drawn) at eight depths, uint16, with the noise of a camera at low light."""
    from skimage.filters import gaussian

    random = np.random.default_rng(2)
    shape = (8, 256, 256)
    grid = np.indices(shape, np.float32)
    chromatin = gaussian(
        random.normal(size=shape).astype(np.float32), (1, 1.5, 1.5), mode="reflect"
    )
    texture = 1 + 0.35 * chromatin / chromatin.std()
    truth = np.full(shape, 1.5, np.float32)
    for _ in range(45):
        centre = random.uniform((0, 8, 8), (8, 248, 248))
        radius = random.uniform((2, 9, 9), (4, 15, 15))
        inside = sum(((grid[axis] - centre[axis]) / radius[axis]) ** 2 for axis in range(3)) < 1
        truth[inside] = random.uniform(15, 50) * texture[inside].clip(0.2)
    truth = gaussian(truth, (0.5, 1, 1), mode="reflect")
    settings = {
        "scale": (1.0, 0.25, 0.25),
        "units": ("um",) * 3,
        "axis_labels": ("z", "y", "x"),
        "colormap": "green",
    }
    return _pair(truth, settings)


def photograph() -> list[LayerData]:
    """A photograph, uint8, with Gaussian noise of standard deviation 25."""
    from skimage import data

    truth = data.camera()
    noisy = np.clip(
        np.rint(truth + np.random.default_rng(0).normal(0, PHOTOGRAPH_SIGMA, truth.shape)), 0, 255
    ).astype(np.uint8)
    noise = f"Gaussian, standard deviation {PHOTOGRAPH_SIGMA}"
    return [
        (truth, {"name": "photograph ground truth", "visible": False}, "image"),
        (noisy, {"name": "photograph", "metadata": {"noise": noise}}, "image"),
    ]


def time_lapse() -> list[LayerData]:
    """Moving spots (drawn), uint16, with the noise of a camera.

    12 time points and 3 channels are axes of one array.
    """
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:192, :192].astype(np.float32)
    places, speeds = random.uniform(20, 172, (3, 30, 2)), random.normal(0, 1.5, (3, 30, 2))
    widths, lights = random.uniform(2, 6, (3, 30)), random.uniform(10, 50, (3, 30))
    truth = np.zeros((12, 3, 192, 192), np.float32)
    for time, channel in np.ndindex(12, 3):
        for place, speed, width, light in zip(
            places[channel], speeds[channel], widths[channel], lights[channel], strict=True
        ):
            row, column = place + time * speed
            truth[time, channel] += light * np.exp(
                -((rows - row) ** 2 + (columns - column) ** 2) / (2 * width**2)
            )
    settings = {
        "scale": (1.0, 1.0, 0.2, 0.2),
        "axis_labels": ("t", "c", "y", "x"),
        "colormap": "magenta",
    }
    return _pair(truth, settings, name="time-lapse")


def _pair(photons: NDArray[Any], settings: dict[str, Any], name: str = "nuclei") -> list[LayerData]:
    """The clean image, hidden, and what a camera makes of it."""
    random = np.random.default_rng(0)
    seen = random.poisson(photons) + random.normal(OFFSET, READ_NOISE, photons.shape)
    noisy = np.clip(np.rint(seen), 0, 65535).astype(np.uint16)
    common = {**settings, "contrast_limits": (OFFSET - 10, OFFSET + 60)}
    truth = (photons + OFFSET).astype(np.float32)
    noise = (
        f"Poisson of up to {photons.max():.0f} photons, offset {OFFSET}, read noise {READ_NOISE:g}"
    )
    return [
        (truth, {**common, "name": f"{name} ground truth", "visible": False}, "image"),
        (noisy, {**common, "name": name, "metadata": {"noise": noise}}, "image"),
    ]

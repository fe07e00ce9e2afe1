"""Evaluation protocol: noise levels, test images, methods, and their PSNR and SSIM.

It is the field's: images in 0..1 as float32, noise neither clipped nor rounded, one seeded
generator for all images of a level, so that all methods see the same noise; results clipped to
0..1; PSNR with peak 1 and SSIM averaged over images.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dn_core import files
from dn_core.files.grey import read_grey
from dn_core.inference.denoise import denoise
from dn_core.inference.model import Model, load_model
from dn_core.noise import (
    Bpg,
    Gaussian,
    Jpeg,
    Jpeg2000,
    Noise,
    Poisson,
    PoissonGaussian,
    SuperResolution,
)
from dn_core.noise.models import PAPER_MIXED_SIGMAS, PAPER_PEAKS, PAPER_SIGMAS

__all__ = [
    "Image",
    "Level",
    "Method",
    "ModelMethod",
    "Score",
    "evaluate",
    "in_threads",
    "level_named",
    "milliseconds",
    "paper_levels",
    "psnr",
    "read_images",
    "ssim",
]

SSIM_SETTINGS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
"""Wang et al. 2004: a Gaussian window of 1.5 pixels, population covariance."""
SPEED_SIDE, SPEED_ROUNDS = 512, 5

LEVEL_KINDS: dict[str, Callable[[float], Noise]] = {
    "gaussian": Gaussian,
    "poisson": Poisson,
    "jpeg": Jpeg,
    "jpeg2000": Jpeg2000,
    "bpg": Bpg,
    "super-resolution": SuperResolution,
}

Image = NDArray[np.float32]


class Method(Protocol):
    """Something that denoises grey images in 0..1.

    Attributes
    ----------
    name : str
        As tables have it.
    parameters : int
        Number of weights.
    macs_per_pixel : float
        Multiplications per pixel.
    """

    name: str
    parameters: int
    macs_per_pixel: float

    def __call__(self, image: Image, std: float) -> Image:
        """Denoise ``(height, width)``; blind methods ignore `std`, the noise's root mean square."""
        ...


class ModelMethod:
    """A model of ours as a method.

    Parameters
    ----------
    model : str, Path or Model
        The model. Tables call it by its card's name, and by name and version where it is named so.
    device : str, optional
        Where it computes; by default as `dn_core.denoise` chooses.
    """

    def __init__(self, model: str | Path | Model, device: str | None = None) -> None:
        self.model = model if isinstance(model, Model) else load_model(model)
        versioned = isinstance(model, str) and not Path(model).suffix and "@" in model
        self.name = self.model.network.reference if versioned else self.model.card.name
        self.parameters = sum(value.size for value in self.model.checkpoint.weights.values())
        self.macs_per_pixel = self.model.config.macs_per_pixel
        self._device = device

    def __call__(self, image: Image, std: float) -> Image:
        """See `Method`."""
        sigma = std if self.model.config.noise_map else None
        result: Image = denoise(image, self.model, sigma=sigma, device=self._device)
        return result


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of noise at one strength.

    Attributes
    ----------
    name : str
        As the tables have it, such as ``"poisson-gaussian 0.1/1"``.
    noise : Noise
        The noise model.
    """

    name: str
    noise: Noise

    def add_noise(self, images: Sequence[Image], seed: int = 0) -> list[tuple[Image, float]]:
        """Add noise to images.

        Parameters
        ----------
        images : sequence of Image
            Clean images, 0..1.
        seed : int, default 0
            Of the noise.

        Returns
        -------
        list of tuple
            Each noisy image with the root mean square of its noise.
        """
        import torch

        if isinstance(self.noise, Gaussian) and isinstance(self.noise.sigma, (int, float)):
            # numpy's generator, as in the published figures of the baselines.
            rng, std = np.random.default_rng(seed), self.noise.sigma / 255
            return [
                ((image + std * rng.standard_normal(image.shape)).astype(np.float32), std)
                for image in images
            ]
        generator = torch.Generator().manual_seed(seed)
        found = [self.noise(torch.from_numpy(image)[None, None], generator) for image in images]
        return [
            (noisy.image[0, 0].numpy(), float(noisy.std.square().mean().sqrt())) for noisy in found
        ]


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a method at a level.

    Attributes
    ----------
    method, level : str
        Their names.
    psnr, ssim : float
        Means over the images; PSNR in dB.
    images : int
        Number of images.
    done, total : int
        How many scores there are with this one, and how many there will be.
    """

    method: str
    level: str
    psnr: float
    ssim: float
    images: int
    done: int
    total: int


def paper_levels() -> dict[str, Level]:
    """The 16 levels of the paper's section 4.1, by name."""
    levels = [Level(f"gaussian {sigma:g}", Gaussian(sigma)) for sigma in PAPER_SIGMAS]
    levels += [Level(f"poisson {peak:g}", Poisson(peak)) for peak in PAPER_PEAKS]
    levels += [
        Level(f"poisson-gaussian {sigma:g}/{10 * sigma:g}", PoissonGaussian(sigma))
        for sigma in PAPER_MIXED_SIGMAS
    ]
    return {level.name: level for level in levels}


def level_named(name: str) -> Level:
    """Make a level of noise from its name.

    Parameters
    ----------
    name : str
        One of `paper_levels`, or any other such as ``"gaussian 15"``, ``"jpeg 10"``, ``"bpg 37"``
        or ``"super-resolution 3"``.

    Returns
    -------
    Level
        The level.

    Raises
    ------
    ValueError
        When it is neither.
    """
    levels = paper_levels()
    if name in levels:
        return levels[name]
    kind, _, value = name.rpartition(" ")
    try:
        return Level(name, LEVEL_KINDS[kind](float(value)))
    except KeyError:
        expected = f"one of {', '.join(levels)}, or {', '.join(LEVEL_KINDS)} with a number"
        raise ValueError(f"level must be {expected}, got {name!r}. Change --level.") from None
    except ValueError as error:
        raise ValueError(f"the level {name!r} cannot be made: {error}") from error


def evaluate(
    methods: Iterable[Method], images: Sequence[Image], levels: Iterable[Level], seed: int = 0
) -> Generator[Score]:
    """Score every method at every level.

    Parameters
    ----------
    methods : iterable of Method
        What denoises.
    images : sequence of Image
        Clean images, 0..1.
    levels : iterable of Level
        The noise.
    seed : int, default 0
        The noise of a level depends on it alone.

    Yields
    ------
    Score
        One for each level and method.
    """
    listed, levels = list(methods), list(levels)
    total = len(listed) * len(levels)
    done = 0
    for level in levels:
        noisy = level.add_noise(images, seed)
        for method in listed:
            results = [method(image, std) for image, std in noisy]
            done += 1
            ratio, similarity = (
                statistics.fmean(in_threads(metric, images, results)) for metric in (psnr, ssim)
            )
            yield Score(method.name, level.name, ratio, similarity, len(images), done, total)


def read_images(folder: str | Path, limit: int | None = None) -> list[Image]:
    """Read the images of a folder as grey planes in 0..1.

    Parameters
    ----------
    folder : str or Path
        Where they are.
    limit : int, optional
        Only the first ones, in order of their names; None for all.

    Returns
    -------
    list of numpy.ndarray
        ``(height, width)`` each; colours become grey by MATLAB's rule.

    Raises
    ------
    FileNotFoundError
        When there is no image.
    ValueError
        When a file cannot be used.
    """
    images: list[Image] = []
    for path in files.image_paths([Path(folder)])[:limit]:
        for plane in read_grey(path, 1):
            images.append(plane.astype(np.float32) / np.float32(np.iinfo(plane.dtype).max))
    return images


def psnr(truth: Image, image: Image) -> float:
    """Peak signal-to-noise ratio in dB with peak 1, the image clipped to 0..1."""
    from skimage.metrics import peak_signal_noise_ratio

    return float(
        peak_signal_noise_ratio(
            truth.astype(np.float64), np.clip(image, 0, 1).astype(np.float64), data_range=1
        )
    )


def ssim(truth: Image, image: Image) -> float:
    """Structural similarity with the settings of Wang et al. 2004, the image clipped to 0..1."""
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            truth, np.clip(image, 0, 1).astype(np.float32), data_range=1, **SSIM_SETTINGS
        )
    )


def milliseconds(method: Method) -> float:
    """Time a method: the median of some 512x512 images, after one to warm up."""
    image = np.random.default_rng(0).random((SPEED_SIDE, SPEED_SIDE)).astype(np.float32)
    times = []
    for _ in range(1 + SPEED_ROUNDS):
        began = time.perf_counter()
        method(image, 0.1)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


def in_threads(function: Callable[..., Any], *columns: Any) -> list[Any]:
    """Map over images on all cores, as scikit-image's filters and metrics use one core each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *columns))

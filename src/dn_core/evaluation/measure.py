"""Levels of noise, images, and the scores of methods on them.

The protocol is the field's: images in 0..1 as float32, noise neither clipped nor rounded, one seeded generator for all images of a level,
so that all methods see the same noise; results clipped to 0..1; PSNR with peak 1 and SSIM averaged over images.
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
from dn_core.inference.denoise import Model, denoise, load_model
from dn_core.noise import (
    PAPER_MIXED_SIGMAS,
    PAPER_PEAKS,
    PAPER_SIGMAS,
    Bpg,
    Gaussian,
    Jpeg,
    Jpeg2000,
    Noise,
    Poisson,
    PoissonGaussian,
    SuperResolution,
)
from dn_core.training.bank import read_grey

__all__ = [
    "Image",
    "Level",
    "Method",
    "OwnMethod",
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
    """Something that denoises grey images in 0..1; blind ones ignore `std`, the noise's root mean square."""

    name: str
    parameters: int
    macs_per_pixel: float

    def __call__(self, image: Image, std: float) -> Image:
        """``(height, width)`` to the same."""
        ...


class OwnMethod:
    """One of our models as a method, on the device that `dn_core.denoise` chooses or on `device`."""

    def __init__(self, name_or_path: str | Path, device: str | None = None) -> None:
        self.model: Model = load_model(name_or_path)
        self.name = self.model.card.name
        self.parameters = sum(value.size for value in self.model.checkpoint.weights.values())
        self.macs_per_pixel = self.model.config.macs_per_pixel
        self._device = device

    def __call__(self, image: Image, std: float) -> Image:
        """See `Method`."""
        told = std if self.model.config.noise_map else None
        result: Image = denoise(image, self.model, noise=told, device=self._device)
        return result


@dataclass(frozen=True, slots=True)
class Level:
    """A kind of noise at one strength; `name` is as the tables have it, such as ``"poisson-gaussian 0.1/1"``."""

    name: str
    noise: Noise

    def spoil(self, images: Sequence[Image], seed: int = 0) -> list[tuple[Image, float]]:
        """Noisy images, each with the root mean square of its noise."""
        import torch

        if isinstance(self.noise, Gaussian) and isinstance(self.noise.sigma, (int, float)):
            # numpy's generator, as in the published figures of the peers.
            rng, std = np.random.default_rng(seed), self.noise.sigma / 255
            return [((image + std * rng.standard_normal(image.shape)).astype(np.float32), std) for image in images]
        generator = torch.Generator().manual_seed(seed)
        spoiled = [self.noise(torch.from_numpy(image)[None, None], generator) for image in images]
        return [(noisy.image[0, 0].numpy(), float(noisy.std.square().mean().sqrt())) for noisy in spoiled]


@dataclass(frozen=True, slots=True)
class Score:
    """What a method reached at a level, as means over the images; `done` of `total` scores are there with it."""

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
    levels += [Level(f"poisson-gaussian {sigma:g}/{10 * sigma:g}", PoissonGaussian(sigma)) for sigma in PAPER_MIXED_SIGMAS]
    return {level.name: level for level in levels}


def level_named(name: str) -> Level:
    """One of the paper's levels, or any other such as ``"gaussian 15"``, ``"jpeg 10"``, ``"bpg 37"`` or ``"super-resolution 3"``.

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
        raise ValueError(f"there is no level {name!r}; {expected} is expected. Change --level.") from None
    except ValueError as error:
        raise ValueError(f"the level {name!r} cannot be made: {error}") from error


def evaluate(methods: Iterable[Method], images: Sequence[Image], levels: Iterable[Level], seed: int = 0) -> Generator[Score]:
    """Score every method at every level; the noise of a level depends on `seed` alone."""
    listed, levels = list(methods), list(levels)
    total = len(listed) * len(levels)
    done = 0
    for level in levels:
        noisy = level.spoil(images, seed)
        for method in listed:
            results = [method(image, std) for image, std in noisy]
            done += 1
            ratio, similarity = (statistics.fmean(in_threads(metric, images, results)) for metric in (psnr, ssim))
            yield Score(method.name, level.name, ratio, similarity, len(images), done, total)


def read_images(folder: str | Path, limit: int | None = None) -> list[Image]:
    """Grey images in 0..1 of a folder, in order of their names; colours become grey by MATLAB's rule.

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

    return float(peak_signal_noise_ratio(truth.astype(np.float64), np.clip(image, 0, 1).astype(np.float64), data_range=1))


def ssim(truth: Image, image: Image) -> float:
    """Structural similarity with the settings of Wang et al. 2004, the image clipped to 0..1."""
    from skimage.metrics import structural_similarity

    return float(structural_similarity(truth, np.clip(image, 0, 1).astype(np.float32), data_range=1, **SSIM_SETTINGS))


def milliseconds(method: Method) -> float:
    """Median time of a 512x512 image, after one to warm up."""
    image = np.random.default_rng(0).random((SPEED_SIDE, SPEED_SIDE)).astype(np.float32)
    times = []
    for _ in range(1 + SPEED_ROUNDS):
        began = time.perf_counter()
        method(image, 0.1)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


def in_threads(function: Callable[..., Any], *columns: Any) -> list[Any]:
    """Map over images with all cores: scikit-image's filters and metrics use one core each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *columns))

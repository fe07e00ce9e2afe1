"""What ours is compared with: filters, and BM3D behind a stabilising transform.

Filters that need a strength get the one that is best for this very image, found with the truth:
better than anyone can do without it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from comparison.methods import NLM, TV
from scipy import ndimage, optimize

from dn_core.paper.protocol import psnr
from micrographs.cases import Case, Image
from micrographs.stabilise import behind_transform, estimate_noise

__all__ = ["BASELINES", "Filter", "filter_named", "installed_baselines"]

GAUSSIAN_PIXELS = (0.2, 12.0)
NLM_STRENGTHS, TV_STRENGTHS = (0.2, 4.0), (0.1, 8.0)
"""Of the noise's standard deviation behind the transform, which is 1."""
TOLERANCE = 0.03
"""Of the logarithm of a strength: closer changes PSNR by less than 0.01 dB."""


@dataclass(frozen=True)
class Filter:
    """A method to compare with.

    Attributes
    ----------
    name, title : str
        In records and in tables.
    package : str
        The package that it needs.
    strengths : tuple of float, optional
        The range in which the best strength is looked for with the truth.
    apply : callable
        Takes a noisy image, its noise (slope and offset of the variance) and the strength.
    version : int
        Counts changes: what was kept of an earlier one is computed again.
    """

    name: str
    title: str
    package: str
    strengths: tuple[float, float] | None
    apply: Callable[[Image, tuple[float, float], float], Image]
    version: int = 1

    def best(self, case: Case) -> tuple[Image, float]:
        """The result for a case, and its strength (1 where there is none to choose)."""
        noise = case.noise or estimate_noise(case.noisy)
        if self.strengths is None:
            return self.apply(case.noisy, noise, 1.0), 1.0

        def loss(logarithm: float) -> float:
            return -psnr(case.truth, self.apply(case.noisy, noise, math.exp(logarithm)))

        found = optimize.minimize_scalar(
            loss,
            bounds=tuple(map(math.log, self.strengths)),
            method="bounded",
            options={"xatol": TOLERANCE},
        )
        strength = math.exp(float(found.x))
        return self.apply(case.noisy, noise, strength), strength

    @property
    def installed(self) -> str:
        """Package and version; empty where it is not installed."""
        if importlib.util.find_spec(self.package) is None:
            return ""
        distribution = {"skimage": "scikit-image"}.get(self.package, self.package)
        return f"{distribution} {importlib.metadata.version(distribution)}"


def gaussian(image: Image, noise: tuple[float, float], strength: float) -> Image:
    """A Gaussian filter of `strength` pixels."""
    return ndimage.gaussian_filter(image, strength).astype(np.float32)


def non_local_means(image: Image, noise: tuple[float, float], strength: float) -> Image:
    """scikit-image's non-local means behind the transform."""
    from skimage.restoration import denoise_nl_means

    return behind_transform(
        lambda y: denoise_nl_means(y, h=strength, sigma=1.0, preserve_range=True, **NLM),
        image,
        noise,
    )


def total_variation(image: Image, noise: tuple[float, float], strength: float) -> Image:
    """scikit-image's total variation (Chambolle) behind the transform."""
    from skimage.restoration import denoise_tv_chambolle

    return behind_transform(lambda y: denoise_tv_chambolle(y, weight=strength, **TV), image, noise)


def bm3d(image: Image, noise: tuple[float, float], strength: float) -> Image:
    """BM3D with its default profile behind the transform, told that the noise is white."""
    import bm3d as package

    return behind_transform(lambda y: np.asarray(package.bm3d(y, 1.0)), image, noise)


BASELINES = (
    Filter("gaussian", "best Gaussian filter", "scipy", GAUSSIAN_PIXELS, gaussian),
    Filter("nlm", "NLM, best strength", "skimage", NLM_STRENGTHS, non_local_means),
    Filter("tv", "TV, best strength", "skimage", TV_STRENGTHS, total_variation),
    Filter("bm3d", "BM3D", "bm3d", None, bm3d),
)


def filter_named(name: str) -> Filter:
    """One of `BASELINES`."""
    return next(found for found in BASELINES if found.name == name)


def installed_baselines() -> list[Filter]:
    """Those whose package is installed."""
    return [found for found in BASELINES if found.installed]

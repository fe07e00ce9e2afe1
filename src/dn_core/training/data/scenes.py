"""Scenes of user images, and the gain and offset between a noisy image and its clean one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.training.data.image_sources import Pixels

__all__ = ["SAMPLE_PIXELS", "UNRELATED", "Scene", "correlation", "matched", "sampled_pair"]

SAMPLE_PIXELS = 2**22
MISMATCH = 0.02
"""A gain and an offset that explain more than this part of a pair's squared difference are real."""
UNRELATED, FLAT = 0.05, 0.2
"""Correlations of noisy and clean: below the first they show different scenes, below the second
there is too little content to estimate a gain."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Images of one scene, ``(height, width)`` each.

    Attributes
    ----------
    noisy : tuple of Pixels
        Noisy images of it; several are repeats.
    clean : Pixels, optional
        The clean image, where there is one.
    gain, offset : float
        ``gain * clean + offset`` is the clean image in the grey levels of the noisy one.
    """

    noisy: tuple[Pixels, ...]
    clean: Pixels | None = None
    gain: float = 1.0
    offset: float = 0.0

    @property
    def planes(self) -> tuple[Pixels, ...]:
        """All images, the clean one last."""
        return self.noisy if self.clean is None else (*self.noisy, self.clean)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.planes[0].shape
        return height, width

    def target(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """A part of what a network should make: of the last image.

        Parameters
        ----------
        window : tuple (slice, slice)
            Rows and columns.

        Returns
        -------
        numpy.ndarray
            ``(rows, columns)``; of a clean image in the grey levels of the noisy one.
        """
        part = self.planes[-1][window]
        return part if self.gain == 1.0 and self.offset == 0.0 else part * self.gain + self.offset


def sampled_pair(scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Some pixels of a pair."""
    step = max(1, math.ceil(math.sqrt(math.prod(scene.shape) / SAMPLE_PIXELS)))
    noisy, clean = (
        plane[::step, ::step].astype(np.float64) for plane in (scene.noisy[0], scene.planes[-1])
    )
    return noisy, clean


def correlation(noisy: NDArray[np.float64], clean: NDArray[np.float64]) -> float:
    """0 where one of them has no content."""
    spread = math.sqrt(noisy.var() * clean.var())
    return (
        float(((noisy - noisy.mean()) * (clean - clean.mean())).mean() / spread) if spread else 0.0
    )


def matched(scene: Scene) -> Scene:
    """Scale the clean image to the grey levels of the noisy one.

    Only where they differ by more than the noise explains: a gain and an offset must explain at
    least `MISMATCH` of the squared difference.
    """
    noisy, clean = sampled_pair(scene)
    if correlation(noisy, clean) < FLAT:
        return scene
    gain = float(((noisy - noisy.mean()) * (clean - clean.mean())).mean() / clean.var())
    offset = float(noisy.mean() - gain * clean.mean())
    as_given, fitted = ((noisy - clean) ** 2).mean(), ((noisy - gain * clean - offset) ** 2).mean()
    if as_given - fitted <= MISMATCH * as_given:
        return scene
    return replace(scene, gain=gain, offset=offset)

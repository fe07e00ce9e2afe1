"""Training data: batches to learn from, and the score on held-out images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dn_core.noise import Noise, Noisy
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.recipes import Phase

__all__ = ["Batch", "Denoiser", "SyntheticNoiseData", "TrainingData"]

SCORE_IMAGES, SCORE_SIZE = 16, 256


class Batch(NamedTuple):
    """What one step learns from.

    Attributes
    ----------
    target : torch.Tensor
        ``(N, 1, H, W)``: the images that should come out.
    noisy : Noisy
        The images that go in, and the standard deviation of their noise.
    means : torch.Tensor
        ``(N, 1, 1, 1)``: the means of the planes that the patches were cut from.
    """

    target: Tensor
    noisy: Noisy
    means: Tensor


class Denoiser(Protocol):
    """A network that is being trained, with averaged weights."""

    def __call__(self, noisy: Noisy, means: Tensor | None = None, *, exact: bool = False) -> Tensor:
        """Denoise ``(N, 1, H, W)``; `exact` computes in float32, whatever the run's precision."""
        ...


class TrainingData(Protocol):
    """What a network is trained on."""

    def fingerprint(self) -> str:
        """Hash all pixels, in order: a resumed run must find the same."""
        ...

    def at(self, step: int, rank: int, size: int) -> TrainingData:
        """The data of process `rank` of `size` at a step."""
        ...

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """A batch in which everything random comes from `rng`."""
        ...

    def score(self, denoise: Denoiser, device: torch.device) -> float | None:
        """PSNR on held-out images, always with the same noise; None where there are none."""
        ...


@dataclass(frozen=True)
class SyntheticNoiseData:
    """Clean images and the noise model by which noise is added to them."""

    dataset: CleanImageDataset
    noise: Noise

    def fingerprint(self) -> str:
        """See `TrainingData.fingerprint`."""
        return self.dataset.fingerprint()

    def at(self, step: int, rank: int, size: int) -> SyntheticNoiseData:
        """See `TrainingData.at`."""
        return SyntheticNoiseData(self.dataset.at(step, rank, size), self.noise)

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """See `TrainingData.batch`."""
        if device.type == "cuda":
            # Patches are cut and noise is added there: one CPU core cannot keep up with a GPU.
            clean, means = self.dataset.patches_on(device, phase.batch, phase.patch, rng)
            generator = torch.Generator(device)
        else:
            clean, means = (
                torch.from_numpy(part).to(device)
                for part in self.dataset.patches(phase.batch, phase.patch, rng)
            )
            generator = torch.Generator()
        return Batch(
            clean, self.noise(clean, generator.manual_seed(int(rng.integers(2**62)))), means
        )

    def score(self, denoise: Denoiser, device: torch.device) -> float | None:
        """Mean PSNR on held-out images with the noise of training, a draw of it for each image."""
        if not self.dataset.held_out:
            return None
        generator = torch.Generator().manual_seed(0)
        scores = []
        for image in self.dataset.held_out[:SCORE_IMAGES]:
            crop = image[:SCORE_SIZE, :SCORE_SIZE].astype(np.float32) / np.float32(
                self.dataset.full_scale
            )
            clean = torch.from_numpy(crop)[None, None].to(device)
            error = denoise(self.noise(clean, generator)).clamp(0, 1) - clean
            scores.append(-10 * math.log10(float(error.square().mean()) + 1e-12))
        return sum(scores) / len(scores)

    def describe(self) -> dict[str, Any]:
        """What a card says of it."""
        return {
            "images": self.dataset.count,
            "held_out": len(self.dataset.held_out),
            "sha256": self.fingerprint(),
        }

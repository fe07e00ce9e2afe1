"""Where the batches of a training come from, and how its network is scored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dn_core.noise import Noise, Noisy
from dn_core.training.bank import Bank
from dn_core.training.recipes import Phase

__all__ = ["Batch", "CleanImages", "Denoiser", "Material"]

SCORE_IMAGES, SCORE_SIZE = 16, 256


class Batch(NamedTuple):
    """What one step learns from: the images that should come out ``(N, 1, H, W)``, those that go in, and the means of their planes."""

    target: Tensor
    noisy: Noisy
    means: Tensor


class Denoiser(Protocol):
    """The network of a training, with averaged weights."""

    def __call__(self, noisy: Noisy, means: Tensor | None = None, *, exact: bool = False) -> Tensor:
        """Denoise ``(N, 1, H, W)``; `exact` computes in float32 whatever the training's precision."""
        ...


class Material(Protocol):
    """What a network is trained on."""

    def fingerprint(self) -> str:
        """A hash of all pixels, in order: a resumed run must find the same."""
        ...

    def at(self, step: int, rank: int, size: int) -> Material:
        """What worker `rank` of `size` learns from at a step."""
        ...

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """A batch in which everything random comes from `rng`."""
        ...

    def score(self, denoise: Denoiser, device: torch.device) -> float | None:
        """The PSNR on images that are never trained on, always with the same noise; None where there are none."""
        ...


@dataclass(frozen=True)
class CleanImages:
    """Clean images and the noise that is put on them."""

    bank: Bank
    noise: Noise

    def fingerprint(self) -> str:
        """See `Material.fingerprint`."""
        return self.bank.fingerprint()

    def at(self, step: int, rank: int, size: int) -> CleanImages:
        """See `Material.at`."""
        return CleanImages(self.bank.at(step, rank, size), self.noise)

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """See `Material.batch`."""
        if device.type == "cuda":
            # Cut and spoilt there: one core of a CPU cannot keep up with a GPU.
            clean, means = self.bank.patches_on(device, phase.batch, phase.patch, rng)
            generator = torch.Generator(device)
        else:
            clean, means = (torch.from_numpy(part).to(device) for part in self.bank.patches(phase.batch, phase.patch, rng))
            generator = torch.Generator()
        return Batch(clean, self.noise(clean, generator.manual_seed(int(rng.integers(2**62)))), means)

    def score(self, denoise: Denoiser, device: torch.device) -> float | None:
        """Mean PSNR on held-out images with the noise that is trained on, each image with its own draw of it."""
        if not self.bank.held_out:
            return None
        generator = torch.Generator().manual_seed(0)
        scores = []
        for image in self.bank.held_out[:SCORE_IMAGES]:
            crop = image[:SCORE_SIZE, :SCORE_SIZE].astype(np.float32) / np.float32(self.bank.full_scale)
            clean = torch.from_numpy(crop)[None, None].to(device)
            error = denoise(self.noise(clean, generator)).clamp(0, 1) - clean
            scores.append(-10 * math.log10(float(error.square().mean()) + 1e-12))
        return sum(scores) / len(scores)

    def describe(self) -> dict[str, Any]:
        """What a card says of it."""
        return {"images": self.bank.count, "held_out": len(self.bank.held_out), "sha256": self.fingerprint()}

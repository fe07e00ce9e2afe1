"""Training data: batches to learn from, and the score on held-out images."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dn_core.noise import Noise, Noisy, noise_from_dict
from dn_core.noise.parameters import Parameter
from dn_core.training.data.clean_images import CleanImageDataset
from dn_core.training.data.phantom_images import PhantomImages
from dn_core.training.data.target_blur import blur_from, blurred_targets
from dn_core.training.recipes import Phase, Recipe

__all__ = ["Batch", "Denoiser", "SyntheticNoiseData", "TrainingData", "raised"]

SCORE_IMAGES, SCORE_SIZE = 16, 256


class Batch(NamedTuple):
    """What one step learns from.

    Attributes
    ----------
    target : torch.Tensor
        ``(N, 1, H, W)``: the images that should come out. They are the clean ones, or the mean of
        clipped readings where the noise model has such a target.
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


def raised(means: Tensor, clean: Tensor, noisy: Noisy) -> Tensor:
    """The means of planes once they are noisy: clipping at black raises them.

    Parameters
    ----------
    means : torch.Tensor
        ``(N, 1, 1, 1)``: the means of the clean planes.
    clean : torch.Tensor
        ``(N, 1, H, W)``: patches of them, which tell by how much.
    noisy : Noisy
        The patches with noise.

    Returns
    -------
    torch.Tensor
        ``(N, 1, 1, 1)``.
    """
    if noisy.target is None:
        return means
    return means + (noisy.target - clean).mean(dim=(1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class SyntheticNoiseData:
    """Clean images and the noise model by which noise is added to them.

    Attributes
    ----------
    dataset : CleanImageDataset
        The images.
    noise : Noise
        The noise.
    phantoms : PhantomImages, optional
        Made-up images beside them.
    share : float, default 0.0
        Share of the patches that is cut from `phantoms`.
    target_blur : Parameter, default 0.0
        Standard deviation in pixels by which patches from files are blurred before noise is added.
    """

    dataset: CleanImageDataset
    noise: Noise
    phantoms: PhantomImages | None = None
    share: float = 0.0
    target_blur: Parameter = 0.0

    @classmethod
    def of(cls, recipe: Recipe, dataset: CleanImageDataset) -> SyntheticNoiseData:
        """What a recipe trains on."""
        noise, blur = noise_from_dict(recipe.noise), blur_from(recipe.target_blur)
        if dataset.made_up or not recipe.phantoms:
            return cls(dataset, noise, target_blur=blur)
        phantoms = PhantomImages.of(recipe, held_out=not dataset.held_out)
        return cls(dataset, noise, phantoms, recipe.phantoms, blur)

    @property
    def held_out(self) -> tuple[NDArray[Any], ...]:
        """Images for the score: made-up ones only where there are no others."""
        if self.dataset.held_out or self.phantoms is None:
            return self.dataset.held_out
        return self.phantoms.held_out

    def fingerprint(self) -> str:
        """See `TrainingData.fingerprint`."""
        if self.phantoms is None:
            return self.dataset.fingerprint()
        both = self.dataset.fingerprint() + self.phantoms.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    def at(self, step: int, rank: int, size: int) -> SyntheticNoiseData:
        """See `TrainingData.at`."""
        phantoms = None if self.phantoms is None else self.phantoms.at(step, rank, size)
        return replace(self, dataset=self.dataset.at(step, rank, size), phantoms=phantoms)

    def batch(self, phase: Phase, rng: np.random.Generator, device: torch.device) -> Batch:
        """See `TrainingData.batch`."""
        made_up = 0
        if self.phantoms is not None:
            # In the long run the share, whatever the size of a batch.
            made_up = int(self.share * phase.batch + rng.random())
        parts = []
        if made_up < phase.batch:
            clean, means = _cut(self.dataset, phase.batch - made_up, phase.patch, rng, device)
            if self.target_blur != 0.0 and not self.dataset.made_up:
                clean = blurred_targets(clean, self.target_blur, _generator(rng, device))
            parts.append((clean, means))
        if self.phantoms is not None and made_up:
            parts.append(_cut(self.phantoms, made_up, phase.patch, rng, device))
        clean, means = (torch.cat(part) for part in zip(*parts, strict=True))
        noisy = self.noise(clean, _generator(rng, device))
        return Batch(noisy.wanted(clean), noisy, raised(means, clean, noisy))

    def score(self, denoise: Denoiser, device: torch.device) -> float | None:
        """Mean PSNR on held-out images with the noise of training, a draw of it for each image."""
        if not self.held_out:
            return None
        full_scale = float(np.iinfo(self.held_out[0].dtype).max)
        generator = torch.Generator().manual_seed(0)
        scores = []
        for image in self.held_out[:SCORE_IMAGES]:
            crop = image[:SCORE_SIZE, :SCORE_SIZE].astype(np.float32) / np.float32(full_scale)
            clean = torch.from_numpy(crop)[None, None].to(device)
            noisy = self.noise(clean, generator)
            error = denoise(noisy).clamp(0, 1) - noisy.wanted(clean).clamp(0, 1)
            scores.append(-10 * math.log10(float(error.square().mean()) + 1e-12))
        return sum(scores) / len(scores)

    def describe(self) -> dict[str, Any]:
        """What a card says of it."""
        described: dict[str, Any] = {
            "images": self.dataset.count,
            "held_out": len(self.held_out),
            "sha256": self.fingerprint(),
        }
        share = 1.0 if self.dataset.made_up else self.share
        return described | ({"phantoms": share} if share else {})


def _cut(
    dataset: CleanImageDataset,
    count: int,
    size: int,
    rng: np.random.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Random patches, and the means of their images, on a device."""
    if device.type == "cuda":
        # Patches are cut and noise is added there: one CPU core cannot keep up with a GPU.
        return dataset.patches_on(device, count, size, rng)
    patches, means = dataset.patches(count, size, rng)
    return torch.from_numpy(patches).to(device), torch.from_numpy(means).to(device)


def _generator(rng: np.random.Generator, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device) if device.type == "cuda" else torch.Generator()
    return generator.manual_seed(int(rng.integers(2**62)))

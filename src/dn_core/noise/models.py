"""Noise models: Gaussian, Poisson, both, and mixtures, as in section 4.1 of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from dn_core.noise.parameters import (
    Choice,
    Parameter,
    check_parameter,
    draw,
    normal,
    poisson,
)

__all__ = [
    "PAPER_MIXED_SIGMAS",
    "PAPER_PEAKS",
    "PAPER_SIGMAS",
    "Gaussian",
    "Mixture",
    "Noise",
    "Noisy",
    "Poisson",
    "PoissonGaussian",
    "paper_mixture",
]

PAPER_SIGMAS = (10.0, 25.0, 50.0, 75.0)
PAPER_PEAKS = (1.0, 2.0, 4.0, 8.0)
PAPER_MIXED_SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0)


class Noisy(NamedTuple):
    """Noisy images and their noise.

    Attributes
    ----------
    image : Tensor
        ``(N, 1, H, W)``, on the 0..1 scale but not clipped.
    std : Tensor
        The standard deviation of the noise at each pixel, of the same shape and scale.
    target : Tensor, optional
        What a network should make of `image`, of the same shape and scale; None where that is the
        clean image. A detector that clips its readings at black has another mean.
    """

    image: Tensor
    std: Tensor
    target: Tensor | None = None

    def wanted(self, clean: Tensor) -> Tensor:
        """The target, or the clean image where there is none.

        Parameters
        ----------
        clean : Tensor
            The images that the noise was added to.

        Returns
        -------
        Tensor
            ``(N, 1, H, W)``.
        """
        return clean if self.target is None else self.target

    def with_map(self) -> Tensor:
        """The images and their noise as planes, for networks that take a noise map.

        Returns
        -------
        Tensor
            ``(N, 2, H, W)``.
        """
        return torch.cat([self.image, self.std], dim=1)


class Noise(Protocol):
    """A noise or degradation model: any callable like this one."""

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Add noise to images.

        Parameters
        ----------
        clean : Tensor
            ``(N, 1, H, W)``, in 0..1; it is not changed.
        generator : torch.Generator
            Decides alone what is drawn. It may be on the CPU while `clean` is on a GPU.

        Returns
        -------
        Noisy
            On the device of `clean`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gaussian:
    """White Gaussian noise, ``y = x + N(0, (sigma / 255)^2)`` (Eq. 1 of the paper).

    Parameters
    ----------
    sigma : float, Uniform, LogUniform or Choice
        Standard deviation on the 0..255 scale, 0 or more.
    """

    sigma: Parameter

    def __post_init__(self) -> None:
        check_parameter("sigma", self.sigma, positive=False)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Add noise to images, each with its own draw of the noise.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The noisy images and the noise's standard deviation, on the device of `clean`.
        """
        sigma = draw(self.sigma, clean, generator) / 255
        return Noisy(clean + sigma * normal(clean, generator), sigma.expand_as(clean))


@dataclass(frozen=True, slots=True)
class Poisson:
    """Shot noise, ``y = P(peak * x) / peak`` (Eq. 2 of the paper).

    Parameters
    ----------
    peak : float, Uniform, LogUniform or Choice
        Mean photon count where the image is 1, above 0.
    """

    peak: Parameter

    def __post_init__(self) -> None:
        check_parameter("peak", self.peak, positive=True)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Add noise to images, each with its own draw of the noise.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The noisy images and the noise's standard deviation, on the device of `clean`.
        """
        peak = draw(self.peak, clean, generator)
        return Noisy(poisson(clean * peak, generator) / peak, (clean.clamp(min=0) / peak).sqrt())


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Shot and read noise, ``y = (P(peak * x) + N(0, sigma^2)) / peak`` (Eq. 3 of the paper).

    Parameters
    ----------
    sigma : float, Uniform, LogUniform or Choice
        Standard deviation of the read noise in photons, 0 or more (above 0 without `peak`).
    peak : float, Uniform, LogUniform or Choice, optional
        Mean photon count where the image is 1, above 0. By default ``10 * sigma``, as in section
        4.1 of the paper.
    """

    sigma: Parameter
    peak: Parameter | None = None

    def __post_init__(self) -> None:
        check_parameter("sigma", self.sigma, positive=self.peak is None)
        if self.peak is not None:
            check_parameter("peak", self.peak, positive=True)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Add noise to images, each with its own draw of the noise.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The noisy images and the noise's standard deviation, on the device of `clean`.
        """
        sigma = draw(self.sigma, clean, generator)
        peak = 10 * sigma if self.peak is None else draw(self.peak, clean, generator)
        counts = poisson(clean * peak, generator) + sigma * normal(clean, generator)
        return Noisy(counts / peak, (clean.clamp(min=0) / peak + (sigma / peak) ** 2).sqrt())


@dataclass(frozen=True, slots=True)
class Mixture:
    """One of several models, drawn for each image.

    Parameters
    ----------
    models : tuple of Noise
        At least one.
    shares : tuple of float
        One for each model, 0 or more; the probabilities are proportional to them. By default all
        models are equally likely.

    Raises
    ------
    ValueError
        When there are no models, or the shares do not fit them.
    """

    models: tuple[Noise, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("Mixture must have at least one model, got none. Give some.")
        usable = (
            all(math.isfinite(share) and share >= 0 for share in self.shares)
            and sum(self.shares) > 0
        )
        if self.shares and (len(self.shares) != len(self.models) or not usable):
            raise ValueError(
                f"Mixture must have one share, 0 or more, for each of {len(self.models)} models, "
                f"got {self.shares}. Change the shares."
            )

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Add noise to images, each with its own draw of the noise.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The noisy images and the noise's standard deviation, on the device of `clean`.
        """
        shares = torch.tensor(
            self.shares or (1.0,) * len(self.models), dtype=torch.float32, device=generator.device
        )
        chosen = torch.multinomial(shares, clean.shape[0], replacement=True, generator=generator)
        # One wait for a GPU, not one for each model.
        counts = torch.bincount(chosen, minlength=len(self.models)).tolist()
        image, std, target = torch.empty_like(clean), torch.empty_like(clean), None
        for model, mine in zip(
            self.models,
            torch.split(chosen.argsort(stable=True).to(clean.device), counts),
            strict=True,
        ):
            if len(mine):
                noisy = model(clean[mine], generator)
                image[mine], std[mine] = noisy.image, noisy.std
                if noisy.target is not None:
                    target = clean.clone() if target is None else target
                    target[mine] = noisy.target
        return Noisy(image, std, target)


def paper_mixture() -> Mixture:
    """The mixture on which the paper trains its blind networks (section 4.1).

    Returns
    -------
    Mixture
        All its Gaussian, Poisson and Poisson-Gaussian levels, equally likely.
    """
    models = (
        Gaussian(Choice(PAPER_SIGMAS)),
        Poisson(Choice(PAPER_PEAKS)),
        PoissonGaussian(Choice(PAPER_MIXED_SIGMAS)),
    )
    return Mixture(models, (len(PAPER_SIGMAS), len(PAPER_PEAKS), len(PAPER_MIXED_SIGMAS)))

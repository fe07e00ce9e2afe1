"""What clipping at black does to the mean and the spread of a detector's readings.

For Gaussian noise of standard deviation s, with z = (x - black) / s, the mean of the clipped
readings is ``black + (x - black) Phi(z) + s phi(z)``. Shot noise of few photons is not Gaussian:
there the same is summed over the numbers of photons. Both depend on nothing but the level x in an
image, so they are computed for some levels and interpolated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Spread", "clipping_of"]

LEVELS = 128
PHOTONS = 64
FEW = 25.0
"""Up to so many photons are summed over, which ends at `PHOTONS`; more are all but Gaussian."""
FAR = 8.0
"""Standard deviations above black from which on clipping changes nothing."""
SMALLEST = 1e-6


class Spread(NamedTuple):
    """Noise as a function of the level in each of N images, all ``(N, 1, 1, 1)``.

    Attributes
    ----------
    constant : torch.Tensor
        The variance of all that does not depend on light; below 0 it counts against shot noise.
    gain : torch.Tensor
        The variance of the shot noise per unit of light.
    photon : torch.Tensor
        What a photon counts in the reading: the gain, but less where noise is blurred, so that its
        skewness is right too.
    dark : torch.Tensor
        The level without light.
    """

    constant: Tensor
    gain: Tensor
    photon: Tensor
    dark: Tensor


def clipping_of(clean: Tensor, black: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """By how much clipping raises the mean of readings, and narrows their spread.

    Parameters
    ----------
    clean : torch.Tensor
        ``(N, 1, H, W)``: means of the readings without clipping.
    black : torch.Tensor
        ``(N, 1, 1, 1)``: the level at which they are clipped; minus infinity for none.
    spread : Spread
        Their noise.

    Returns
    -------
    rise : torch.Tensor
        ``(N, 1, H, W)``: ``E[max(x + n, black)] - x``, 0 or more.
    ratio : torch.Tensor
        ``(N, 1, H, W)``: the standard deviation as a share of that without clipping.
    """
    low, high = (
        extreme(clean, dim=(1, 2, 3), keepdim=True) for extreme in (torch.amin, torch.amax)
    )
    # Closer together where it is dark: there the noise is weakest and clipping strongest.
    places = torch.linspace(0, 1, LEVELS, device=clean.device, dtype=clean.dtype).square()
    table = torch.stack(_at(low + (high - low) * places, black, spread), -1)[:, 0, 0]
    place = ((clean - low) / (high - low).clamp(min=SMALLEST)).clamp(0, 1).sqrt() * (LEVELS - 1)
    index = place.floor().clamp(max=LEVELS - 2)
    part = (place - index).flatten(1)
    index = index.flatten(1).long()
    rise, ratio = (
        values.gather(1, index).lerp(values.gather(1, index + 1), part).reshape(clean.shape)
        for values in table.unbind(-1)
    )
    clipped = black.isfinite()
    return rise.where(clipped, 0.0), ratio.where(clipped, 1.0)


def _at(level: Tensor, black: Tensor, spread: Spread) -> tuple[Tensor, Tensor]:
    """Rise and ratio at some levels."""
    constant = spread.constant.clamp(min=0)
    shot = spread.gain * (level - spread.dark).clamp(min=0) + (spread.constant - constant)
    shot = shot.clamp(min=0)
    deviation = (constant + shot).sqrt().clamp(min=SMALLEST)
    # Clipping far below changes nothing; a lower black would only cost digits.
    above = (level - black).clamp(max=FAR * deviation)
    photon = spread.photon.clamp(min=SMALLEST)
    rate = shot / photon.square()
    few = rate < FEW
    summed = _summed(above, photon, rate.where(few, 0.0), constant)
    skewed = _skewed(above, deviation, photon * shot / deviation.pow(3))
    mean, square = (some.where(few, many) for some, many in zip(summed, skewed, strict=True))
    variance = (square - mean.square()).clamp(min=0)
    return (mean - above).clamp(min=0), variance.sqrt() / deviation


def _summed(above: Tensor, photon: Tensor, rate: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of readings above black, summed over the numbers of photons."""
    above, photon, rate, constant = (part[..., None] for part in (above, photon, rate, constant))
    count = torch.arange(PHOTONS, device=above.device, dtype=above.dtype)
    chance = torch.exp(torch.xlogy(count, rate) - rate - torch.lgamma(count + 1))
    moments = _gaussian(above + photon * (count - rate), constant.sqrt().clamp(min=SMALLEST))
    mean, square = ((chance * moment).sum(-1) for moment in moments)
    return mean, square


def _skewed(above: Tensor, deviation: Tensor, skewness: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment above black of Gaussian noise with a little skewness (Edgeworth)."""
    mean, square = _gaussian(above, deviation)
    z = above / deviation
    density = _density(z)
    return (
        mean - deviation * skewness / 6 * z * density,
        square + deviation.square() * skewness / 3 * density,
    )


def _gaussian(above: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of ``max(above + n, 0)`` for Gaussian n."""
    z = above / deviation
    share, density = 0.5 * torch.erfc(-z / math.sqrt(2)), deviation * _density(z)
    return above * share + density, (above.square() + deviation.square()) * share + above * density


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

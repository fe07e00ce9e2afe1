"""Noise that is correlated between pixels: what interpolation, binning and scanning do to it.

White noise is blurred by a kernel whose squares sum to 1, so that its variance stays. All kernels
are products of one along columns and one along rows.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dn_core.noise.parameters import Parameter, largest, uniform

__all__ = ["CorrelationShape", "Kernels", "blurred", "draw_kernels", "reach"]

CorrelationShape = Literal["isotropic", "rows", "columns", "box", "bilinear", "any"]
SHAPES: tuple[CorrelationShape, ...] = get_args(CorrelationShape)
ANY_SHARES = {"isotropic": 0.5, "rows": 0.1, "columns": 0.1, "box": 0.15, "bilinear": 0.15}
"""How often each shape comes with "any"."""
WIDTHS = 4
"""Kernels of Gaussians end at so many of their widths."""


class Kernels(NamedTuple):
    """A kernel for each of N images.

    Attributes
    ----------
    down, right : torch.Tensor
        ``(N, K)``: its factors along columns and along rows, each with squares that sum to 1.
    """

    down: Tensor
    right: Tensor

    def moment(self, power: int) -> Tensor:
        """The sum of a power of each kernel's values, ``(N, 1, 1, 1)``."""
        sums = self.down.pow(power).sum(1) * self.right.pow(power).sum(1)
        return sums.reshape(-1, 1, 1, 1)


def reach(correlation: Parameter, shape: CorrelationShape) -> int:
    """How many pixels a kernel reaches to each side, at most.

    Parameters
    ----------
    correlation : float, Uniform, LogUniform, Choice or Sometimes
        As for `dn_core.noise.Detector`.
    shape : CorrelationShape
        As for `dn_core.noise.Detector`.

    Returns
    -------
    int
        Known without drawing, so that nobody waits for a GPU.
    """
    width = largest(correlation)
    if width == 0:
        return 0
    box = width if shape == "box" else _box_side(width)
    sides = {"box": math.ceil(box / 2), "bilinear": 1, "any": math.ceil(max(WIDTHS * width, box))}
    return sides.get(shape, math.ceil(WIDTHS * width))


def _box_side(width: float) -> float:
    """The side of the box that spreads as far as a Gaussian: ``(n^2 - 1) / 12 = width^2``."""
    return math.sqrt(12 * width**2 + 1)


def draw_kernels(
    width: Tensor, shape: CorrelationShape, radius: int, generator: Generator
) -> Kernels:
    """Make the kernel of each image.

    Parameters
    ----------
    width : torch.Tensor
        ``(N, 1, 1, 1)``: `correlation` of each image, in pixels; 0 for white noise.
    shape : CorrelationShape
        As for `dn_core.noise.Detector`.
    radius : int
        From `reach`.
    generator : torch.Generator
        Draws the shapes and the shifts of ``"any"``.

    Returns
    -------
    Kernels
        On the device of `width`.
    """
    width = width.flatten()
    if shape != "any":
        return _kernels(width, shape, radius)
    shares = torch.tensor(list(ANY_SHARES.values()), device=generator.device)
    chosen = torch.multinomial(shares, len(width), replacement=True, generator=generator)
    chosen = chosen.to(width.device)[:, None]
    down, right = torch.zeros(2, len(width), 2 * radius + 1).to(width)
    for number, name in enumerate(ANY_SHARES):
        if name == "bilinear":
            shifts = 0.5 * uniform(torch.stack([width, width]), generator) * (width > 0)
            some = Kernels(*(_interpolation(shift, radius) for shift in shifts))
        else:
            spread = (12 * width.square() + 1).sqrt() if name == "box" else width
            some = _kernels(spread, name, radius)
        down = some.down.where(chosen == number, down)
        right = some.right.where(chosen == number, right)
    return Kernels(down, right)


def blurred(noise: Tensor, kernels: Kernels, power: int = 1) -> Tensor:
    """Blur images, each by a power of its kernel; they become smaller by its reach on each side.

    Parameters
    ----------
    noise : torch.Tensor
        ``(N, 1, H + K - 1, W + K - 1)``.
    kernels : Kernels
        Of K taps each way.
    power : int, default 1
        2 for a variance: that of blurred noise is the variance blurred by the kernel's squares.

    Returns
    -------
    torch.Tensor
        ``(N, 1, H, W)``.
    """
    count, images = len(noise), noise.transpose(0, 1)
    down = kernels.down.pow(power)[:, None, :, None]
    right = kernels.right.pow(power)[:, None, None, :]
    images = functional.conv2d(functional.conv2d(images, down, groups=count), right, groups=count)
    return images.transpose(0, 1)


def _kernels(width: Tensor, shape: str, radius: int) -> Kernels:
    """The kernels of one shape."""
    if shape == "box":
        taps = _box(width, radius)
        return Kernels(taps, taps)
    if shape == "bilinear":
        taps = _interpolation(width.clamp(max=0.5), radius)
        return Kernels(taps, taps)
    taps, alone = _gaussian(width, radius), _interpolation(torch.zeros_like(width), radius)
    return Kernels(alone if shape == "rows" else taps, alone if shape == "columns" else taps)


def _gaussian(width: Tensor, radius: int) -> Tensor:
    """Kernels that correlate noise as a Gaussian does: ``exp(-d^2 / (4 width^2))`` at distance d.

    Narrow Gaussians that are sampled at whole pixels correlate it less; so the kernel is found from
    the correlation, whose spectrum is the square of its own.
    """
    lags = torch.arange(-2 * radius, 2 * radius + 1, device=width.device)
    narrow = width.clamp(min=1e-3)[:, None]
    correlation = torch.exp(-lags.square() / (4 * narrow.square())).roll(2 * radius + 1, 1)
    spectrum = torch.fft.fft(correlation).real.clamp(min=0)
    taps = torch.fft.ifft(spectrum.sqrt()).real.roll(radius, 1)[:, : 2 * radius + 1]
    return _normalised(taps)


def _box(side: Tensor, radius: int) -> Tensor:
    """The mean over a whole number of pixels."""
    places = torch.arange(-radius, radius + 1, device=side.device)
    side = side.round().clamp(min=1)[:, None]
    inside = (places > -side / 2) & (places <= side / 2)
    return _normalised(inside.to(side))


def _interpolation(shift: Tensor, radius: int) -> Tensor:
    """Linear interpolation at a distance of up to half a pixel from a pixel's middle."""
    places = torch.arange(-radius, radius + 1, device=shift.device)
    shift = shift[:, None]
    return _normalised((1 - shift) * (places == 0) + shift * (places == 1))


def _normalised(taps: Tensor) -> Tensor:
    """With squares that sum to 1, which keeps the variance of white noise."""
    length: Tensor = taps.square().sum(1, keepdim=True).sqrt()
    return taps / length

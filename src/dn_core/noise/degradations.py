"""Degradation models: compression and enlarging, as in section 4.4 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dn_core import compression
from dn_core.noise.models import Noisy
from dn_core.noise.parameters import Parameter, check_parameter, draw

__all__ = ["Bpg", "Jpeg", "Jpeg2000", "SuperResolution"]


@dataclass(frozen=True, slots=True)
class Jpeg:
    """JPEG compression of the 8-bit image (section 4.4 of the paper).

    Parameters
    ----------
    quality : float, Uniform, LogUniform or Choice
        1 (worst) to 100; drawn values are rounded.
    """

    quality: Parameter

    def __post_init__(self) -> None:
        check_parameter("quality", self.quality, positive=True, high=100)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Compress images and decode them again, each with its own setting.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The decoded images and the standard deviation of their errors, on the device of `clean`.
        """
        return _compressed(
            clean,
            self.quality,
            generator,
            lambda image, quality: compression.jpeg(image, max(1, round(quality))),
        )


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """JPEG 2000 compression of the 8-bit image (section 4.4 of the paper).

    Parameters
    ----------
    ratio : float, Uniform, LogUniform or Choice
        How many times fewer bytes than pixels, 1 to 1000.
    """

    ratio: Parameter

    def __post_init__(self) -> None:
        check_parameter("ratio", self.ratio, positive=True, low=1, high=1000)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Compress images and decode them again, each with its own setting.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The decoded images and the standard deviation of their errors, on the device of `clean`.
        """
        return _compressed(clean, self.ratio, generator, compression.jpeg2000)


@dataclass(frozen=True, slots=True)
class Bpg:
    """BPG compression of the 8-bit image, or HEVC intra coding (section 4.4 of the paper).

    `dn_core.compression.bpg` says which of the two.

    Parameters
    ----------
    qp : float, Uniform, LogUniform or Choice
        Quantization parameter, 0 (best) to 51; drawn values are rounded.
    """

    qp: Parameter

    def __post_init__(self) -> None:
        check_parameter("qp", self.qp, positive=False, high=51)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Compress images and decode them again, each with its own setting.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The decoded images and the standard deviation of their errors, on the device of `clean`.
        """
        return _compressed(
            clean,
            self.qp,
            generator,
            lambda image, qp: compression.bpg(image, round(qp)),
        )


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """The blur of an enlarged image: bicubic down (antialiased) and up again (section 4.4).

    Parameters
    ----------
    factor : float, Uniform, LogUniform or Choice
        By how much, 1 to 16; drawn values are rounded.
    """

    factor: Parameter

    def __post_init__(self) -> None:
        check_parameter("factor", self.factor, positive=True, low=1, high=16)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Blur images, each with its own factor.

        Parameters
        ----------
        clean : Tensor
            Images ``(N, 1, H, W)`` in 0..1; they are not changed.
        generator : torch.Generator
            The only source of random numbers, on the CPU or on the device of `clean`.

        Returns
        -------
        Noisy
            The blurred images and the standard deviation of the error in each, on the device of
            `clean`.
        """
        factors = draw(self.factor, clean, generator).flatten().tolist()
        images = [
            _enlarged(image[None], round(factor))
            for image, factor in zip(clean, factors, strict=True)
        ]
        return _with_error(torch.cat(images), clean)


def _compressed(
    clean: Tensor,
    parameter: Parameter,
    generator: Generator,
    codec: Callable[[Any, float], compression.Compressed],
) -> Noisy:
    """Each image through a codec; the standard deviation is the codec's error over each image."""
    values = draw(parameter, clean, generator).flatten().tolist()
    levels = (clean.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    images = np.stack(
        [codec(image[0], value).image for image, value in zip(levels, values, strict=True)]
    )
    return _with_error(torch.from_numpy(images)[:, None].to(clean) / 255, clean)


def _enlarged(image: Tensor, factor: int) -> Tensor:
    height, width = image.shape[-2:]
    small = functional.interpolate(
        image, (-(-height // factor), -(-width // factor)), mode="bicubic", antialias=True
    )
    return functional.interpolate(small, (height, width), mode="bicubic")


def _with_error(image: Tensor, clean: Tensor) -> Noisy:
    return Noisy(
        image, (image - clean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt().expand_as(clean)
    )

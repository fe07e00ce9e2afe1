"""Blur of patches from files, whose own noise a network should not learn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dn_core.noise.correlation import Kernels, blurred
from dn_core.noise.parameters import Parameter, check_parameter, draw, largest
from dn_core.noise.tables import parameter_from_table

__all__ = ["blur_from", "blurred_targets"]

WIDEST = 4.0
REACH = 3.5
"""Where the kernel ends, in standard deviations; beyond it lie 0.05 percent."""


def blur_from(value: float | dict[str, Any]) -> Parameter:
    """The `target_blur` of a recipe.

    Parameters
    ----------
    value : float or dict
        A number of pixels, or a distribution of them.

    Returns
    -------
    float, Uniform, LogUniform, Choice or Sometimes
        The standard deviation of the blur.

    Raises
    ------
    ValueError
        When a number is not in 0..4, or the distribution is unknown.
    """
    blur = parameter_from_table("target_blur", value)
    check_parameter("target_blur", blur, positive=False, high=WIDEST)
    return blur


def blurred_targets(patches: Tensor, blur: Parameter, generator: Generator) -> Tensor:
    """Blur each patch with a Gaussian of its own; beyond their edges patches go on as they end.

    Parameters
    ----------
    patches : Tensor
        ``(N, 1, H, W)``.
    blur : float, Uniform, LogUniform, Choice or Sometimes
        The standard deviation in pixels; it is drawn for each patch.
    generator : torch.Generator
        Where it is drawn from.

    Returns
    -------
    Tensor
        The same shape.
    """
    reach = math.ceil(REACH * largest(blur))
    if reach == 0:
        return patches
    places = torch.arange(-reach, reach + 1, device=patches.device)
    # A width of 0 leaves a patch as it is: its kernel is 1 in the middle.
    widths = draw(blur, patches, generator).flatten().clamp(min=1e-3)
    taps = torch.exp(-0.5 * (places / widths[:, None]) ** 2)
    taps = taps / taps.sum(dim=1, keepdim=True)
    return blurred(functional.pad(patches, (reach,) * 4, mode="replicate"), Kernels(taps, taps))

"""Parameters of noise models: numbers, and distributions that they are drawn from."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

__all__ = [
    "Choice",
    "LogUniform",
    "Parameter",
    "Sometimes",
    "Uniform",
    "check_parameter",
    "draw",
    "largest",
    "normal",
    "poisson",
    "uniform",
]


@dataclass(frozen=True, slots=True)
class Uniform:
    """A number drawn evenly from an interval.

    Parameters
    ----------
    low, high : float
        Its ends.
    """

    low: float
    high: float

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw numbers.

        Parameters
        ----------
        count : int
            How many.
        generator : torch.Generator
            Where they come from.

        Returns
        -------
        Tensor
            ``(count,)``, on the generator's device.
        """
        return self.low + (self.high - self.low) * torch.rand(
            count, generator=generator, device=generator.device
        )


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A positive number whose logarithm is drawn evenly from an interval.

    Parameters
    ----------
    low, high : float
        The smallest and the largest number, ``0 < low <= high``.

    Raises
    ------
    ValueError
        When they are not.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(
                f"LogUniform must have 0 < low <= high, got {self.low}..{self.high}. Change them."
            )

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw numbers.

        Parameters
        ----------
        count : int
            How many.
        generator : torch.Generator
            Where they come from.

        Returns
        -------
        Tensor
            ``(count,)``, on the generator's device.
        """
        return torch.exp(Uniform(math.log(self.low), math.log(self.high)).draw(count, generator))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few numbers, all equally likely.

    Parameters
    ----------
    values : tuple of float
        The numbers, at least one.

    Raises
    ------
    ValueError
        When there are none.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Choice must have at least one value, got none. Give some.")

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw numbers.

        Parameters
        ----------
        count : int
            How many.
        generator : torch.Generator
            Where they come from.

        Returns
        -------
        Tensor
            ``(count,)``, on the generator's device.
        """
        index = torch.randint(
            len(self.values), (count,), generator=generator, device=generator.device
        )
        return torch.tensor(self.values, device=generator.device)[index]


@dataclass(frozen=True, slots=True)
class Sometimes:
    """A number in some images, and 0, which is nothing, in the others.

    Parameters
    ----------
    value : float, Uniform, LogUniform or Choice
        The number, or what it is drawn from.
    chance : float
        The share of images that have it, 0..1.

    Raises
    ------
    ValueError
        When the chance is not in 0..1.
    """

    value: float | Uniform | LogUniform | Choice
    chance: float

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance must be in 0..1, got {self.chance}. Change chance.")

    def draw(self, count: int, generator: Generator, otherwise: float = 0.0) -> Tensor:
        """Draw numbers.

        Parameters
        ----------
        count : int
            How many.
        generator : torch.Generator
            Where they come from.
        otherwise : float, default 0.0
            The number in the other images.

        Returns
        -------
        Tensor
            ``(count,)``, on the generator's device.
        """
        device = generator.device
        there = torch.rand(count, generator=generator, device=device) < self.chance
        values = (
            torch.full((count,), float(self.value), device=device)
            if isinstance(self.value, (int, float))
            else self.value.draw(count, generator)
        )
        return values.where(there, otherwise)


Parameter = float | Uniform | LogUniform | Choice | Sometimes


def check_parameter(
    name: str, value: Parameter, *, positive: bool, low: float = 0, high: float = math.inf
) -> None:
    """Refuse a parameter of a noise model that is out of its range.

    Raises
    ------
    ValueError
        When a number in it is not finite, negative (unless `low` is), 0 where it must be
        `positive`, or not in `low`..`high`.
    """
    # By hand: msgspec knows limits of numbers, not of distributions of them.
    numbers = _numbers(value)
    usable = all(
        isinstance(number, (int, float))
        and not isinstance(number, bool)
        and abs(number) <= sys.float_info.max  # math.isfinite fails for huge whole numbers
        for number in numbers
    )
    if not usable or min(numbers) < min(0, low) or (positive and min(numbers) == 0):
        kind = "positive " if positive else "non-negative " if low >= 0 else ""
        raise ValueError(f"{name} must be a finite {kind}number, got {value}. Change {name}.")
    if min(numbers) < low or max(numbers) > high:
        raise ValueError(f"{name} must be in {low:g}..{high:g}, got {value}. Change {name}.")
    inner = value.value if isinstance(value, Sometimes) else value
    if isinstance(inner, Uniform | LogUniform) and inner.low > inner.high:
        raise ValueError(f"{name} must have low <= high, got {value}. Change {name}.")


def _numbers(value: Parameter) -> tuple[Any, ...]:
    if isinstance(value, Sometimes):
        return (0.0, *_numbers(value.value))
    if isinstance(value, Choice):
        return value.values
    return (value.low, value.high) if isinstance(value, Uniform | LogUniform) else (value,)


def largest(parameter: Parameter) -> float:
    """The largest number that a parameter can be."""
    return float(max(_numbers(parameter)))


def draw(
    parameter: Parameter, clean: Tensor, generator: Generator, *, otherwise: float = 0.0
) -> Tensor:
    """One value for each image, shaped to broadcast over it.

    `otherwise` is the value of images that have none (`Sometimes`).
    """
    shape = (clean.shape[0], *(1,) * (clean.ndim - 1))
    if isinstance(parameter, (int, float)):
        return torch.full(shape, float(parameter), dtype=clean.dtype, device=clean.device)
    values = (
        parameter.draw(clean.shape[0], generator, otherwise)
        if isinstance(parameter, Sometimes)
        else parameter.draw(clean.shape[0], generator)
    )
    return values.to(clean).reshape(shape)


def normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers, drawn on the generator's device, so that one serves all devices."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def poisson(rate: Tensor, generator: Generator) -> Tensor:
    """Poisson numbers of these rates (those below 0 are 0), drawn as `normal` draws its own."""
    return torch.poisson(
        rate.clamp(min=0).to(generator.device, torch.float32), generator=generator
    ).to(rate)


def uniform(like: Tensor, generator: Generator) -> Tensor:
    """Numbers in 0..1, all equally likely, drawn as `normal` draws its own."""
    return torch.rand(like.shape, generator=generator, device=generator.device).to(like)

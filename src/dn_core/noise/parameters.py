"""Parameters of noise models: numbers, and distributions that they are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

__all__ = ["Choice", "LogUniform", "Parameter", "Uniform", "check_parameter", "draw"]


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


Parameter = float | Uniform | LogUniform | Choice


def check_parameter(
    name: str, value: Parameter, *, positive: bool, low: float = 0, high: float = math.inf
) -> None:
    """Refuse a parameter of a noise model that is out of its range.

    Raises
    ------
    ValueError
        When a number in it is not finite, negative, 0 where it must be `positive`, or not in
        `low`..`high`.
    """
    # By hand: msgspec knows limits of numbers, not of distributions of them.
    numbers = _numbers(value)
    usable = all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
        for number in numbers
    )
    if not usable or min(numbers) < 0 or (positive and min(numbers) == 0):
        raise ValueError(
            f"{name} must be a finite {'positive' if positive else 'non-negative'} number, got "
            f"{value}. Change {name}."
        )
    if min(numbers) < low or max(numbers) > high:
        raise ValueError(f"{name} must be in {low:g}..{high:g}, got {value}. Change {name}.")
    if isinstance(value, Uniform | LogUniform) and value.low > value.high:
        raise ValueError(f"{name} must have low <= high, got {value}. Change {name}.")


def _numbers(value: Parameter) -> tuple[Any, ...]:
    if isinstance(value, Choice):
        return value.values
    return (value.low, value.high) if isinstance(value, Uniform | LogUniform) else (value,)


def draw(parameter: Parameter, clean: Tensor, generator: Generator) -> Tensor:
    """One value for each image, shaped to broadcast over it."""
    if isinstance(parameter, (int, float)):
        values = torch.full((clean.shape[0],), float(parameter))
    else:
        values = parameter.draw(clean.shape[0], generator)
    return values.to(clean).reshape(-1, *(1,) * (clean.ndim - 1))

"""What spoils an image: the noise models of the paper's section 4.1, and the compression and enlarging of its section 4.4.

Each model is called with clean images ``(N, 1, H, W)`` in 0..1 and a ``torch.Generator``, and gives a `Noisy`: the noisy images,
neither clipped nor rounded, and the standard deviation of their noise. A parameter is a number, or one of `Uniform`, `LogUniform`
and `Choice`, from which a value is drawn for each image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

from dn_core import compression

__all__ = [
    "PAPER_MIXED_SIGMAS",
    "PAPER_PEAKS",
    "PAPER_SIGMAS",
    "Bpg",
    "Choice",
    "Gaussian",
    "Jpeg",
    "Jpeg2000",
    "LogUniform",
    "Mixture",
    "Noise",
    "Noisy",
    "Poisson",
    "PoissonGaussian",
    "SuperResolution",
    "Uniform",
    "noise_from_dict",
    "paper_mixture",
]

PAPER_SIGMAS = (10.0, 25.0, 50.0, 75.0)
PAPER_PEAKS = (1.0, 2.0, 4.0, 8.0)
PAPER_MIXED_SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0)


class Noisy(NamedTuple):
    """Noisy images, and the standard deviation of the noise at each pixel (0..1 scale), both ``(N, 1, H, W)``."""

    image: Tensor
    std: Tensor


class Noise(Protocol):
    """Anything that spoils a batch of clean images."""

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """A number drawn evenly from `low`..`high`."""

    low: float
    high: float

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` numbers, on the generator's device."""
        return self.low + (self.high - self.low) * torch.rand(count, generator=generator, device=generator.device)


@dataclass(frozen=True, slots=True)
class LogUniform:
    """A positive number whose logarithm is drawn evenly from `low`..`high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"LogUniform has bounds {self.low}..{self.high}; 0 < low <= high is expected. Change the bounds.")

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` numbers, on the generator's device."""
        return torch.exp(Uniform(math.log(self.low), math.log(self.high)).draw(count, generator))


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few numbers, each as likely."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("Choice has no values; at least one is expected. Give some.")

    def draw(self, count: int, generator: Generator) -> Tensor:
        """`count` numbers, on the generator's device."""
        index = torch.randint(len(self.values), (count,), generator=generator, device=generator.device)
        return torch.tensor(self.values, device=generator.device)[index]


Parameter = float | Uniform | LogUniform | Choice


@dataclass(frozen=True, slots=True)
class Gaussian:
    """White Gaussian noise, ``y = x + N(0, (sigma / 255)^2)``; `sigma` on the 0..255 scale (Eq. 1)."""

    sigma: Parameter

    def __post_init__(self) -> None:
        _check_parameter("sigma", self.sigma, positive=False)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        sigma = _draw(self.sigma, clean, generator) / 255
        return Noisy(clean + sigma * _normal(clean, generator), sigma.expand_as(clean))


@dataclass(frozen=True, slots=True)
class Poisson:
    """Shot noise, ``y = P(peak * x) / peak``; `peak` is the mean count where the image is 1 (Eq. 2)."""

    peak: Parameter

    def __post_init__(self) -> None:
        _check_parameter("peak", self.peak, positive=True)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        peak = _draw(self.peak, clean, generator)
        return Noisy(_poisson(clean * peak, generator) / peak, (clean.clamp(min=0) / peak).sqrt())


@dataclass(frozen=True, slots=True)
class PoissonGaussian:
    """Shot and read noise, ``y = (P(peak * x) + N(0, sigma^2)) / peak``; `sigma` in photons (Eq. 3).

    Without `peak` it is ``10 * sigma``, as in section 4.1 of the paper.
    """

    sigma: Parameter
    peak: Parameter | None = None

    def __post_init__(self) -> None:
        _check_parameter("sigma", self.sigma, positive=self.peak is None)
        if self.peak is not None:
            _check_parameter("peak", self.peak, positive=True)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        sigma = _draw(self.sigma, clean, generator)
        peak = 10 * sigma if self.peak is None else _draw(self.peak, clean, generator)
        counts = _poisson(clean * peak, generator) + sigma * _normal(clean, generator)
        return Noisy(counts / peak, (clean.clamp(min=0) / peak + (sigma / peak) ** 2).sqrt())


@dataclass(frozen=True, slots=True)
class Jpeg:
    """JPEG compression of the 8-bit image at `quality` 1..100, drawn values rounded (section 4.4)."""

    quality: Parameter

    def __post_init__(self) -> None:
        _check_parameter("quality", self.quality, positive=True, high=100)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        return _compressed(clean, self.quality, generator, lambda image, quality: compression.jpeg(image, max(1, round(quality))))


@dataclass(frozen=True, slots=True)
class Jpeg2000:
    """JPEG 2000 compression of the 8-bit image to `ratio` times fewer bytes, 1..1000 (section 4.4)."""

    ratio: Parameter

    def __post_init__(self) -> None:
        _check_parameter("ratio", self.ratio, positive=True, low=1, high=1000)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        return _compressed(clean, self.ratio, generator, compression.jpeg2000)


@dataclass(frozen=True, slots=True)
class Bpg:
    """BPG compression of the 8-bit image, or HEVC's intra coding (`compression.bpg`), at a `quantiser` 0..51, rounded (section 4.4)."""

    quantiser: Parameter

    def __post_init__(self) -> None:
        _check_parameter("quantiser", self.quantiser, positive=False, high=51)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        return _compressed(clean, self.quantiser, generator, lambda image, quantiser: compression.bpg(image, round(quantiser)))


@dataclass(frozen=True, slots=True)
class SuperResolution:
    """The blur of an enlarged image: bicubic down by `factor` (antialiased) and up again, drawn values rounded (section 4.4)."""

    factor: Parameter

    def __post_init__(self) -> None:
        _check_parameter("factor", self.factor, positive=True, low=1, high=16)

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1; the standard deviation given is the blur's error over each image."""
        factors = _draw(self.factor, clean, generator).flatten().tolist()
        images = [_enlarged(image[None], round(factor)) for image, factor in zip(clean, factors, strict=True)]
        return _with_error(torch.cat(images), clean)


@dataclass(frozen=True, slots=True)
class Mixture:
    """One of several models for each image, drawn with probabilities proportional to `shares` (equal by default)."""

    models: tuple[Noise, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("Mixture has no models; at least one is expected. Give some.")
        usable = all(math.isfinite(share) and share >= 0 for share in self.shares) and sum(self.shares) > 0
        if self.shares and (len(self.shares) != len(self.models) or not usable):
            raise ValueError(f"Mixture has {len(self.models)} models and shares {self.shares}; give one share, 0 or more, for each.")

    def __call__(self, clean: Tensor, generator: Generator) -> Noisy:
        """Spoil clean images ``(N, 1, H, W)`` in 0..1."""
        shares = torch.tensor(self.shares or (1.0,) * len(self.models), dtype=torch.float32, device=generator.device)
        chosen = torch.multinomial(shares, clean.shape[0], replacement=True, generator=generator)
        counts = torch.bincount(chosen, minlength=len(self.models)).tolist()  # one wait for a GPU, not one for each model
        image, std = torch.empty_like(clean), torch.empty_like(clean)
        for model, mine in zip(self.models, torch.split(chosen.argsort(stable=True).to(clean.device), counts), strict=True):
            if len(mine):
                image[mine], std[mine] = model(clean[mine], generator)
        return Noisy(image, std)


def paper_mixture() -> Mixture:
    """The paper's blind mixture: all its Gaussian, Poisson and Poisson-Gaussian levels, each as likely (section 4.1)."""
    models = (Gaussian(Choice(PAPER_SIGMAS)), Poisson(Choice(PAPER_PEAKS)), PoissonGaussian(Choice(PAPER_MIXED_SIGMAS)))
    return Mixture(models, (len(PAPER_SIGMAS), len(PAPER_PEAKS), len(PAPER_MIXED_SIGMAS)))


def noise_from_dict(values: Sequence[dict[str, Any]]) -> Noise:
    """Noise from a recipe's ``[[noise]]`` tables: a `kind`, its parameters, and a `share` of the mixture.

    >>> noise_from_dict([{"kind": "gaussian", "sigma": {"uniform": [0, 75]}}])
    Gaussian(sigma=Uniform(low=0.0, high=75.0))
    """
    kinds: dict[str, Any] = {
        "gaussian": Gaussian,
        "poisson": Poisson,
        "poisson-gaussian": PoissonGaussian,
        "paper-mixture": paper_mixture,
        "jpeg": Jpeg,
        "jpeg2000": Jpeg2000,
        "bpg": Bpg,
        "super-resolution": SuperResolution,
    }
    models, shares = [], []
    for entry in values:
        table = dict(entry)
        kind, share = table.pop("kind", None), table.pop("share", 1.0)
        if not isinstance(kind, str) or kind not in kinds:
            raise ValueError(f"noise has kind {kind!r}; one of {sorted(kinds)} is expected. Change the recipe.")
        try:
            models.append(kinds[kind](**{name: _parameter_from(value) for name, value in table.items()}))
        except TypeError as error:
            raise ValueError(f"noise {kind!r} has settings {sorted(table)}, which do not fit it ({error}). Change the recipe.") from error
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not (math.isfinite(share) and share >= 0):
            raise ValueError(f"noise {kind!r} has share {share!r}; a finite number of 0 or more is expected. Change the recipe.")
        shares.append(float(share))
    if len(models) == 1:
        return models[0]  # type: ignore[no-any-return]
    return Mixture(tuple(models), tuple(shares))


def _parameter_from(value: Any) -> Parameter:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, dict) and len(value) == 1:
        (name, numbers), *_ = value.items()
        numbers = tuple(float(number) for number in numbers)
        if name == "choice":
            return Choice(numbers)
        if name in ("uniform", "log-uniform") and len(numbers) == 2:
            return Uniform(*numbers) if name == "uniform" else LogUniform(*numbers)
    raise ValueError(
        f"a noise parameter is {value!r}; a number, {{uniform = [a, b]}}, {{log-uniform = [a, b]}} or {{choice = [..]}} is expected."
    )


def _check_parameter(name: str, value: Parameter, *, positive: bool, low: float = 0, high: float = math.inf) -> None:
    numbers = _numbers(value)
    usable = all(isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number) for number in numbers)
    if not usable or min(numbers) < 0 or (positive and min(numbers) == 0):
        raise ValueError(f"{name} is {value}; a finite {'positive' if positive else 'non-negative'} number is expected. Change {name}.")
    if min(numbers) < low or max(numbers) > high:
        raise ValueError(f"{name} is {value}; numbers in {low:g}..{high:g} are expected. Change {name}.")
    if isinstance(value, Uniform | LogUniform) and value.low > value.high:
        raise ValueError(f"{name} is {value}; low <= high is expected. Change {name}.")


def _numbers(value: Parameter) -> tuple[Any, ...]:
    if isinstance(value, Choice):
        return value.values
    return (value.low, value.high) if isinstance(value, Uniform | LogUniform) else (value,)


def _draw(parameter: Parameter, clean: Tensor, generator: Generator) -> Tensor:
    """One value for each image, shaped to broadcast over it."""
    if isinstance(parameter, (int, float)):
        values = torch.full((clean.shape[0],), float(parameter))
    else:
        values = parameter.draw(clean.shape[0], generator)
    return values.to(clean).reshape(-1, *(1,) * (clean.ndim - 1))


def _normal(like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers, drawn where the generator lives, so that one on the CPU serves every device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _compressed(clean: Tensor, parameter: Parameter, generator: Generator, codec: Callable[[Any, float], compression.Compressed]) -> Noisy:
    """Each image through a codec; the standard deviation given is the codec's error over each image."""
    values = _draw(parameter, clean, generator).flatten().tolist()
    levels = (clean.clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
    images = np.stack([codec(image[0], value).image for image, value in zip(levels, values, strict=True)])
    return _with_error(torch.from_numpy(images)[:, None].to(clean) / 255, clean)


def _enlarged(image: Tensor, factor: int) -> Tensor:
    height, width = image.shape[-2:]
    small = functional.interpolate(image, (-(-height // factor), -(-width // factor)), mode="bicubic", antialias=True)
    return functional.interpolate(small, (height, width), mode="bicubic")


def _with_error(image: Tensor, clean: Tensor) -> Noisy:
    return Noisy(image, (image - clean).square().mean(dim=(1, 2, 3), keepdim=True).sqrt().expand_as(clean))


def _poisson(rate: Tensor, generator: Generator) -> Tensor:
    return torch.poisson(rate.clamp(min=0).to(generator.device, torch.float32), generator=generator).to(rate)

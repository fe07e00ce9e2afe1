"""The noise of real detectors: cameras and photomultipliers, and what is done to their readings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional

from dn_core.noise.clipping import Spread, clipping_of
from dn_core.noise.correlation import SHAPES, CorrelationShape, blurred, draw_kernels, reach
from dn_core.noise.models import Noisy
from dn_core.noise.parameters import Parameter, check_parameter, draw, normal, poisson, uniform

__all__ = ["Detector"]

BRIGHT, BRIGHT_STEP = 0.95, 4
DARKEST_BRIGHT = 0.05
"""The bright level of a patch that is all dark, as a share of white."""
MANY_PHOTONS = 25.0
"""From so many photons on, their number is drawn as a Gaussian number with the right skewness."""
HOT = (3.0, 30.0)
"""By how many standard deviations of the noise a hot pixel is too bright."""
SMALLEST_GAIN = 1e-12
WIDEST = 16.0
STRONGEST = 1e9

_LIMITS: dict[str, tuple[float, float]] = {
    "gain": (0, STRONGEST),
    "read_noise": (0, STRONGEST),
    "sigma": (0, STRONGEST),
    "shot": (0, 1),
    "pedestal": (0, STRONGEST),
    "offset": (-STRONGEST, STRONGEST),
    "correlation": (0, WIDEST),
    "row_noise": (0, STRONGEST),
    "column_noise": (0, STRONGEST),
    "hot_pixels": (0, 1),
    "dead_pixels": (0, 1),
    "step": (0, STRONGEST),
    "black": (-STRONGEST, STRONGEST),
}


class _Light(NamedTuple):
    """What was drawn for N images on the 0..1 scale, each ``(N, 1, 1, 1)``.

    `unit` is what `row_noise` and the like are multiplied by.
    """

    gain: Tensor
    read_noise: Tensor
    dark: Tensor
    unit: Tensor
    total: Tensor


@dataclass(frozen=True, slots=True)
class Detector:
    """The noise of a detector, ``y = gain * P((x - d) / gain) + d + N(0, read_noise^2)``, and more.

    P is a number of photons and d, `offset` less `pedestal`, the level without light; so the
    variance at a level x is ``gain * (x - d) + read_noise^2``, which is the photon transfer curve.
    Then come, in this order, correlation, row and column noise, hot and dead pixels, quantisation
    and clipping. Levels and strengths are on the 0..255 scale, and each may be a distribution. How
    strong the noise is say either `gain` and `read_noise`, or `sigma` and `shot`.

    Parameters
    ----------
    gain : float, Uniform, LogUniform, Choice or Sometimes, optional
        Grey levels for each photon (or photoelectron); 0 for no shot noise.
    read_noise : float, Uniform, LogUniform, Choice or Sometimes, optional
        Standard deviation of the noise without light, in grey levels.
    sigma : float, Uniform, LogUniform, Choice or Sometimes, optional
        Standard deviation of shot and read noise together where the image is white.
    shot : float, Uniform, LogUniform, Choice or Sometimes, default 0
        With `sigma`: the share of its square that is shot noise, 0..1.
    relative : bool, default False
        With `sigma`: whether strengths follow the image. Then 255 is the bright level of each
        image (95 % of its pixels are below) for `sigma`, while `row_noise`, `column_noise` and
        `step` are in multiples of sigma, as is `black`, which begins at the darkest pixel.
    pedestal : float, Uniform, LogUniform, Choice or Sometimes, default 0
        Light that has been taken away from the image, as a background is: it has shot noise too.
    offset : float, Uniform, LogUniform, Choice or Sometimes, default 0
        The grey level without light.
    correlation : float, Uniform, LogUniform, Choice or Sometimes, default 0
        How far the noise is correlated, in pixels, 0..16: see `correlation_shape`. The variance
        stays what it was; 0 for white noise.
    correlation_shape : str, default "isotropic"
        ``"isotropic"``, ``"rows"`` (along them) or ``"columns"``: blurred by a Gaussian of that
        width, which gives neighbours the correlation ``exp(-1 / (4 correlation^2))``; ``"box"``:
        the mean over n = `correlation` pixels each way, rounded, which gives (n - 1) / n;
        ``"bilinear"``: interpolated at that distance from the pixels' middles, at most 0.5;
        ``"any"``: one of them for each image, boxes as wide as the Gaussians, any distance.
    row_noise, column_noise : float, Uniform, LogUniform, Choice or Sometimes, default 0
        Standard deviation of what is added to a whole row or column.
    hot_pixels, dead_pixels : float, Uniform, LogUniform, Choice or Sometimes, default 0
        Shares of the pixels, 0..1. Hot ones are too bright by 3 to 30 standard deviations of shot
        and read noise at white; dead ones see no light.
    step : float, Uniform, LogUniform, Choice or Sometimes, default 0
        Distance of the levels to which readings are rounded; 0 for none.
    black : float, Uniform, LogUniform, Choice or Sometimes, optional
        The level at which readings are clipped; by default they are not. The target is then the
        mean of the clipped readings.

    Raises
    ------
    ValueError
        When a setting is out of its range, or settings do not fit together.

    Examples
    --------
    >>> clean = torch.full((1, 1, 64, 64), 0.5)
    >>> noisy = Detector(gain=2, read_noise=3)(clean, torch.Generator().manual_seed(0))
    >>> round(255 * float(noisy.std[0, 0, 0, 0]), 2)  # sqrt(2 * 127.5 + 3^2)
    16.25
    """

    gain: Parameter | None = None
    read_noise: Parameter | None = None
    sigma: Parameter | None = None
    shot: Parameter = 0.0
    relative: bool = False
    pedestal: Parameter = 0.0
    offset: Parameter = 0.0
    correlation: Parameter = 0.0
    correlation_shape: CorrelationShape = "isotropic"
    row_noise: Parameter = 0.0
    column_noise: Parameter = 0.0
    hot_pixels: Parameter = 0.0
    dead_pixels: Parameter = 0.0
    step: Parameter = 0.0
    black: Parameter | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check_parameter(name, value, positive=False, low=low, high=high)
        if self.correlation_shape not in SHAPES:
            raise ValueError(
                f"correlation_shape must be one of {', '.join(SHAPES)}, got "
                f"{self.correlation_shape!r}. Change it."
            )
        if not isinstance(self.relative, bool):
            raise ValueError(f"relative must be true or false, got {self.relative!r}. Change it.")
        self._check_strength()

    def _check_strength(self) -> None:
        """Refuse none or two ways to say how strong the noise is."""
        camera = [name for name in ("gain", "read_noise") if getattr(self, name) is not None]
        if (self.sigma is None) == (not camera):
            got = f"sigma and {' and '.join(camera)}" if camera else "none of them"
            raise ValueError(
                f"a detector must have either gain and read_noise, or sigma, got {got}. "
                f"{'Leave one out' if camera else 'Give one'}."
            )
        if camera and (self.relative or self.shot != 0):
            name = "relative" if self.relative else "shot"
            raise ValueError(
                f"{name} of a detector must come with sigma, got it with {' and '.join(camera)}. "
                f"Leave {name} out."
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
            The readings, the standard deviation of their noise (without hot and dead pixels), and
            with `black` the mean of the clipped readings as target; on the device of `clean`.
        """
        light = self._light(clean, generator)
        noise, shot_variance, cubes = self._shot_and_read_noise(clean, light, generator)
        constant = light.read_noise.square()
        for strength, dim in ((self.row_noise, 3), (self.column_noise, 2)):
            if strength != 0:
                line = draw(strength, clean, generator) * light.unit
                noise = noise + line * normal(noise.narrow(dim, 0, 1), generator)
                constant = constant + line.square()
        reading = self._with_bad_pixels(clean + noise, light, generator)
        black, step = self._black(clean, light, generator), torch.zeros_like(constant)
        if self.step != 0:
            step = draw(self.step, clean, generator) * light.unit
            reading = _quantised(reading, step, black, generator)
        rounding = step.square() / 12
        std = (shot_variance + constant + rounding).sqrt()
        if black is None:
            return Noisy(reading, std.expand_as(clean))
        # What is less than half a step above black is rounded to it. By Euler's formula that lowers
        # the mean as so much less noise would.
        spread = Spread(constant - rounding, light.gain, light.gain * cubes, light.dark)
        rise, ratio = clipping_of(clean, black, spread)
        return Noisy(reading.maximum(black), std * ratio, clean + rise)

    def _light(self, clean: Tensor, generator: Generator) -> _Light:
        """Draw how strong the noise is."""
        dark = (draw(self.offset, clean, generator) - draw(self.pedestal, clean, generator)) / 255
        if self.sigma is None:
            gain, read_noise = (
                draw(0.0 if strength is None else strength, clean, generator) / 255
                for strength in (self.gain, self.read_noise)
            )
            total = (gain * (1 - dark).clamp(min=0) + read_noise.square()).sqrt()
            return _Light(gain, read_noise, dark, torch.full_like(gain, 1 / 255), total)
        bright = _bright(clean) if self.relative else torch.ones_like(dark)
        bright = (bright - dark).clamp(min=DARKEST_BRIGHT)
        sigma = draw(self.sigma, clean, generator) / 255 * (bright if self.relative else 1)
        shot = draw(self.shot, clean, generator)
        unit = sigma if self.relative else torch.full_like(sigma, 1 / 255)
        gain, read_noise = sigma.square() * shot / bright, sigma * (1 - shot).clamp(min=0).sqrt()
        return _Light(gain, read_noise, dark, unit, sigma)

    def _shot_and_read_noise(
        self, clean: Tensor, light: _Light, generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Shot and read noise, perhaps correlated; the shot noise's variance; the kernels' cubes.

        Noise is drawn around the image too, so that blurring it makes no edges.
        """
        margin = reach(self.correlation, self.correlation_shape)
        around = functional.pad(clean, (margin,) * 4, mode="replicate") if margin else clean
        variance = light.gain * (around - light.dark).clamp(min=0)
        noise = light.read_noise * normal(around, generator)
        if (self.gain is not None and self.gain != 0) or self.shot != 0:
            gain = light.gain.clamp(min=SMALLEST_GAIN)
            noise.addcmul_(_excess_photons(variance / gain.square(), generator), gain)
        if not margin:
            return noise, variance, torch.ones_like(light.gain)
        width = draw(self.correlation, clean, generator)
        kernels = draw_kernels(width, self.correlation_shape, margin, generator)
        return blurred(noise, kernels), blurred(variance, kernels, 2), kernels.moment(3)

    def _with_bad_pixels(self, reading: Tensor, light: _Light, generator: Generator) -> Tensor:
        if self.hot_pixels == 0 and self.dead_pixels == 0:
            return reading
        hot = draw(self.hot_pixels, reading, generator)
        dead = draw(self.dead_pixels, reading, generator)
        # One number for each pixel: who is hot, and how hot, and who is dead.
        lot = uniform(reading, generator)
        heat = HOT[0] + (HOT[1] - HOT[0]) * lot / hot.clamp(min=SMALLEST_GAIN)
        reading = (reading + heat * light.total).where(lot < hot, reading)
        return light.dark.expand_as(reading).where(lot > 1 - dead, reading)

    def _black(self, clean: Tensor, light: _Light, generator: Generator) -> Tensor | None:
        """The level at which readings are clipped; minus infinity in images where they are not."""
        if self.black is None:
            return None
        black = draw(self.black, clean, generator, otherwise=-torch.inf)
        darkest = clean.amin(dim=(1, 2, 3), keepdim=True) if self.relative else 0
        return (black * light.unit + darkest).where(black.isfinite(), -torch.inf)


def _excess_photons(rate: Tensor, generator: Generator) -> Tensor:
    """Poisson numbers less their means.

    Drawing them takes longest between 5 and 1000 photons. From `MANY_PHOTONS` on a normal number z
    is changed into one of their distribution by the Cornish-Fisher expansion of third order.
    """
    few = rate < MANY_PHOTONS
    root = rate.clamp(min=MANY_PHOTONS).sqrt()
    z = normal(rate, generator)
    many = z * (root + (1 - z.square()) / (72 * root)) + (z.square() - 1) / 6
    rate = rate.where(few, 0.0)
    return (poisson(rate, generator) - rate).where(few, many)


def _bright(clean: Tensor) -> Tensor:
    """The level below which are 95 % of an image's pixels (of every fourth in both directions)."""
    some = clean[..., ::BRIGHT_STEP, ::BRIGHT_STEP].flatten(1)
    rank = max(1, round(BRIGHT * some.shape[1]))
    return some.kthvalue(rank, dim=1).values[:, None, None, None]


def _quantised(reading: Tensor, step: Tensor, black: Tensor | None, generator: Generator) -> Tensor:
    """Rounded to levels of which one is black; without it they begin anywhere."""
    begin = step * uniform(step, generator)
    if black is not None:
        begin = black.where(black.isfinite(), begin)
    safe = step.clamp(min=SMALLEST_GAIN)
    return (begin + step * ((reading - begin) / safe).round()).where(step > 0, reading)

"""Options of one denoising, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dn_core.inference.axes import ChannelAxis
from dn_core.inference.engines import Precision
from dn_core.inference.hot_pixels import HotPixelAction
from dn_core.inference.planes import NonFinite

__all__ = ["DenoiseOptions"]

MAX_TILE_SIZE = 16384


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseOptions:
    """What a caller asks for; `DenoisePlan` has what was decided.

    Attributes
    ----------
    channel_axis, amount, sigma, device, tile_size, precision, nonfinite, alpha, hot_pixels
        See `dn_core.denoise`.
    """

    channel_axis: ChannelAxis = "auto"
    amount: float = 1.0
    sigma: float | None = None
    device: str | None = None
    tile_size: int | None = None
    precision: Precision | None = None
    nonfinite: NonFinite = "raise"
    alpha: bool | None = None
    hot_pixels: HotPixelAction = "keep"

    def __post_init__(self) -> None:
        self._check_amount()
        self._check_tile_size()
        if self.sigma is not None and not (np.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(
                f"sigma must be a finite standard deviation of 0 or more, got {self.sigma}. "
                "Change sigma."
            )
        for name, value, allowed in (
            ("precision", self.precision, (None, "float32", "bfloat16", "float64")),
            ("nonfinite", self.nonfinite, ("raise", "fill")),
            ("hot_pixels", self.hot_pixels, ("keep", "remove")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}. Change {name}.")

    def _check_amount(self) -> None:
        number = isinstance(self.amount, (int, float, np.number))
        if not number or isinstance(self.amount, bool) or not 0 <= self.amount <= 1:
            raise ValueError(
                f"amount must be a number from 0 to 1, got {self.amount!r}. Change it."
            )

    def _check_tile_size(self) -> None:
        if self.tile_size is None:
            return
        whole = isinstance(self.tile_size, (int, np.integer))
        if (
            not whole
            or isinstance(self.tile_size, bool)
            or not 1 <= self.tile_size <= MAX_TILE_SIZE
        ):
            raise ValueError(
                f"tile_size must be a whole number from 1 to {MAX_TILE_SIZE}, got "
                f"{self.tile_size!r}. Change tile_size, or leave it out."
            )

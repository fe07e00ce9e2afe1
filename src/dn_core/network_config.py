"""The settings of a network: all that is known of it but its weights. No torch here, so that inference can start without it.

The paper's networks (section 3.1) are `paper_config`; `half_resolution_config` gives the faster family beyond the paper,
which works on a space-to-depth image and predicts the noise instead of the image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

__all__ = ["BlockKind", "BlockStart", "NetworkConfig", "half_resolution_config", "paper_config"]

BlockKind = Literal["full", "separable"]
BlockStart = Literal["identity", "paper"]

MAX_CHANNELS = 1024
MAX_BLOCKS = 256
MAX_KERNEL = 15
MAX_PLANES = 63


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Settings that say everything about a network but its weights.

    Parameters
    ----------
    entry
        ``(kernel, channels)`` of each convolution before the blocks; the last one sets the width of the blocks.
    entry_relu
        Whether a ReLU follows each convolution of the entry.
    blocks
        One of ``"full"`` (two 3x3 convolutions) or ``"separable"`` (depthwise 3x3, pointwise 1x1) for each ResBlock.
    last_kernel
        Kernel size of the last convolution.
    shuffle
        Space-to-depth factor of the input; the network then computes at ``1 / shuffle`` of the resolution.
    residual
        Whether the network predicts the noise (output = input - prediction) instead of the image.
    noise_map
        Whether one more input plane holds the standard deviation of the noise at each pixel, in the image's units.
    planes_in
        How many neighbouring planes (odd) come in; the middle one is denoised.
    centred
        Whether the plane's mean is taken away before the network and added after it, ``f(y) = m + net(y - m)``.

    Raises
    ------
    ValueError
        When a setting is out of its range.
    """

    entry: tuple[tuple[int, int], ...] = ((9, 64), (5, 32))
    entry_relu: bool = True
    blocks: tuple[BlockKind, ...] = ()
    last_kernel: int = 5
    shuffle: int = 1
    residual: bool = False
    noise_map: bool = False
    planes_in: int = 1
    centred: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.entry) <= 8:
            raise ValueError(f"entry has {len(self.entry)} convolutions; 1 to 8 are expected. Change entry.")
        for kernel, channels in self.entry:
            _check_odd("a kernel of entry", kernel, MAX_KERNEL)
            _check_range("a channel count of entry", channels, 1, MAX_CHANNELS)
        _check_range("the number of blocks", len(self.blocks), 0, MAX_BLOCKS)
        for kind in self.blocks:
            if kind not in get_args(BlockKind):
                raise ValueError(f"blocks holds {kind!r}; 'full' or 'separable' is expected. Change blocks.")
        _check_odd("last_kernel", self.last_kernel, MAX_KERNEL)
        _check_odd("planes_in", self.planes_in, MAX_PLANES)
        _check_range("shuffle", self.shuffle, 1, 8)
        for name in ("entry_relu", "residual", "noise_map", "centred"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; true or false is expected. Change {name}.")

    @property
    def width(self) -> int:
        """Channels of the ResBlocks."""
        return self.entry[-1][1]

    @property
    def inputs(self) -> int:
        """Planes that come in, the noise map included."""
        return self.planes_in + int(self.noise_map)

    @property
    def depth(self) -> int:
        """Convolutional layers as the paper counts them: two a block."""
        return len(self.entry) + 2 * len(self.blocks) + 1

    @property
    def halo(self) -> int:
        """Pixels around a tile, aligned to `shuffle`, that its result depends on."""
        radius = sum(kernel // 2 for kernel, _ in self.entry) + self.last_kernel // 2
        radius += sum(2 if kind == "full" else 1 for kind in self.blocks)
        return radius * self.shuffle

    @property
    def live_values(self) -> int:
        """How many numbers for each pixel are in memory at once while the network computes, at most."""
        channels = [self.inputs * self.shuffle**2, *(channels for _, channels in self.entry)]
        layers = [before + after for before, after in pairwise(channels)] + [2 * after for after in channels[1:]]
        layers += [3 * self.width] * bool(self.blocks) + [self.width + 2 * self.shuffle**2]
        return -(-max(layers) // self.shuffle**2)

    @property
    def training_values(self) -> int:
        """As `live_values`, while it is trained: what each layer took in is kept for the gradient."""
        kept = self.inputs * self.shuffle**2 + sum(channels for _, channels in self.entry)
        kept += sum(2 if kind == "full" else 3 for kind in self.blocks) * self.width
        return -(-kept // self.shuffle**2) + 3 * self.live_values

    def weight_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """The name and shape (out, in, kernel, kernel) of every weight, in order."""
        shapes = {}
        before = self.inputs * self.shuffle**2
        for index, (kernel, channels) in enumerate(self.entry):
            shapes[f"entry.{index}.weight"] = (channels, before, kernel, kernel)
            before = channels
        for index, kind in enumerate(self.blocks):
            if kind == "full":
                shapes[f"blocks.{index}.first.weight"] = (before, before, 3, 3)
                shapes[f"blocks.{index}.second.weight"] = (before, before, 3, 3)
            else:
                shapes[f"blocks.{index}.depthwise.weight"] = (before, 1, 3, 3)
                shapes[f"blocks.{index}.pointwise.weight"] = (before, before, 1, 1)
        shapes["last.weight"] = (self.shuffle**2, before, self.last_kernel, self.last_kernel)
        return shapes

    @property
    def macs_per_pixel(self) -> float:
        """Multiplications (with accumulation) for a pixel of the image: each weight is used once at each place.

        >>> half_resolution_config().macs_per_pixel
        74880.0
        """
        return sum(math.prod(shape) for shape in self.weight_shapes().values()) / self.shuffle**2

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, for a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Read what `as_dict` wrote; unknown keys are a ValueError, missing ones have their defaults."""
        known = set(cls.__dataclass_fields__)
        if unknown := sorted(set(values) - known):
            raise ValueError(f"the network has unknown settings {unknown}; known are {sorted(known)}. Upgrade, or remove them.")
        try:
            tidy = dict(values)
            if "entry" in tidy:
                tidy["entry"] = tuple((_integer(kernel), _integer(channels)) for kernel, channels in tidy["entry"])
            if "blocks" in tidy:
                tidy["blocks"] = tuple(tidy["blocks"])
            return cls(**tidy)
        except TypeError as error:
            raise ValueError(f"the network's settings cannot be read ({error}); write them as NetworkConfig.as_dict does.") from error


def paper_config(layers: int = 13, *, block: BlockKind = "full", residual: bool = False, centred: bool = False) -> NetworkConfig:
    """The paper's DN-ResNet with 3, 5, .. `layers` layers (section 3.1), or its DS-DN-ResNet (section 3.2).

    With `residual` and `centred` it has the same layers, weights and multiplications, but predicts the noise of an image without its mean.

    >>> paper_config(13).halo
    18
    """
    if layers < 3 or layers % 2 == 0:
        raise ValueError(f"layers is {layers}; 3, 5, 7, .. is expected, as each ResBlock adds two. Change layers.")
    return NetworkConfig(blocks=(block,) * ((layers - 3) // 2), residual=residual, centred=centred)


def half_resolution_config(channels: int = 64, blocks: int = 4, *, noise_map: bool = False) -> NetworkConfig:
    """A fast network beyond the paper: space-to-depth by 2, 3x3 entry, `blocks` ResBlocks, noise out, centred."""
    return NetworkConfig(
        entry=((3, channels),),
        entry_relu=False,
        blocks=_same("full", blocks),
        last_kernel=3,
        shuffle=2,
        residual=True,
        noise_map=noise_map,
        centred=True,
    )


def _same(kind: BlockKind, count: int) -> tuple[BlockKind, ...]:
    return (kind,) * count


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _check_range(what: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} is {value!r}; a whole number in {low}..{high} is expected. Change the network's settings.")


def _check_odd(what: str, value: Any, high: int) -> None:
    _check_range(what, value, 1, high)
    if value % 2 == 0:
        raise ValueError(f"{what} is {value}; an odd number is expected. Change the network's settings.")

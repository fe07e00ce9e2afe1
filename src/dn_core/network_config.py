"""Network settings: everything about a network except its weights, without torch.

The paper's networks (section 3.1) are `paper_config`; `half_resolution_config` gives the faster
family beyond the paper, which works on a space-to-depth image and predicts the noise instead of the
image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta

from dn_core.validation import check_fields, from_table

__all__ = ["BlockKind", "BlockStart", "NetworkConfig", "half_resolution_config", "paper_config"]

BlockKind = Literal["full", "separable"]
BlockStart = Literal["identity", "paper"]

Kernel = Annotated[int, Meta(ge=1, le=15)]
Channels = Annotated[int, Meta(ge=1, le=1024)]

ADVICE = "Change the network's settings."


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Settings that say everything about a network but its weights.

    Parameters
    ----------
    entry : tuple of (int, int)
        ``(kernel, channels)`` of each convolution before the blocks, 1 to 8 of them. Kernels
        are odd, 1 to 15, channels 1 to 1024. The last one sets the width of the blocks.
    entry_relu : bool
        Whether a ReLU follows each convolution of the entry.
    blocks : tuple of str
        For each ResBlock, up to 256, ``"full"`` (two 3x3 convolutions) or ``"separable"``
        (depthwise 3x3, pointwise 1x1).
    last_kernel : int
        Kernel size of the last convolution, odd, 1 to 15.
    shuffle : int
        Space-to-depth factor of the input, 1 to 8; the network then computes at ``1 / shuffle`` of
        the resolution.
    residual : bool
        Whether the network predicts the noise (output = input - prediction) instead of the image.
    noise_map : bool
        Whether one more input plane holds the standard deviation of the noise at each pixel, in the
        image's units.
    planes_in : int
        How many neighbouring planes come in, odd, 1 to 63; the middle one is denoised.
    subtract_mean : bool
        Whether the plane's mean is subtracted before the network and added after it,
        ``f(y) = m + net(y - m)``.

    Raises
    ------
    ValueError
        When a setting is out of its range.
    """

    entry: Annotated[tuple[tuple[Kernel, Channels], ...], Meta(min_length=1, max_length=8)] = (
        (9, 64),
        (5, 32),
    )
    entry_relu: bool = True
    blocks: Annotated[tuple[BlockKind, ...], Meta(max_length=256)] = ()
    last_kernel: Kernel = 5
    shuffle: Annotated[int, Meta(ge=1, le=8)] = 1
    residual: bool = False
    noise_map: bool = False
    planes_in: Annotated[int, Meta(ge=1, le=63)] = 1
    subtract_mean: bool = False

    def __post_init__(self) -> None:
        check_fields(self, ADVICE)
        odd = {"last_kernel": self.last_kernel, "planes_in": self.planes_in}
        odd |= {f"entry[{index}][0]": kernel for index, (kernel, _) in enumerate(self.entry)}
        for name, value in odd.items():
            if value % 2 == 0:
                raise ValueError(f"{name} must be an odd number, got {value}. {ADVICE}")

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
    def activations_per_pixel(self) -> int:
        """How many numbers for each image pixel are in memory at once during inference, at most."""
        channels = [self.inputs * self.shuffle**2, *(channels for _, channels in self.entry)]
        layers = [before + after for before, after in pairwise(channels)] + [
            2 * after for after in channels[1:]
        ]
        layers += [3 * self.width] * bool(self.blocks) + [self.width + 2 * self.shuffle**2]
        return -(-max(layers) // self.shuffle**2)

    @property
    def training_values(self) -> int:
        """As `activations_per_pixel` during training, where gradients need every layer's input."""
        kept = self.inputs * self.shuffle**2 + sum(channels for _, channels in self.entry)
        kept += sum(2 if kind == "full" else 3 for kind in self.blocks) * self.width
        return -(-kept // self.shuffle**2) + 3 * self.activations_per_pixel

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
        """Multiplications (with accumulation) for a pixel of the image.

        Each weight is used once at each place.

        >>> half_resolution_config().macs_per_pixel
        74880.0
        """
        return sum(math.prod(shape) for shape in self.weight_shapes().values()) / self.shuffle**2

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain data, for a card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, whole: bool = False) -> NetworkConfig:
        """Read what `as_dict` wrote.

        Parameters
        ----------
        values : dict
            Settings by name, as plain data.
        whole : bool, default False
            Whether every setting must be there; else missing ones have their defaults.

        Returns
        -------
        NetworkConfig

        Raises
        ------
        ValueError
            When a setting is unknown, missing or out of its range.
        """
        return from_table(cls, values, "the network", ADVICE, whole=whole)


def paper_config(
    layers: int = 13,
    *,
    block: BlockKind = "full",
    residual: bool = False,
    subtract_mean: bool = False,
) -> NetworkConfig:
    """The paper's DN-ResNet (section 3.1), or its DS-DN-ResNet (section 3.2).

    Parameters
    ----------
    layers : int, default 13
        Convolutional layers: 3, 5, 7, ..; each ResBlock has two.
    block : {"full", "separable"}
        What its ResBlocks are.
    residual : bool, default False
        Whether it predicts the noise instead of the image, beyond the paper.
    subtract_mean : bool, default False
        Whether it sees the image without its mean, beyond the paper.

    Returns
    -------
    NetworkConfig

    Raises
    ------
    ValueError
        When `layers` is even or below 3.

    Examples
    --------
    >>> paper_config(13).halo
    18
    """
    if layers < 3 or layers % 2 == 0:
        raise ValueError(
            f"layers must be 3, 5, 7, .., as each ResBlock adds two, got {layers}. Change layers."
        )
    return NetworkConfig(
        blocks=(block,) * ((layers - 3) // 2), residual=residual, subtract_mean=subtract_mean
    )


def half_resolution_config(
    channels: int = 64, blocks: int = 4, *, noise_map: bool = False
) -> NetworkConfig:
    """A fast network beyond the paper: at half the resolution, predicting the noise.

    Space-to-depth by 2, a 3x3 convolution, ResBlocks, and the mean subtracted.

    Parameters
    ----------
    channels : int, default 64
        Width of the ResBlocks.
    blocks : int, default 4
        How many ResBlocks.
    noise_map : bool, default False
        Whether it is given the standard deviation of the noise at each pixel.

    Returns
    -------
    NetworkConfig

    Raises
    ------
    ValueError
        When a setting is out of its range.
    """
    full: BlockKind = "full"
    return NetworkConfig(
        entry=((3, channels),),
        entry_relu=False,
        blocks=(full,) * blocks,
        last_kernel=3,
        shuffle=2,
        residual=True,
        noise_map=noise_map,
        subtract_mean=True,
    )

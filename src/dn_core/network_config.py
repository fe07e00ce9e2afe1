"""Network settings: everything about a network except its weights, without torch.

The paper's networks (section 3.1) are `paper_config`. Beyond the paper, `half_resolution_config`
gives a faster family, which works on a space-to-depth image and predicts the noise instead of the
image, and `levels_config` one that sees further, as it computes at several resolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta

from dn_core.validation import check_fields, from_table, read_value

__all__ = [
    "BlockKind",
    "BlockStart",
    "Level",
    "NetworkConfig",
    "half_resolution_config",
    "level_of",
    "levels_config",
    "paper_config",
]

BlockKind = Literal["full", "separable"]
BlockStart = Literal["identity", "paper"]

Kernel = Annotated[int, Meta(ge=1, le=15)]
Channels = Annotated[int, Meta(ge=1, le=1024)]
Blocks = Annotated[tuple[BlockKind, ...], Meta(max_length=256)]

MOST_LEVELS = 3
LARGEST_STRIDE = 32
"""Pixels: the smallest side of images for finetuning, so that a window fits into each."""

ADVICE = "Change the network's settings."


@dataclass(frozen=True, slots=True)
class Level:
    """ResBlocks at half the resolution of what comes before.

    A 2x2 convolution of stride 2 leads down to it, a 2x2 transposed convolution up again, where
    what came before it is added.

    Parameters
    ----------
    channels : int
        Channels of its ResBlocks, 1 to 1024.
    blocks : tuple of str
        Its ResBlocks before the next level, up to 256, as in `NetworkConfig.blocks`.
    blocks_up : tuple of str
        Its ResBlocks after the next level, up to 256; none in the last level.

    Raises
    ------
    ValueError
        When a setting is out of its range.
    """

    channels: Channels
    blocks: Blocks
    blocks_up: Blocks = ()

    def __post_init__(self) -> None:
        check_fields(self, ADVICE, "a level")


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
    levels : tuple of Level
        Up to 3, each at half the resolution of the one before, the first at half that of `blocks`.
        With levels, ``shuffle * 2**len(levels)`` is at most 32.
    blocks_up : tuple of str
        ResBlocks after the levels, up to 256, at the resolution of `blocks`; only with levels.

    Raises
    ------
    ValueError
        When a setting is out of its range, or settings do not fit together.

    Notes
    -----
    The order of computing is entry, `blocks`, levels, `blocks_up`, last convolution. Within a level
    it is down, its `blocks`, the next level, its `blocks_up`, up, and the addition.
    """

    entry: Annotated[tuple[tuple[Kernel, Channels], ...], Meta(min_length=1, max_length=8)] = (
        (9, 64),
        (5, 32),
    )
    entry_relu: bool = True
    blocks: Blocks = ()
    last_kernel: Kernel = 5
    shuffle: Annotated[int, Meta(ge=1, le=8)] = 1
    residual: bool = False
    noise_map: bool = False
    planes_in: Annotated[int, Meta(ge=1, le=63)] = 1
    subtract_mean: bool = False
    levels: Annotated[tuple[Level, ...], Meta(max_length=MOST_LEVELS)] = ()
    blocks_up: Blocks = ()

    def __post_init__(self) -> None:
        check_fields(self, ADVICE)
        self._check_levels()
        odd = {"last_kernel": self.last_kernel, "planes_in": self.planes_in}
        odd |= {f"entry[{index}][0]": kernel for index, (kernel, _) in enumerate(self.entry)}
        for name, value in odd.items():
            if value % 2 == 0:
                raise ValueError(f"{name} must be an odd number, got {value}. {ADVICE}")

    def _check_levels(self) -> None:
        for level in self.levels:
            if not isinstance(level, Level):
                raise ValueError(f"levels must be of the class Level, got {level!r}. {ADVICE}")
        if not self.levels and self.blocks_up:
            raise ValueError(
                f"blocks_up must be empty without levels, got {self.blocks_up}. Move them to "
                "blocks, or add levels."
            )
        if self.levels and self.levels[-1].blocks_up:
            raise ValueError(
                "blocks_up of the last level must be empty, as no level follows it, got "
                f"{self.levels[-1].blocks_up}. Move them to its blocks."
            )
        if self.levels and self.stride > LARGEST_STRIDE:
            raise ValueError(
                f"shuffle * 2**(number of levels) must be at most {LARGEST_STRIDE}, got "
                f"{self.shuffle} * 2**{len(self.levels)} = {self.stride}. Use a smaller shuffle or "
                "fewer levels."
            )

    @property
    def width(self) -> int:
        """Channels of the ResBlocks at the entry's resolution."""
        return self.entry[-1][1]

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the ResBlocks at the entry's resolution, then of those of each level."""
        return (self.width, *(level.channels for level in self.levels))

    @property
    def inputs(self) -> int:
        """Planes that come in, the noise map included."""
        return self.planes_in + int(self.noise_map)

    @property
    def stride(self) -> int:
        """Pixels: windows that are computed alone must begin and end at its multiples.

        `shuffle`, doubled by each level.
        """
        return int(self.shuffle * 2 ** len(self.levels))

    @property
    def chains(self) -> dict[str, tuple[BlockKind, ...]]:
        """Kinds of the ResBlocks by where they are, in the order of computing.

        >>> list(levels_config().chains)
        ['blocks', 'levels.0.blocks', 'levels.1.blocks', 'levels.0.blocks_up', 'blocks_up']
        """
        down = [
            ("blocks", self.blocks),
            *((f"levels.{index}.blocks", level.blocks) for index, level in enumerate(self.levels)),
        ]
        up = [
            ("blocks_up", self.blocks_up),
            *(
                (f"levels.{index}.blocks_up", level.blocks_up)
                for index, level in enumerate(self.levels[:-1])
            ),
        ]
        return dict(down + up[::-1] if self.levels else down)

    @property
    def all_blocks(self) -> tuple[BlockKind, ...]:
        """Kinds of all ResBlocks, in the order of computing."""
        return tuple(kind for kinds in self.chains.values() for kind in kinds)

    @property
    def block_names(self) -> tuple[str, ...]:
        """Names of all ResBlocks, the beginnings of their weights' names, in the same order.

        >>> levels_config((8, 8), (1, 1), (1,)).block_names
        ('blocks.0', 'levels.0.blocks.0', 'blocks_up.0')
        """
        return tuple(
            f"{chain}.{index}"
            for chain, kinds in self.chains.items()
            for index in range(len(kinds))
        )

    def with_chains(self, chains: Mapping[str, tuple[BlockKind, ...]]) -> NetworkConfig:
        """The settings with other ResBlocks.

        Parameters
        ----------
        chains : mapping of str to tuple of str
            Kinds by some of the names in `chains`.

        Returns
        -------
        NetworkConfig
        """
        every = {**self.chains, **chains}
        levels = tuple(
            replace(
                level,
                blocks=every[f"levels.{index}.blocks"],
                blocks_up=every.get(f"levels.{index}.blocks_up", ()),
            )
            for index, level in enumerate(self.levels)
        )
        return replace(
            self, blocks=every["blocks"], levels=levels, blocks_up=every.get("blocks_up", ())
        )

    def with_blocks(self, kinds: tuple[BlockKind, ...]) -> NetworkConfig:
        """The settings with ResBlocks of other kinds, or with only the first ones.

        Parameters
        ----------
        kinds : tuple of str
            In the order of computing; those that are not named are left out.

        Returns
        -------
        NetworkConfig
        """
        rest, chains = list(kinds), {}
        for chain, before in self.chains.items():
            chains[chain], rest = tuple(rest[: len(before)]), rest[len(before) :]
        return self.with_chains(chains)

    @property
    def depth(self) -> int:
        """Convolutional layers as the paper counts them: two a block; down and up are one each."""
        return len(self.entry) + 2 * len(self.all_blocks) + 2 * len(self.levels) + 1

    @property
    def halo(self) -> int:
        """Pixels around a tile, aligned to `stride`, that its result depends on.

        From the result back: each convolution reaches further, and each step up to a finer
        resolution needs whole cells of the coarser one.
        """
        reach = self.last_kernel // 2 * self.shuffle
        for chain, kinds in reversed(self.chains.items()):
            cell = self.shuffle * 2 ** level_of(chain)
            reach = -(-reach // cell) * cell
            reach += cell * sum(2 if kind == "full" else 1 for kind in kinds)
        reach += sum(kernel // 2 for kernel, _ in self.entry) * self.shuffle
        return -(-reach // self.stride) * self.stride

    @property
    def activations_per_pixel(self) -> int:
        """How many numbers for each image pixel are in memory at once during inference, at most."""
        cells, widths = self._cells, self.widths
        channels = [self.inputs * self.shuffle**2, *(channels for _, channels in self.entry)]
        ends = [before + after for before, after in pairwise(channels)] + [
            2 * after for after in channels[1:]
        ]
        most = [cells[0] * max(*ends, self.width + 2 * self.shuffle**2)]
        # what is to be added on the way up stays in memory
        held = [
            sum(width * cell for width, cell in zip(widths[:level], cells, strict=False))
            for level in range(len(widths))
        ]
        for chain, kinds in self.chains.items():
            level = level_of(chain)
            most += [held[level] + 3 * widths[level] * cells[level]] * bool(kinds)
        for level in range(1, len(widths)):
            finer, coarser = (widths[at] * cells[at] for at in (level - 1, level))
            most += [held[level] + coarser + finer, held[level - 1] + 3 * finer]
        return -(-max(most) // self.stride**2)

    @property
    def training_values(self) -> int:
        """As `activations_per_pixel` during training, where gradients need every layer's input."""
        cells, widths = self._cells, self.widths
        kept = self.inputs * self.shuffle**2 + sum(channels for _, channels in self.entry)
        kept *= cells[0]
        for chain, kinds in self.chains.items():
            level = level_of(chain)
            values = sum(2 if kind == "full" else 3 for kind in kinds)
            kept += values * widths[level] * cells[level]
        for level in range(1, len(widths)):
            kept += widths[level - 1] * cells[level - 1] + widths[level] * cells[level]
        return -(-kept // self.stride**2) + 3 * self.activations_per_pixel

    @property
    def _cells(self) -> tuple[int, ...]:
        """Cells of the entry's resolution, and of each level, in one cell of `stride` pixels."""
        count = len(self.levels)
        return tuple(4 ** (count - level) for level in range(count + 1))

    def weight_shapes(self) -> dict[str, tuple[int, int, int, int]]:
        """The name and shape of every weight, as torch has them.

        They are (out, in, kernel, kernel), and (in, out, 2, 2) for a transposed convolution.
        """
        shapes, widths = {}, self.widths
        before = self.inputs * self.shuffle**2
        for index, (kernel, channels) in enumerate(self.entry):
            shapes[f"entry.{index}.weight"] = (channels, before, kernel, kernel)
            before = channels
        for name, kind in zip(self.block_names, self.all_blocks, strict=True):
            width = widths[level_of(name)]
            if kind == "full":
                shapes[f"{name}.first.weight"] = (width, width, 3, 3)
                shapes[f"{name}.second.weight"] = (width, width, 3, 3)
            else:
                shapes[f"{name}.depthwise.weight"] = (width, 1, 3, 3)
                shapes[f"{name}.pointwise.weight"] = (width, width, 1, 1)
        for index, (finer, coarser) in enumerate(pairwise(widths)):
            shapes[f"levels.{index}.down.weight"] = (coarser, finer, 2, 2)
            shapes[f"levels.{index}.up.weight"] = (coarser, finer, 2, 2)
        shapes["last.weight"] = (self.shuffle**2, before, self.last_kernel, self.last_kernel)
        return shapes

    @property
    def macs_per_pixel(self) -> float:
        """Multiplications (with accumulation) for a pixel of the image.

        Each weight is used once at each place of its resolution.

        >>> half_resolution_config().macs_per_pixel
        74880.0
        >>> levels_config().macs_per_pixel
        55392.0
        """
        return self.macs((self.stride, self.stride)) / self.stride**2

    def macs(self, size: tuple[int, int]) -> int:
        """Multiplications (with accumulation) for an image.

        Parameters
        ----------
        size : tuple of int
            The image's height and width in pixels; it is padded to multiples of `stride`.

        Returns
        -------
        int
            Over all pixels.
        """
        height, width = (-(-extent // self.stride) * self.stride for extent in size)
        total = 0
        for name, shape in self.weight_shapes().items():
            cell = self.shuffle * 2 ** level_of(name)
            total += math.prod(shape) * (height // cell) * (width // cell)
        return total

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
        table = values
        if isinstance(values, dict) and isinstance(values.get("levels"), (list, tuple)):
            levels = tuple(
                level
                if isinstance(level, Level)
                else from_table(Level, level, f"level {index} of the network", ADVICE, whole=whole)
                for index, level in enumerate(values["levels"])
            )
            table = {**values, "levels": levels}
        return from_table(cls, table, "the network", ADVICE, whole=whole)


def level_of(name: str) -> int:
    """Where a chain of ResBlocks, a block or a weight is, by its name.

    Parameters
    ----------
    name : str
        A key of `NetworkConfig.chains` or `NetworkConfig.weight_shapes`, or a block's name.

    Returns
    -------
    int
        0 for the entry's resolution, 1 for the first level.
    """
    return int(name.split(".")[1]) + 1 if name.startswith("levels.") else 0


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


def levels_config(
    channels: tuple[int, ...] = (48, 96, 128),
    blocks: tuple[int, ...] = (1, 1, 2),
    blocks_up: tuple[int, ...] = (1, 1),
    *,
    shuffle: int = 2,
    noise_map: bool = False,
) -> NetworkConfig:
    """A network with levels, beyond the paper: it sees far, and works where it costs least.

    Space-to-depth, a 3x3 convolution, ResBlocks, levels of ResBlocks at half, a quarter and an
    eighth of that resolution, and the way up again. It predicts the noise, and the mean is
    subtracted.

    Parameters
    ----------
    channels : tuple of int, default (48, 96, 128)
        Width of the ResBlocks at the entry's resolution, then at each level: 2 to 4 numbers.
    blocks : tuple of int, default (1, 1, 2)
        How many ResBlocks there are on the way down, 0 to 256; as many numbers as in `channels`.
    blocks_up : tuple of int, default (1, 1)
        How many there are on the way up, at the same resolutions; one number less, as the last
        level has no way up.
    shuffle : int, default 2
        Space-to-depth factor of the entry.
    noise_map : bool, default False
        Whether it is given the standard deviation of the noise at each pixel.

    Returns
    -------
    NetworkConfig

    Raises
    ------
    ValueError
        When a setting is out of its range, or settings do not fit together.

    Examples
    --------
    >>> levels_config().stride, levels_config().halo
    (8, 64)
    """
    counts = Annotated[tuple[Annotated[int, Meta(ge=0, le=256)], ...], Meta(max_length=4)]
    widths = Annotated[tuple[Channels, ...], Meta(min_length=2, max_length=MOST_LEVELS + 1)]
    channels = read_value(channels, widths, "channels", ADVICE)
    blocks = read_value(blocks, counts, "blocks", ADVICE)
    blocks_up = read_value(blocks_up, counts, "blocks_up", ADVICE)
    if len(blocks) != len(channels) or len(blocks_up) != len(channels) - 1:
        raise ValueError(
            "channels, blocks and blocks_up must have n, n and n - 1 numbers, got "
            f"{len(channels)}, {len(blocks)} and {len(blocks_up)}. {ADVICE}"
        )
    full: BlockKind = "full"
    down, up = ([(full,) * count for count in part] for part in (blocks, (*blocks_up, 0)))
    return NetworkConfig(
        entry=((3, channels[0]),),
        entry_relu=False,
        blocks=down[0],
        last_kernel=3,
        shuffle=shuffle,
        residual=True,
        noise_map=noise_map,
        subtract_mean=True,
        levels=tuple(map(Level, channels[1:], down[1:], up[1:])),
        blocks_up=up[0],
    )

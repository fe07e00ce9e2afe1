"""DN-ResNet networks: layers, counts, and how they grow; their settings are in `network_config`.

Every network here is bias-free, so ``f(a * x) == a * f(x)`` for ``a > 0``: results do not depend on
the units of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dn_core import processes
from dn_core.network_config import BlockKind, BlockStart, NetworkConfig
from dn_core.network_config import Level as LevelConfig

__all__ = [
    "DnResNet",
    "Level",
    "ResBlock",
    "SeparableBlock",
    "count_macs",
    "count_parameters",
    "grow",
    "insert_block",
    "replace_block",
]

PAPER_STD = 0.001
SMALL = 0.1
"""Scale of a new separable block's pointwise weights: at zero its last ReLU would never learn."""


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, and a skip; nothing after the addition (Fig. 1b).

    Parameters
    ----------
    width : int
        Channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, 3)
        self.second = _conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Parameters
        ----------
        x : Tensor
            ``(N, width, H, W)``.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        change: Tensor = self.second(functional.relu(self.first(x)))
        return x + change


class SeparableBlock(nn.Module):
    """Depthwise 3x3, ReLU, pointwise 1x1, ReLU, and a skip.

    Fig. 4b of the paper; one of each, as the paper's counts say.

    Parameters
    ----------
    width : int
        Channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = _conv(width, width, 3, groups=width)
        self.pointwise = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Parameters
        ----------
        x : Tensor
            ``(N, width, H, W)``.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        return x + functional.relu(self.pointwise(functional.relu(self.depthwise(x))))


class Level(nn.Module):
    """ResBlocks at half the resolution of what comes in, added to what comes in.

    Parameters
    ----------
    before : int
        Channels in and out.
    config : dn_core.network_config.Level
        Its settings.
    """

    def __init__(self, before: int, config: LevelConfig) -> None:
        super().__init__()
        width = config.channels
        self.down = nn.Conv2d(before, width, 2, stride=2, bias=False)
        self.blocks = _blocks(config.blocks, width)
        self.blocks_up = _blocks(config.blocks_up, width)
        self.up = nn.ConvTranspose2d(width, before, 2, stride=2, bias=False)

    def forward(self, x: Tensor, deeper: Sequence[nn.Module] = ()) -> Tensor:
        """Compute the level and those below it.

        Parameters
        ----------
        x : Tensor
            ``(N, before, H, W)``; H and W are even.
        deeper : sequence of Module, optional
            The levels below, from fine to coarse. By default none.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        y = self.down(x)
        for block in self.blocks:
            y = block(y)
        if deeper:
            y = deeper[0](y, deeper[1:])
        for block in self.blocks_up:
            y = block(y)
        change: Tensor = self.up(y)
        return x + change


class DnResNet(nn.Module):
    """A denoising network.

    Parameters
    ----------
    config : NetworkConfig
        Its settings.

    Notes
    -----
    `forward` is the whole network; `body` is the part that an inference backend computes.
    """

    def __init__(self, config: NetworkConfig) -> None:
        # here, as it comes before all that a process computes with torch
        processes.limit_torch_after_fork()
        super().__init__()
        self.config = config
        channels = [config.inputs * config.shuffle**2, *(channels for _, channels in config.entry)]
        self.entry = nn.ModuleList(
            _conv(before, after, kernel)
            for before, after, (kernel, _) in zip(
                channels, channels[1:], config.entry, strict=False
            )
        )
        self.blocks = _blocks(config.blocks, config.width)
        self.levels = nn.ModuleList(
            Level(before, level)
            for before, level in zip(config.widths, config.levels, strict=False)
        )
        self.blocks_up = _blocks(config.blocks_up, config.width)
        self.last = _conv(config.width, config.shuffle**2, config.last_kernel)
        _start_weights(self)

    def body(self, x: Tensor) -> Tensor:
        """Compute the convolutions alone.

        Parameters
        ----------
        x : Tensor
            ``(N, config.inputs, H, W)``; H and W are multiples of `config.stride`.

        Returns
        -------
        Tensor
            ``(N, 1, H, W)``: the noise where `config.residual`, else the clean image.
        """
        if self.config.shuffle > 1:
            x = functional.pixel_unshuffle(x, self.config.shuffle)
        for convolution in self.entry:
            x = convolution(x)
            if self.config.entry_relu:
                x = functional.relu(x)
        for block in self.blocks:
            x = block(x)
        if self.levels:
            x = self.levels[0](x, self.levels[1:])
        for block in self.blocks_up:
            x = block(x)
        x = self.last(x)
        return functional.pixel_shuffle(x, self.config.shuffle) if self.config.shuffle > 1 else x

    def forward(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """Denoise.

        Parameters
        ----------
        x : Tensor
            ``(N, config.inputs, H, W)``, float32 or float64, of any height and width: the planes,
            then the noise map where the network has one.
        mean : Tensor, optional
            ``(N, 1, 1, 1)``: what a network that subtracts the mean subtracts. By default the mean
            of the middle plane.

        Returns
        -------
        Tensor
            The clean middle plane, ``(N, 1, H, W)``.
        """
        middle = self.config.planes_in // 2
        noisy = x[:, middle : middle + 1]
        if self.config.subtract_mean:
            mean = noisy.mean(dim=(-2, -1), keepdim=True) if mean is None else mean
            planes = x[:, : self.config.planes_in] - mean
            x = (
                torch.cat([planes, x[:, self.config.planes_in :]], dim=1)
                if self.config.noise_map
                else planes
            )
        height, width = x.shape[-2:]
        bottom, right = -height % self.config.stride, -width % self.config.stride
        padded = (
            functional.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
        )
        result = self.body(padded)[..., :height, :width].to(noisy.dtype)
        if self.config.residual:
            return noisy - result
        return result + mean if mean is not None and self.config.subtract_mean else result


def insert_block(
    network: DnResNet,
    *,
    level: int = 0,
    start: BlockStart = "paper",
    generator: torch.Generator | None = None,
) -> DnResNet:
    """A network with one more ResBlock before the last layer (cascade training, section 3.1).

    Parameters
    ----------
    network : DnResNet
        Where the other weights come from; it is not changed.
    level : int, default 0
        At which resolution: 0 is that of the entry, where the block comes before the last layer; 1
        is the first level, and so on, where it becomes the last one on the way up.
    start : {"paper", "identity"}
        First weights of the block: drawn from N(0, 0.001^2) as in the paper, or such that the
        network computes what it did without the block (He's weights, then zeros).
    generator : torch.Generator, optional
        Where random weights come from; by default torch's own.

    Returns
    -------
    DnResNet
        On the device of `network`.

    Raises
    ------
    ValueError
        When there is no such level, or `start` is unknown.
    """
    count = len(network.config.levels)
    if type(level) is not int or level not in range(count + 1):
        raise ValueError(
            f"level must be in 0..{count}, as the network has {count} levels, got {level!r}. "
            "Change level."
        )
    prefix = f"levels.{level - 1}." if level else ""
    name = f"{prefix}blocks_up" if level < count else f"{prefix}blocks"
    return _with_block(network, name, start, generator)


def grow(
    network: DnResNet,
    config: NetworkConfig,
    *,
    start: BlockStart,
    generator: torch.Generator | None = None,
) -> DnResNet:
    """Insert as many full blocks as other settings have more, in the order of computing.

    Parameters
    ----------
    network : DnResNet
        Where weights come from; it is not changed.
    config : NetworkConfig
        Settings of `network`, with none or more full blocks behind those that it has: of `blocks`
        and, where there are levels, on each level's way down and up.
    start : {"paper", "identity"}
        First weights of the blocks; see `insert_block`.
    generator : torch.Generator, optional
        Where random weights come from; by default torch's own.

    Returns
    -------
    DnResNet
        A network of these settings; `network` itself where there is nothing to insert.

    Raises
    ------
    ValueError
        When the two differ in more than full blocks at the end.
    """
    have, wanted = network.config.chains, config.chains
    if config.with_blocks(()) != network.config.with_blocks(()) or any(
        wanted[name][: len(kinds)] != kinds or "separable" in wanted[name][len(kinds) :]
        for name, kinds in have.items()
    ):
        where = "at the ends of its levels" if config.levels else "before its last layer"
        raise ValueError(
            f"a network of {network.config.depth} layers cannot become the one asked for "
            f"({config.depth} layers) by inserting full blocks {where}: the settings must be the "
            "same, with as many or more blocks. Change the network."
        )
    for name, kinds in wanted.items():
        for _ in kinds[len(have[name]) :]:
            network = _with_block(network, name, start, generator)
    return network


def replace_block(
    network: DnResNet,
    index: int,
    *,
    start: BlockStart = "paper",
    generator: torch.Generator | None = None,
) -> DnResNet:
    """A network with a new depthwise-separable block in place of one (evolution, section 3.2).

    Parameters
    ----------
    network : DnResNet
        Where the other weights come from; it is not changed.
    index : int
        Which ResBlock, from 0 in the order of computing (`NetworkConfig.block_names`): through
        the levels down, and up again. Negative ones count from the end.
    start : {"paper", "identity"}
        First weights of the block: drawn from N(0, 0.001^2) as in the paper, or such that it
        hardly changes what goes through it.
    generator : torch.Generator, optional
        Where random weights come from; by default torch's own.

    Returns
    -------
    DnResNet
        On the device of `network`.

    Raises
    ------
    ValueError
        When there is no such block, or `start` is unknown.
    """
    config = network.config
    count = len(config.all_blocks)
    if not -count <= index < count:
        raise ValueError(
            f"index must be in {-count}..{count - 1}, as the network has {count} blocks, got "
            f"{index}. Change index."
        )
    index %= count
    kinds, replaced = list(config.all_blocks), config.block_names[index]
    kinds[index] = "separable"
    evolved = _new_network(config.with_blocks(tuple(kinds))).to(network.last.weight)
    kept = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith(f"{replaced}.")
    }
    evolved.load_state_dict(kept, strict=False)
    _start_block(evolved.get_submodule(replaced), start, generator)
    return evolved


def count_parameters(network: nn.Module) -> int:
    """Count the weights of a network; there are no biases.

    Parameters
    ----------
    network : torch.nn.Module
        The network.

    Returns
    -------
    int
        How many numbers it learns.
    """
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: DnResNet, size: tuple[int, int]) -> int:
    """Count the multiplications (with accumulation) for an image.

    Parameters
    ----------
    network : DnResNet
        The network.
    size : tuple of int
        The image's height and width in pixels.

    Returns
    -------
    int
        Over all pixels.

    Examples
    --------
    >>> from dn_core.network_config import paper_config
    >>> round(count_macs(DnResNet(paper_config(13)), (480, 640)) / 1e9, 1)
    45.9
    """
    return network.config.macs(size)


def _new_network(config: NetworkConfig) -> DnResNet:
    """A network whose weights are replaced at once; torch's own generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        return DnResNet(config)


def _with_block(
    network: DnResNet, chain: str, start: BlockStart, generator: torch.Generator | None
) -> DnResNet:
    """The network with one more full block at the end of one of its chains."""
    config = network.config
    kinds = config.chains[chain]
    grown = _new_network(config.with_chains({chain: (*kinds, "full")})).to(network.last.weight)
    grown.load_state_dict(network.state_dict(), strict=False)
    _start_block(grown.get_submodule(f"{chain}.{len(kinds)}"), start, generator)
    return grown


def _conv(before: int, after: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)


def _blocks(kinds: Sequence[BlockKind], width: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResBlock(width) if kind == "full" else SeparableBlock(width) for kind in kinds
    )


def _start_weights(network: DnResNet) -> None:
    """He initialisation, scaled in blocks by 0.3 and last by 0.1: near the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResBlock):
                module.second.weight.mul_(0.3)
            elif isinstance(module, SeparableBlock):
                module.pointwise.weight.mul_(0.3)
            elif isinstance(module, Level):
                # No ReLU halves what they take in. What comes up is a sum over one place, not four.
                module.down.weight.mul_(0.5**0.5)
                nn.init.normal_(module.up.weight, std=module.up.in_channels**-0.5)
        network.last.weight.mul_(0.1 if network.config.residual else 1.0)


def _start_block(block: nn.Module, start: BlockStart, generator: torch.Generator | None) -> None:
    if start not in get_args(BlockStart):
        raise ValueError(
            f"start must be one of {get_args(BlockStart)}, got {start!r}. Change start."
        )
    first, last = block.parameters()
    if start == "paper":
        deviations = (PAPER_STD, PAPER_STD)
    else:
        scale = SMALL if isinstance(block, SeparableBlock) else 0.0
        deviations = (_he(first), scale * _he(last))
    with torch.no_grad():
        for weight, deviation in zip((first, last), deviations, strict=True):
            weight.copy_(
                torch.empty(weight.shape).normal_(0.0, 1.0, generator=generator) * deviation
            )


def _he(weight: Tensor) -> float:
    """He's standard deviation: 2 / inputs, rooted."""
    return float((2 / weight[0].numel()) ** 0.5)

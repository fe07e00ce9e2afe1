"""What a DN-ResNet is: its layers, its counts, and how it grows. Its settings are in `network_config`.

Every network here is bias-free, so ``f(a * x) == a * f(x)`` for ``a > 0``: results do not depend on the units of an image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dn_core import processes
from dn_core.network_config import BlockKind, BlockStart, NetworkConfig

__all__ = [
    "DnResNet",
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
"""How far a new separable block's pointwise weights are scaled down: at zero its last ReLU would never learn."""


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a ReLU between, and a skip; nothing after the addition (Fig. 1b)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width, 3)
        self.second = _conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        change: Tensor = self.second(functional.relu(self.first(x)))
        return x + change


class SeparableBlock(nn.Module):
    """Depthwise 3x3, ReLU, pointwise 1x1, ReLU, and a skip (Fig. 4b: one of each, as the paper's counts say)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = _conv(width, width, 3, groups=width)
        self.pointwise = _conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, width, H, W)`` to the same."""
        return x + functional.relu(self.pointwise(functional.relu(self.depthwise(x))))


class DnResNet(nn.Module):
    """A denoising network; `config` says which.

    `forward` takes ``(N, config.inputs, H, W)`` and gives the clean middle plane ``(N, 1, H, W)`` in float32 (or float64),
    at any height and width. `body` is the part that an engine computes.
    """

    def __init__(self, config: NetworkConfig) -> None:
        processes.limit_torch_after_fork()  # here, as it comes before all that a process computes with torch
        super().__init__()
        self.config = config
        channels = [config.inputs * config.shuffle**2, *(channels for _, channels in config.entry)]
        self.entry = nn.ModuleList(
            _conv(before, after, kernel) for before, after, (kernel, _) in zip(channels, channels[1:], config.entry, strict=False)
        )
        self.blocks = nn.ModuleList(_block(kind, config.width) for kind in config.blocks)
        self.last = _conv(config.width, config.shuffle**2, config.last_kernel)
        _start_weights(self)

    def body(self, x: Tensor) -> Tensor:
        """The convolutions alone: ``(N, inputs, H, W)`` to ``(N, 1, H, W)``; H and W are multiples of `config.shuffle`."""
        if self.config.shuffle > 1:
            x = functional.pixel_unshuffle(x, self.config.shuffle)
        for convolution in self.entry:
            x = convolution(x)
            if self.config.entry_relu:
                x = functional.relu(x)
        for block in self.blocks:
            x = block(x)
        x = self.last(x)
        return functional.pixel_shuffle(x, self.config.shuffle) if self.config.shuffle > 1 else x

    def forward(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """Denoise; a centred network takes each plane's `mean` ``(N, 1, 1, 1)``, by default that of the middle plane given."""
        middle = self.config.planes_in // 2
        noisy = x[:, middle : middle + 1]
        if self.config.centred:
            mean = noisy.mean(dim=(-2, -1), keepdim=True) if mean is None else mean
            planes = x[:, : self.config.planes_in] - mean
            x = torch.cat([planes, x[:, self.config.planes_in :]], dim=1) if self.config.noise_map else planes
        height, width = x.shape[-2:]
        bottom, right = -height % self.config.shuffle, -width % self.config.shuffle
        padded = functional.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x
        result = self.body(padded)[..., :height, :width].to(noisy.dtype)
        if self.config.residual:
            return noisy - result
        return result + mean if mean is not None and self.config.centred else result


def insert_block(network: DnResNet, *, start: BlockStart = "paper", generator: torch.Generator | None = None) -> DnResNet:
    """A network with one more ResBlock before the last layer, the rest inherited (cascade training, section 3.1).

    The new block's weights are drawn from N(0, 0.001^2), as the paper does, or with ``start="identity"`` so that the network computes what
    it did without the block: He's weights first, zeros last.
    """
    grown = _new_network(replace(network.config, blocks=(*network.config.blocks, "full"))).to(network.last.weight)
    grown.load_state_dict(network.state_dict(), strict=False)
    _start_block(grown.blocks[-1], start, generator)
    return grown


def grow(network: DnResNet, config: NetworkConfig, *, start: BlockStart, generator: torch.Generator | None = None) -> DnResNet:
    """`network` with as many full blocks inserted as `config` has more, or the same network where that has none.

    Raises
    ------
    ValueError
        When the two differ in more than full blocks at the end.
    """
    have, wanted = network.config.blocks, config.blocks
    if replace(config, blocks=have) != network.config or wanted[: len(have)] != have or "separable" in wanted[len(have) :]:
        raise ValueError(
            f"a network of {network.config.depth} layers cannot become the one asked for ({config.depth} layers) by inserting full blocks "
            "before its last layer; the same settings with as many or more blocks are expected. Change the network."
        )
    for _ in wanted[len(have) :]:
        network = insert_block(network, start=start, generator=generator)
    return network


def replace_block(network: DnResNet, index: int, *, start: BlockStart = "paper", generator: torch.Generator | None = None) -> DnResNet:
    """A network whose ResBlock `index` is a new depthwise-separable one, the rest inherited (evolution, section 3.2).

    The new block's weights are drawn from N(0, 0.001^2), or with ``start="identity"`` so that it hardly changes what goes through it.
    """
    count = len(network.config.blocks)
    if not -count <= index < count:
        raise ValueError(f"index is {index}; the network has {count} blocks. Give one of {-count}..{count - 1}.")
    index %= count
    kinds = list(network.config.blocks)
    kinds[index] = "separable"
    evolved = _new_network(replace(network.config, blocks=tuple(kinds))).to(network.last.weight)
    kept = {name: value for name, value in network.state_dict().items() if not name.startswith(f"blocks.{index}.")}
    evolved.load_state_dict(kept, strict=False)
    _start_block(evolved.blocks[index], start, generator)
    return evolved


def count_parameters(network: nn.Module) -> int:
    """Weights of a network; there are no biases."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: DnResNet, size: tuple[int, int]) -> int:
    """Multiplications (with accumulation) for an image of `size` (height, width).

    >>> from dn_core.network_config import paper_config
    >>> round(count_macs(DnResNet(paper_config(13)), (480, 640)) / 1e9, 1)
    45.9
    """
    height, width = size
    factor = network.config.shuffle
    return count_parameters(network) * (-(-height // factor)) * (-(-width // factor))


def _new_network(config: NetworkConfig) -> DnResNet:
    """A network whose weights are replaced at once: the numbers drawn for them are not missed by other users of torch's generator."""
    with torch.random.fork_rng(devices=[]):
        return DnResNet(config)


def _conv(before: int, after: int, kernel: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, groups=groups, bias=False)


def _block(kind: BlockKind, width: int) -> nn.Module:
    return ResBlock(width) if kind == "full" else SeparableBlock(width)


def _start_weights(network: DnResNet) -> None:
    """He initialisation, with the second half of a block scaled by 0.3 and the last layer by 0.1: near the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, ResBlock):
                module.second.weight.mul_(0.3)
            elif isinstance(module, SeparableBlock):
                module.pointwise.weight.mul_(0.3)
        network.last.weight.mul_(0.1 if network.config.residual else 1.0)


def _start_block(block: nn.Module, start: BlockStart, generator: torch.Generator | None) -> None:
    if start not in get_args(BlockStart):
        raise ValueError(f"start is {start!r}; one of {get_args(BlockStart)} is expected. Change start.")
    first, last = block.parameters()
    if start == "paper":
        deviations = (PAPER_STD, PAPER_STD)
    else:
        scale = SMALL if isinstance(block, SeparableBlock) else 0.0
        deviations = (_he(first), scale * _he(last))
    with torch.no_grad():
        for weight, deviation in zip((first, last), deviations, strict=True):
            weight.copy_(torch.empty(weight.shape).normal_(0.0, 1.0, generator=generator) * deviation)


def _he(weight: Tensor) -> float:
    """He's standard deviation: 2 / inputs, rooted."""
    return float((2 / weight[0].numel()) ** 0.5)

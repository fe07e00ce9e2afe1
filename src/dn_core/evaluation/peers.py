"""Published networks beside which ours are measured: DnCNN and FFDNet, from a ``.safetensors`` file of their weights.

Both are plain 3x3 convolutions with biases and a ReLU after each but the last, named ``conv0.weight``, ``conv0.bias`` and on. DnCNN
predicts the noise; FFDNet works at half resolution, takes the noise's standard deviation as a fifth plane and predicts the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.checkpoints import read_tensors
from dn_core.errors import CheckpointError
from dn_core.evaluation.measure import Image

__all__ = ["Peer", "PeerMethod", "load_peer"]

Convolution = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Peer:
    """A published network: the weight and bias of each convolution, in order."""

    name: str
    convolutions: tuple[Convolution, ...]

    @property
    def takes_sigma(self) -> bool:
        """Whether it is FFDNet: half resolution, a noise map as fifth plane, the clean image as output."""
        return bool(self.convolutions[0][0].shape[1] == 5)

    @property
    def parameters(self) -> int:
        """Trained numbers, biases included."""
        return sum(weight.size + bias.size for weight, bias in self.convolutions)

    @property
    def macs_per_pixel(self) -> float:
        """Multiplications per pixel of the image."""
        return sum(weight.size for weight, _ in self.convolutions) / (4 if self.takes_sigma else 1)


def load_peer(path: str | Path) -> Peer:
    """Read a peer's weights.

    Raises
    ------
    CheckpointError
        When the file does not hold such a network.
    """
    tensors, _ = read_tensors(path)
    count = len(tensors) // 2
    names = {f"conv{index}.{kind}" for index in range(count) for kind in ("weight", "bias")}
    if not count or set(tensors) != names:
        raise CheckpointError(f"{path} holds {sorted(tensors)[:3]}; the weights and biases of conv0, conv1 and on are expected.")
    convolutions = tuple((tensors[f"conv{index}.weight"], tensors[f"conv{index}.bias"]) for index in range(count))
    before = convolutions[0][0].shape[1] if convolutions[0][0].ndim == 4 else 0
    for weight, bias in convolutions:
        if weight.shape[1:] != (before, 3, 3) or bias.shape != weight.shape[:1]:
            raise CheckpointError(
                f"{path} has a convolution of {weight.shape} and {bias.shape}; 3x3 ones that follow each other are expected."
            )
        before = weight.shape[0]
    if (convolutions[0][0].shape[1], before) not in ((1, 1), (5, 4)):
        raise CheckpointError(f"{path} takes {convolutions[0][0].shape[1]} planes and gives {before}; 1 and 1, or 5 and 4 are expected.")
    return Peer(Path(path).stem, convolutions)


class PeerMethod:
    """A peer in torch, float32; channels first is plain torch, channels last the same numbers (but for rounding) in less time."""

    def __init__(self, peer: Peer, *, channels_last: bool = True) -> None:
        import torch
        from torch import nn

        self.name, self.parameters, self.macs_per_pixel = peer.name, peer.parameters, peer.macs_per_pixel
        self._takes_sigma = peer.takes_sigma
        layers: list[nn.Module] = []
        for weight, bias in peer.convolutions:
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            convolution.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
            layers += [convolution, nn.ReLU(inplace=True)]
        self._layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self._network = nn.Sequential(*layers[:-1]).eval().to(memory_format=self._layout)  # type: ignore[call-overload]

    def __call__(self, image: Image, std: float) -> Image:
        """See `Method`; FFDNet's images get even sides by repeating the last row and column."""
        import torch
        from torch.nn import functional

        height, width = image.shape
        x = torch.from_numpy(np.asarray(image, np.float32))[None, None].contiguous(memory_format=self._layout)
        with torch.inference_mode():
            if not self._takes_sigma:
                return (x - self._network(x))[0, 0].numpy()  # type: ignore[no-any-return]
            planes = functional.pixel_unshuffle(functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
            planes = torch.cat([planes, torch.full_like(planes[:, :1], std)], dim=1)
            result = functional.pixel_shuffle(self._network(planes.contiguous(memory_format=self._layout)), 2)
            return result[0, 0, :height, :width].numpy()

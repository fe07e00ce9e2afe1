"""Baselines: the published networks DnCNN and FFDNet, from ``.safetensors`` files of their weights.

Both are plain 3x3 convolutions with biases and a ReLU after each but the last, named
``conv0.weight``, ``conv0.bias`` and on. DnCNN predicts the noise; FFDNet works at half resolution,
takes the noise's standard deviation as a fifth plane and predicts the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import CheckpointError
from dn_core.paper.protocol import Image
from dn_core.tensor_files import read_tensors

__all__ = ["Baseline", "BaselineMethod", "load_baseline"]

Convolution = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Baseline:
    """A published network.

    Attributes
    ----------
    name : str
        Of its file.
    convolutions : tuple of Convolution
        Weight and bias of each convolution, in order.
    """

    name: str
    convolutions: tuple[Convolution, ...]

    @property
    def takes_sigma(self) -> bool:
        """Whether it is FFDNet: half resolution, a noise map as fifth plane, a clean image out."""
        return bool(self.convolutions[0][0].shape[1] == 5)

    @property
    def parameters(self) -> int:
        """Number of weights, including biases."""
        return sum(weight.size + bias.size for weight, bias in self.convolutions)

    @property
    def macs_per_pixel(self) -> float:
        """Multiplications per pixel."""
        return sum(weight.size for weight, _ in self.convolutions) / (4 if self.takes_sigma else 1)


def load_baseline(path: str | Path) -> Baseline:
    """Read a baseline's weights.

    Parameters
    ----------
    path : str or Path
        A ``.safetensors`` file.

    Returns
    -------
    Baseline
        The network, named after the file.

    Raises
    ------
    CheckpointError
        When the file does not hold such a network.
    """
    tensors, _ = read_tensors(path)
    count = len(tensors) // 2
    names = {f"conv{index}.{kind}" for index in range(count) for kind in ("weight", "bias")}
    if not count or set(tensors) != names:
        raise CheckpointError(
            f"{path} must hold the weights and biases of conv0, conv1 and so on, got "
            f"{sorted(tensors)[:3]}. Choose another file."
        )
    convolutions = tuple(
        (tensors[f"conv{index}.weight"], tensors[f"conv{index}.bias"]) for index in range(count)
    )
    before = convolutions[0][0].shape[1] if convolutions[0][0].ndim == 4 else 0
    for weight, bias in convolutions:
        if weight.shape[1:] != (before, 3, 3) or bias.shape != weight.shape[:1]:
            raise CheckpointError(
                f"{path} must have 3x3 convolutions that follow each other, got {weight.shape} and "
                f"{bias.shape}. Choose another file."
            )
        before = weight.shape[0]
    if (convolutions[0][0].shape[1], before) not in ((1, 1), (5, 4)):
        raise CheckpointError(
            f"{path} must take and give 1 plane (DnCNN), or take 5 and give 4 (FFDNet), got "
            f"{convolutions[0][0].shape[1]} and {before}. Choose another file."
        )
    return Baseline(Path(path).stem, convolutions)


class BaselineMethod:
    """A baseline in torch, float32.

    Parameters
    ----------
    baseline : Baseline
        The network.
    channels_last : bool, default True
        The memory layout: channels last is faster than channels first, plain torch, with the same
        results except for rounding.
    """

    def __init__(self, baseline: Baseline, *, channels_last: bool = True) -> None:
        import torch
        from torch import nn

        self.name, self.parameters, self.macs_per_pixel = (
            baseline.name,
            baseline.parameters,
            baseline.macs_per_pixel,
        )
        self._takes_sigma = baseline.takes_sigma
        layers: list[nn.Module] = []
        for weight, bias in baseline.convolutions:
            convolution = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            convolution.load_state_dict(
                {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
            )
            layers += [convolution, nn.ReLU(inplace=True)]
        self._layout: Any = torch.channels_last if channels_last else torch.contiguous_format
        self._network = nn.Sequential(*layers[:-1]).eval().to(memory_format=self._layout)  # type: ignore[call-overload]

    def __call__(self, image: Image, std: float) -> Image:
        """See `Method`; for FFDNet the last row and column are repeated to get even sides."""
        import torch
        from torch.nn import functional

        height, width = image.shape
        x = torch.from_numpy(np.asarray(image, np.float32))[None, None].contiguous(
            memory_format=self._layout
        )
        with torch.inference_mode():
            if not self._takes_sigma:
                return (x - self._network(x))[0, 0].numpy()  # type: ignore[no-any-return]
            planes = functional.pixel_unshuffle(
                functional.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2
            )
            planes = torch.cat([planes, torch.full_like(planes[:, :1], std)], dim=1)
            result = functional.pixel_shuffle(
                self._network(planes.contiguous(memory_format=self._layout)), 2
            )
            return result[0, 0, :height, :width].numpy()

"""Inference backends: OpenVINO on CPUs; torch on CUDA, on MPS and where OpenVINO is missing.

An engine computes the convolutions of a network (`DnResNet.body`); means, subtraction and rounding
are computed outside, in float32.
"""

from __future__ import annotations

import importlib.util

from dn_core.checkpoints import Checkpoint
from dn_core.inference.engines.base import Engine, Precision, TileTooLargeError
from dn_core.inference.engines.devices import choose_device
from dn_core.inference.engines.openvino import OpenVinoEngine, import_openvino

__all__ = [
    "Engine",
    "Precision",
    "TileTooLargeError",
    "build_engine",
    "choose_device",
    "import_openvino",
]


def build_engine(checkpoint: Checkpoint, device: str, precision: Precision) -> Engine:
    """Make the engine for a device.

    Parameters
    ----------
    checkpoint : Checkpoint
        The network.
    device : str
        ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision : Precision
        ``"bfloat16"`` becomes ``"float32"`` where the hardware would only emulate it.

    Returns
    -------
    Engine
        OpenVINO for float32 and bfloat16 on CPUs, torch otherwise.
    """
    if device == "cpu" and precision != "float64" and importlib.util.find_spec("openvino"):
        return OpenVinoEngine(checkpoint, precision)
    from dn_core.inference.engines.torch import TorchEngine  # imports torch, which takes seconds

    return TorchEngine(checkpoint, device, precision)

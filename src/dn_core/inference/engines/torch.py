"""PyTorch backend: CUDA and MPS, float64 anywhere, and CPUs without OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dn_core import processes
from dn_core.checkpoints import Checkpoint
from dn_core.inference.engines.base import (
    Key,
    Precision,
    TileTooLargeError,
    Work,
    is_out_of_memory,
)
from dn_core.inference.engines.devices import check_not_forked
from dn_core.network_config import level_of

__all__ = ["TorchEngine"]


class TorchEngine:
    """torch on any device: the engine of GPUs, of float64, and of CPUs without OpenVINO."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: Precision) -> None:
        check_not_forked(device)
        self._device = torch.device(device)
        self._autocast = (
            precision == "bfloat16"
            and self._device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        dtype = torch.float64 if precision == "float64" else torch.float32
        self.dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
        self._config = checkpoint.config
        network = checkpoint.network().to(self._device, dtype)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.precision: Precision = "float32" if precision == "bfloat16" else precision
        if self._autocast:
            self.precision = "bfloat16"
        self.name = f"torch {torch.__version__}, {self._device}, {self.precision}"
        if self._device.type != "cpu":
            processes.add_owner(self)

    def run(self, work: Work[Key], *, parallel: bool) -> Iterator[tuple[Key, NDArray[Any]]]:
        """See `Engine.run`; tiles are computed one by one."""
        check_not_forked(self._device.type)
        if self._device.type == "cpu":
            processes.limit_torch_after_fork()
        for key, array in work:
            yield key, self._compute(array)

    def finish(self) -> None:
        """See `dn_core.processes.ThreadOwner`."""

    def abandon(self) -> None:
        """See `dn_core.processes.ThreadOwner`; memory on the GPU cannot be freed from here."""
        processes.never_destroy(self._network)

    def memory(self, pixels: int, tiles: int) -> int:
        """See `Engine.memory`; what is freed between layers may stay with the allocator."""
        if self._device.type == "cuda":
            return 0
        values = 2 * self._config.activations_per_pixel + 2 * self._config.inputs + 5
        if self.dtype == np.float64:
            # torch unfolds the input of such convolutions: a column for each pixel, at times twice.
            values += 2 * max(
                -(-before * height * width // (self._config.shuffle * 2 ** level_of(name)) ** 2)
                for name, (_, before, height, width) in self._config.weight_shapes().items()
            )
        return pixels * self.dtype.itemsize * values

    def _compute(self, array: NDArray[Any]) -> NDArray[Any]:
        try:
            tile = torch.from_numpy(np.ascontiguousarray(array[None], self.dtype)).to(self._device)
            tile = tile.contiguous(memory_format=torch.channels_last)
            with (
                torch.inference_mode(),
                torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast),
            ):
                result = self._network.body(tile)[0, 0]
            return result.to("cpu", tile.dtype).numpy()  # type: ignore[no-any-return]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, so that the tensors of the failed call are freed before memory is
        # requested again.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        raise TileTooLargeError(
            f"a tile must fit into the memory of {self._device}, got "
            f"{array.shape[1]}x{array.shape[2]} pixels. Use a smaller tile_size."
        )

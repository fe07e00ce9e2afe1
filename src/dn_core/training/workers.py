"""Processes that train one network together: each computes its share of a batch, and all make the same step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ALONE", "Workers"]


@dataclass(frozen=True, slots=True)
class Workers:
    """The place of this process in torch's process group; alone, without such a group, by default.

    All processes call the methods in the same order, as each waits for the others.

    Attributes
    ----------
    rank
        This process, from 0.
    size
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_process_group(cls) -> Workers:
        """Those of the default process group, where there is one."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, batch: int) -> int:
        """How many patches of a batch this process computes.

        Raises
        ------
        ValueError
            When the batch cannot be divided evenly: the mean of the shares' means would not be the batch's mean.
        """
        if batch % self.size:
            raise ValueError(
                f"a batch of {batch} patches is to be shared by {self.size} workers; a multiple of their number is expected. Change the "
                "number of workers, or batch in the recipe."
            )
        return batch // self.size

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network to compute with: after its backward pass all have the mean gradient. Wrapping gives all the weights of the first."""
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(network, device_ids=None if device.type == "cpu" else [device])

    def mean(self, value: float, device: torch.device) -> float:
        """The mean over all; not finite where one is not."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total) / self.size

    def of_first(self, value: float, device: torch.device) -> float:
        """The value that the first worker has: what is decided by it, all decide alike."""
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def all_true(self, answer: bool, device: torch.device) -> bool:
        """Whether all say yes."""
        return self.mean(float(answer), device) == 1.0

    def check_equal(self, weights: Iterable[Tensor], device: torch.device) -> None:
        """Compare all bits of all weights.

        Raises
        ------
        RuntimeError
            In all of them, when one has others.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for value in weights:
            digest.update(value.detach().to("cpu", memory_format=torch.contiguous_format).numpy().tobytes())
        number = int.from_bytes(digest.digest()[:7], "big")
        extremes = torch.tensor([number, -number], dtype=torch.int64, device=device)
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        if int(extremes[0]) != -int(extremes[1]):
            raise RuntimeError(f"the {self.size} workers have different weights; equal ones are expected. Train on devices of one kind.")


ALONE = Workers()

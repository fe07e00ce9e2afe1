"""Process groups: several processes that train one network together (data parallel).

Each computes its share of every batch, and all make the same step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ALONE", "ProcessGroup"]


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The place of this process in torch's process group; by default it is alone.

    All processes call the methods in the same order, as each waits for the others.

    Attributes
    ----------
    rank : int
        This process, from 0.
    size : int
        How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_process_group(cls) -> ProcessGroup:
        """The default process group of torch, where there is one.

        Returns
        -------
        ProcessGroup
            Alone, if there is none.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, batch: int) -> int:
        """How many patches of a batch this process computes.

        Parameters
        ----------
        batch : int
            Patches of the whole batch.

        Returns
        -------
        int
            Patches of the share.

        Raises
        ------
        ValueError
            When the batch cannot be divided evenly: the mean of the shares' means would not be the
            batch's mean.
        """
        if batch % self.size:
            raise ValueError(
                f"a batch must be a multiple of the number of workers, got {batch} patches for "
                f"{self.size} workers. Change the number of workers, or batch in the recipe."
            )
        return batch // self.size

    def wrap(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that after its backward pass all processes have the mean gradient.

        All get the weights of the first process.

        Parameters
        ----------
        network : Module
            The network, on its device.

        Returns
        -------
        torch.nn.Module
            What to compute with; alone, the network itself.
        """
        if self.size == 1:
            return network
        device = next(network.parameters()).device
        return DistributedDataParallel(
            network, device_ids=None if device.type == "cpu" else [device]
        )

    def mean(self, value: float, device: torch.device) -> float:
        """Average a number over all processes.

        Parameters
        ----------
        value : float
            That of this process.
        device : device
            Where the numbers are exchanged.

        Returns
        -------
        float
            The mean, the same in all; not finite where one is not.
        """
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total) / self.size

    def of_first(self, value: float, device: torch.device) -> float:
        """Share the number of the first process: what depends on it, all decide alike.

        Parameters
        ----------
        value : float
            That of this process.
        device : device
            Where the numbers are exchanged.

        Returns
        -------
        float
            That of the first process.
        """
        if self.size == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def all_true(self, answer: bool, device: torch.device) -> bool:
        """Whether all processes say yes.

        Parameters
        ----------
        answer : bool
            That of this process.
        device : device
            Where the answers are exchanged.

        Returns
        -------
        bool
            The same in all.
        """
        return self.mean(float(answer), device) == 1.0

    def check_equal(self, weights: Iterable[Tensor], device: torch.device) -> None:
        """Compare all bits of all weights.

        Parameters
        ----------
        weights : iterable of torch.Tensor
            Those of this process.
        device : device
            Where hashes of them are exchanged.

        Raises
        ------
        RuntimeError
            In all processes, when one has other weights.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for value in weights:
            digest.update(
                value.detach().to("cpu", memory_format=torch.contiguous_format).numpy().tobytes()
            )
        number = int.from_bytes(digest.digest()[:7], "big")
        extremes = torch.tensor([number, -number], dtype=torch.int64, device=device)
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        if int(extremes[0]) != -int(extremes[1]):
            raise RuntimeError(
                f"the workers must have equal weights, but the {self.size} workers have different "
                "weights. Train on devices of one kind."
            )


ALONE = ProcessGroup()

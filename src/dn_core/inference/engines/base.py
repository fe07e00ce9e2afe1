"""Inference backends: what every engine offers, and how running out of memory is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Engine", "Precision", "TileTooLargeError", "Work", "is_out_of_memory"]

Precision = Literal["float32", "bfloat16", "float64"]
Key = TypeVar("Key")
Work = Iterable[tuple[Key, NDArray[Any]]]

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "failed to allocate",
    "bad_alloc",
)


class TileTooLargeError(MemoryError):
    """A tile did not fit into the memory of the device."""


class Engine(Protocol):
    """Computes the convolutions of a network.

    Attributes
    ----------
    name : str
        Library, device and precision in words.
    dtype : dtype
        Type of the arrays that go in and come out.
    precision : Precision
        Precision of the computation: the one asked for, or float32 where the hardware would only
        emulate bfloat16.
    """

    name: str
    dtype: np.dtype[Any]
    precision: Precision

    def run(self, work: Work[Key], *, parallel: bool) -> Iterator[tuple[Key, NDArray[Any]]]:
        """Compute arrays in order.

        Parameters
        ----------
        work : Work[Key]
            A key and an array ``(inputs, height, width)`` for each tile.
        parallel : bool
            Whether to compute several at once.

        Yields
        ------
        key, array
            The key and its result ``(height, width)``.

        Raises
        ------
        TileTooLargeError
            If the device runs out of memory.
        """
        ...

    def memory(self, pixels: int, tiles: int) -> int:
        """Bytes of system memory that computing takes at most; 0 where only the device's count.

        Parameters
        ----------
        pixels : int
            Pixels of one tile, halo included.
        tiles : int
            How many tiles there are to compute.
        """
        ...


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an engine ran out of memory, which libraries mostly report as a RuntimeError."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)

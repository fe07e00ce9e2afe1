"""Writing blocks of any position and size into a zarr array, each chunk or shard only once.

zarr reads, decodes, encodes and writes a whole chunk, or shard, for each block that touches part of
it. Tiles of a plane cut through chunks, and chunks extend over planes: a shard of 64 planes of
4096 x 4096 pixels would be written some thousand times.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockWriter"]

Place = tuple[int, ...]


class BlockWriter:
    """A zarr array to write blocks to, with incomplete chunks (or shards) in a temporary file.

    The file holds the incomplete chunks uncompressed; one chunk at a time is in memory. Call
    `flush` at the end.

    Parameters
    ----------
    array : array
        A zarr array.
    folder : Path, optional
        Where the file is created; by default in the system's temporary folder.
    """

    def __init__(self, array: Any, folder: Path | None = None) -> None:
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.ndim = len(self.shape)
        self._unit: tuple[int, ...] = tuple(array.shards or array.chunks)
        self._scratch = _Scratch(folder, math.prod(self._unit) * self.dtype.itemsize)
        self._open: dict[Place, int] = {}
        """Incomplete chunks with their number of pixels so far.

        Pixels written twice are counted twice, which does no harm: see `_finish`.
        """

    def __setitem__(self, index: Any, block: Any) -> None:
        ranges = self._ranges(index)
        if ranges is None:
            self.flush()
            self._array[index] = block
            return
        shape = [
            stop - start
            for (start, stop), item in zip(ranges, self._full(index), strict=True)
            if isinstance(item, slice)
        ]
        whole = np.broadcast_to(np.asarray(block, self.dtype), shape).reshape(
            [stop - start for start, stop in ranges]
        )
        if not whole.size:
            return
        units = [
            range(start // unit, -(-stop // unit))
            for (start, stop), unit in zip(ranges, self._unit, strict=True)
        ]
        for place in itertools.product(*units):
            region = self._region(place)
            part = [
                (max(start, s.start), min(stop, s.stop))
                for (start, stop), s in zip(ranges, region, strict=True)
            ]
            pixels = whole[
                tuple(
                    slice(low - start, high - start)
                    for (low, high), (start, _) in zip(part, ranges, strict=True)
                )
            ]
            self._take(
                place,
                region,
                [low - s.start for (low, _), s in zip(part, region, strict=True)],
                pixels,
            )

    def __getitem__(self, index: Any) -> NDArray[Any]:
        self.flush()
        return np.asarray(self._array[index])

    def flush(self) -> None:
        """Write all incomplete chunks."""
        for place in list(self._open):
            self._finish(place)

    def close(self) -> None:
        """Drop incomplete chunks, and the file."""
        self._open.clear()
        self._scratch.close()

    def _full(self, index: Any) -> tuple[Any, ...]:
        given = index if isinstance(index, tuple) else (index,)
        before = given.index(...) if ... in given else len(given)
        return (
            *given[:before],
            *(slice(None),) * (self.ndim - len(given) + (... in given)),
            *given[before + 1 :],
        )

    def _ranges(self, index: Any) -> list[tuple[int, int]] | None:
        """Start and stop along each axis; None for an index with steps, left to the array."""
        ranges = []
        for item, size in zip(self._full(index), self.shape, strict=True):
            if not isinstance(item, slice):
                if not -size <= item < size:
                    raise IndexError(f"an index must be {-size} to {size - 1}, got {item}")
                ranges.append((item % size, item % size + 1))
                continue
            start, stop, step = item.indices(size)
            if step != 1:
                return None
            ranges.append((start, max(start, stop)))
        return ranges

    def _region(self, place: Place) -> tuple[slice, ...]:
        """The part of a chunk inside the image."""
        sizes = zip(place, self._unit, self.shape, strict=True)
        return tuple(slice(at * unit, min((at + 1) * unit, size)) for at, unit, size in sizes)

    def _take(
        self, place: Place, region: tuple[slice, ...], start: list[int], pixels: NDArray[Any]
    ) -> None:
        shape = tuple(part.stop - part.start for part in region)
        if pixels.shape == shape:
            self._open.pop(place, None)
            self._scratch.drop(place)
            self._array[region] = pixels
            return
        if place not in self._open:
            self._open[place] = 0
            self._scratch.put(
                place, shape, [0] * self.ndim, np.asarray(self._array[region], self.dtype)
            )
        self._scratch.put(place, shape, start, pixels)
        self._open[place] += pixels.size
        if self._open[place] >= math.prod(shape):
            self._finish(place)

    def _finish(self, place: Place) -> None:
        """Write a chunk. If more of it comes later, that starts from the content of the array."""
        region = self._region(place)
        self._array[region] = self._scratch.get(
            place, tuple(part.stop - part.start for part in region), self.dtype
        )
        del self._open[place]
        self._scratch.drop(place)


class _Scratch:
    """A temporary file of chunks, without a memory map, which some file systems lack."""

    def __init__(self, folder: Path | None, nbytes: int) -> None:
        self._folder, self._nbytes = folder, nbytes
        self._file: BinaryIO | None = None
        self._slots: dict[Place, int] = {}
        self._free: list[int] = []

    def put(
        self, place: Place, shape: tuple[int, ...], start: list[int], pixels: NDArray[Any]
    ) -> None:
        """Write pixels to a chunk of `shape`, in rows as long as they are contiguous in it."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - it is closed by close
        if place not in self._slots:
            self._slots[place] = self._free.pop() if self._free else len(self._slots)
        axis = max(
            (axis for axis in range(pixels.ndim) if pixels.shape[axis] != shape[axis]), default=0
        )
        strides = [
            math.prod(shape[following + 1 :]) * pixels.itemsize for following in range(pixels.ndim)
        ]
        first = self._slots[place] * self._nbytes + sum(
            at * stride for at, stride in zip(start, strides, strict=True)
        )
        pixels = np.ascontiguousarray(pixels).view(np.uint8)
        for row in np.ndindex(*pixels.shape[:axis]):
            self._file.seek(
                first + sum(at * stride for at, stride in zip(row, strides, strict=False))
            )
            self._file.write(pixels[row].data)

    def get(self, place: Place, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The chunk."""
        assert self._file is not None
        self._file.seek(self._slots[place] * self._nbytes)
        return np.frombuffer(self._file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(
            shape
        )

    def drop(self, place: Place) -> None:
        """Free the chunk's slot for another."""
        if place in self._slots:
            self._free.append(self._slots.pop(place))

    def close(self) -> None:
        """Remove the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

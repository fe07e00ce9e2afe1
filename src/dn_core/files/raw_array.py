"""Uncompressed arrays in files, read and written at offsets, without memory maps.

Some drives (FUSE) refuse shared memory maps, and a mapped file that shrinks kills the process.
"""

from __future__ import annotations

import contextlib
import errno
import math
import operator
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import printable

__all__ = ["RawArray", "open_npy", "open_raw", "writing"]

SPAN_BYTES = 16 * 2**20
"""Values with gaps between them are read together with the gaps, up to this many bytes at once."""
SPAN_PART, PAGE_BYTES = 4, 4096
"""... if that is at most this many times what is needed, or not more than a page of memory."""


class RawArray:
    """An array in a file, with ``shape``, ``dtype`` and slicing.

    Indexing reads or writes; `view` and `T` do not access the file. Threads and forked processes
    may read at the same time.
    """

    def __init__(
        self,
        file: _OpenFile,
        dtype: np.dtype[Any],
        offset: int,
        shape: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        self._file, self._offset, self.dtype = file, offset, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Rows, since reading along them is fastest."""
        return (1,) * (self.ndim - 1) + self.shape[-1:]

    @property
    def T(self) -> RawArray:
        """The array with its axes reversed, as of a numpy array."""
        return RawArray(self._file, self.dtype, self._offset, self.shape[::-1], self.strides[::-1])

    def view(self, index: Any) -> RawArray:
        """A part, given by any basic numpy index, that is not read yet."""
        given = index if isinstance(index, tuple) else (index,)
        if not any(item is Ellipsis for item in given):
            given = (*given, ...)
        at = next(number for number, item in enumerate(given) if item is Ellipsis)
        full = (*given[:at], *(slice(None),) * (self.ndim - len(given) + 1), *given[at + 1 :])
        if len(full) != self.ndim:
            raise IndexError(
                f"an index must have at most one item per axis ({self.ndim}), got {len(full)}: "
                f"{index!r}."
            )
        offset, shape, strides = self._offset, [], []
        for item, size, stride in zip(full, self.shape, self.strides, strict=True):
            if isinstance(item, slice):
                taken = range(size)[item]
                offset += taken.start * stride
                shape.append(len(taken))
                strides.append(taken.step * stride)
            else:
                offset += range(size)[operator.index(item)] * stride
        return RawArray(self._file, self.dtype, offset, shape, strides)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        return self.view(index)._read()

    def __setitem__(self, index: Any, block: Any) -> None:
        if not self._file.writable:
            raise ValueError(
                f"the array in {printable(self._file.path)} is read-only. Write to another one."
            )
        self.view(index)._write(np.asarray(block, self.dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(
                "an array in a file is always copied into memory. Leave out copy=False."
            )
        return np.asarray(self._read(), dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the file, for this array and all its views."""
        self._file.close()

    def _read(self) -> NDArray[Any]:
        layout = _Layout(self)
        found = np.empty(layout.counts, self.dtype)
        for where, offset in layout.pieces():
            if layout.solid:
                self._file.read(_bytes_of(found[where]), offset)
            else:
                found[where] = layout.picked(self._span(layout, offset))
        return layout.from_file_order(found)

    def _write(self, block: NDArray[Any]) -> None:
        layout = _Layout(self)
        block = layout.to_file_order(np.broadcast_to(block, self.shape))
        for where, offset in layout.pieces():
            if layout.solid:
                self._file.write(_bytes_of(np.ascontiguousarray(block[where])), offset)
                continue
            with self._file.changing:  # the gaps are written back unchanged
                span = self._span(layout, offset)
                layout.picked(span)[...] = block[where]
                self._file.write(span.data, offset)

    def _span(self, layout: _Layout, offset: int) -> NDArray[np.uint8]:
        span = np.empty(layout.span, np.uint8)
        self._file.read(span.data, offset)
        return span


class _Layout:
    """The memory layout of an array in the order of the file, in pieces that are read at once."""

    def __init__(self, array: RawArray) -> None:
        self.dtype, strides = array.dtype, array.strides
        self.order = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
        self.flips: tuple[Any, ...] = tuple(
            slice(None, None, -1 if strides[axis] < 0 else 1) for axis in self.order
        )
        self.counts = [array.shape[axis] for axis in self.order]
        self.steps = [abs(strides[axis]) for axis in self.order]
        self.start = array._offset + sum(
            (size - 1) * stride
            for size, stride in zip(array.shape, strides, strict=True)
            if stride < 0
        )
        self.span, self.solid, self.axis = self.dtype.itemsize, True, array.ndim
        while self.axis > 0 and self._joined(self.counts[self.axis - 1], self.steps[self.axis - 1]):
            self.axis -= 1

    def _joined(self, count: int, step: int) -> bool:
        """Whether this many of the pieces found so far become one piece, of `span` bytes."""
        span = (count - 1) * step + self.span
        solid = self.solid and (step == self.span or count == 1)
        if not solid and (step > max(SPAN_PART * self.span, PAGE_BYTES) or span > SPAN_BYTES):
            return False
        self.span, self.solid = span, solid
        return True

    def pieces(self) -> Iterator[tuple[tuple[Any, ...], int]]:
        """The index of each piece, and its offset in the file."""
        if 0 in self.counts:
            return
        for where in np.ndindex(*self.counts[: self.axis]):
            yield (
                (*where, ...),
                self.start
                + sum(index * step for index, step in zip(where, self.steps, strict=False)),
            )

    def picked(self, span: NDArray[np.uint8]) -> NDArray[Any]:
        """The values of a piece among the bytes that it spans."""
        return np.ndarray(
            self.counts[self.axis :], self.dtype, span.data, strides=self.steps[self.axis :]
        )

    def to_file_order(self, block: NDArray[Any]) -> NDArray[Any]:
        """A block with its axes in the order and direction of the file."""
        reordered: NDArray[Any] = block.transpose(self.order)[(*self.flips, ...)]
        return reordered

    def from_file_order(self, block: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `to_file_order`."""
        flipped: NDArray[Any] = block[(*self.flips, ...)]
        return flipped.transpose(np.argsort(self.order))


class _OpenFile:
    """A file that is read and written at offsets; it is closed with its last reference."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path, self.writable = path, writable
        self._file = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115
        self._seeking, self.changing = threading.Lock(), threading.Lock()
        self.close = weakref.finalize(self, self._file.close)

    @property
    def bytes(self) -> int:
        """The current size of the file."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with the bytes from `offset` on.

        Raises
        ------
        ImageFileError
            When the file is too short.
        """
        end = offset + len(into)
        while into:
            try:
                count = self._read_some(into, offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not count:
                raise ImageFileError(
                    f"{printable(self.path)} became shorter while it was read: it must have {end} "
                    f"bytes, got {self.bytes}. Wait until it is completely written, then try again."
                )
            into, offset = into[count:], offset + count

    def write(self, content: memoryview, offset: int) -> None:
        """Write all of `content` from `offset` on."""
        while content:
            with writing(self.path, self.bytes):
                count = self._write_some(content, offset)
            content, offset = content[count:], offset + count

    def _read_some(self, into: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [into], offset)
        with self._seeking:
            self._file.seek(offset)
            return self._file.readinto(into)

    def _write_some(self, content: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._file.fileno(), content, offset)
        with self._seeking:
            self._file.seek(offset)
            return self._file.write(content)


@contextlib.contextmanager
def writing(path: Path, needed: int) -> Iterator[None]:
    """Have write errors name the file and, when the disk is full, how many bytes it needs."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        reason = error.strerror or str(error)
        if full:
            reason = f"the output needs {needed} bytes, which are not free there"
        raise OSError(error.errno, reason, str(path)) from error


def open_raw(
    path: Path,
    dtype: DTypeLike,
    shape: Sequence[int],
    offset: int,
    *,
    writable: bool = False,
    fortran_order: bool = False,
) -> RawArray:
    """The array that begins at byte `offset` of a file."""
    kind = np.dtype(dtype)
    if fortran_order:
        return open_raw(path, kind, shape[::-1], offset, writable=writable).T
    strides = [kind.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return RawArray(_OpenFile(path, writable=writable), kind, offset, shape, strides)


def open_npy(path: Path) -> RawArray:
    """The array in a file that `numpy.save` wrote.

    Raises
    ------
    ValueError
        When it is not such a file, shorter than its header says, or holds objects.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read_header(file)
        offset, found = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.hasobject:
        raise ValueError(f"it must hold numbers, got {dtype}")
    if found < (expected := offset + math.prod(shape) * dtype.itemsize):
        raise ValueError(f"it must have {expected} bytes, got {found}")
    return open_raw(path, dtype, shape, offset, fortran_order=fortran_order)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8).data

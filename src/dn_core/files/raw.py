"""Numbers that lie in a file one after the other, read and written with plain seeks.

Nothing is mapped into memory: some drives (FUSE) refuse shared maps, and a file that shrinks under a map kills the process.
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
"""Numbers that do not touch are read together with what lies between them, up to so many bytes at once."""
SPAN_PART, PAGE_BYTES = 4, 4096
"""... where that is at most so many times what is wanted, or not more than a page of memory."""


class RawArray:
    """An array in a file, with ``shape``, ``dtype`` and slicing. Indexing reads or writes; `view` and `T` do not touch the file.

    Threads, and processes that were forked, may read at once.
    """

    def __init__(self, file: _OpenFile, dtype: np.dtype[Any], offset: int, shape: Sequence[int], strides: Sequence[int]) -> None:
        self._file, self._offset, self.dtype = file, offset, dtype
        self.shape, self.strides = tuple(shape), tuple(strides)
        self.ndim = len(self.shape)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * dtype.itemsize

    @property
    def chunks(self) -> tuple[int, ...]:
        """Rows: reading along them costs least."""
        return (1,) * (self.ndim - 1) + self.shape[-1:]

    @property
    def T(self) -> RawArray:
        """With the axes the other way round, as of a numpy array."""
        return RawArray(self._file, self.dtype, self._offset, self.shape[::-1], self.strides[::-1])

    def view(self, index: Any) -> RawArray:
        """A part, given by any basic numpy index, that is read when it is asked for."""
        given = index if isinstance(index, tuple) else (index,)
        if not any(item is Ellipsis for item in given):
            given = (*given, ...)
        at = next(number for number, item in enumerate(given) if item is Ellipsis)
        full = (*given[:at], *(slice(None),) * (self.ndim - len(given) + 1), *given[at + 1 :])
        if len(full) != self.ndim:
            raise IndexError(f"the index {index!r} is for {len(full)} axes, the array has {self.ndim}; at most one for each is expected.")
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
            raise ValueError(f"the array in {printable(self._file.path)} is read-only; write to another one.")
        self.view(index)._write(np.asarray(block, self.dtype))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an array in a file is always copied into memory; leave copy=False out.")
        return np.asarray(self._read(), dtype=dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the file, for this array and all its views."""
        self._file.close()

    def _read(self) -> NDArray[Any]:
        laid = _Layout(self)
        found = np.empty(laid.counts, self.dtype)
        for where, offset in laid.pieces():
            if laid.solid:
                self._file.read(_bytes_of(found[where]), offset)
            else:
                found[where] = laid.picked(self._span(laid, offset))
        return laid.turned_back(found)

    def _write(self, block: NDArray[Any]) -> None:
        laid = _Layout(self)
        block = laid.turned(np.broadcast_to(block, self.shape))
        for where, offset in laid.pieces():
            if laid.solid:
                self._file.write(_bytes_of(np.ascontiguousarray(block[where])), offset)
                continue
            with self._file.changing:  # what lies between is written back as it was
                span = self._span(laid, offset)
                laid.picked(span)[...] = block[where]
                self._file.write(span.data, offset)

    def _span(self, laid: _Layout, offset: int) -> NDArray[np.uint8]:
        span = np.empty(laid.span, np.uint8)
        self._file.read(span.data, offset)
        return span


class _Layout:
    """How the numbers of an array lie: in the order of the file, in pieces that are read or written at once."""

    def __init__(self, array: RawArray) -> None:
        self.dtype, strides = array.dtype, array.strides
        self.order = sorted(range(array.ndim), key=lambda axis: -abs(strides[axis]))
        self.flips: tuple[Any, ...] = tuple(slice(None, None, -1 if strides[axis] < 0 else 1) for axis in self.order)
        self.counts = [array.shape[axis] for axis in self.order]
        self.steps = [abs(strides[axis]) for axis in self.order]
        self.start = array._offset + sum((size - 1) * stride for size, stride in zip(array.shape, strides, strict=True) if stride < 0)
        self.span, self.solid, self.axis = self.dtype.itemsize, True, array.ndim
        while self.axis > 0 and self._joined(self.counts[self.axis - 1], self.steps[self.axis - 1]):
            self.axis -= 1

    def _joined(self, count: int, step: int) -> bool:
        """Whether so many of the pieces found so far are dealt with as one, which `span` then is."""
        span = (count - 1) * step + self.span
        solid = self.solid and (step == self.span or count == 1)
        if not solid and (step > max(SPAN_PART * self.span, PAGE_BYTES) or span > SPAN_BYTES):
            return False
        self.span, self.solid = span, solid
        return True

    def pieces(self) -> Iterator[tuple[tuple[Any, ...], int]]:
        """The index of each piece, and its place in the file."""
        if 0 in self.counts:
            return
        for where in np.ndindex(*self.counts[: self.axis]):
            yield (*where, ...), self.start + sum(index * step for index, step in zip(where, self.steps, strict=False))

    def picked(self, span: NDArray[np.uint8]) -> NDArray[Any]:
        """The numbers of a piece among the bytes that it spans."""
        return np.ndarray(self.counts[self.axis :], self.dtype, span.data, strides=self.steps[self.axis :])

    def turned(self, block: NDArray[Any]) -> NDArray[Any]:
        """A block with its axes as they lie in the file."""
        turned: NDArray[Any] = block.transpose(self.order)[(*self.flips, ...)]
        return turned

    def turned_back(self, block: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `turned`."""
        flipped: NDArray[Any] = block[(*self.flips, ...)]
        return flipped.transpose(np.argsort(self.order))


class _OpenFile:
    """A file that is read and written at given places; it is closed when nothing refers to it any more."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path, self.writable = path, writable
        self._file = open(path, "r+b" if writable else "rb", buffering=0)  # noqa: SIM115
        self._seeking, self.changing = threading.Lock(), threading.Lock()
        self.close = weakref.finalize(self, self._file.close)

    @property
    def bytes(self) -> int:
        """How long the file is now."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` from `offset` on.

        Raises
        ------
        ImageFileError
            When the file ends before.
        """
        end = offset + len(into)
        while into:
            try:
                count = self._read_some(into, offset)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            if not count:
                raise ImageFileError(
                    f"{printable(self.path)} became shorter while it was read: {end} bytes are expected, it has {self.bytes}. "
                    "Wait until it is copied or written as a whole, then try again."
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
    """Let errors of writing name the file and, where the disk is full, how many bytes it needs in all."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        words = f"the output needs {needed} bytes, which are not free there" if full else error.strerror or str(error)
        raise OSError(error.errno, words, str(path)) from error


def open_raw(
    path: Path, dtype: DTypeLike, shape: Sequence[int], offset: int, *, writable: bool = False, fortran_order: bool = False
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
        When it is no such file, shorter than it says, or holds objects.
    """
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
        offset, found = file.tell(), os.fstat(file.fileno()).st_size
    if dtype.hasobject:
        raise ValueError(f"it holds {dtype}, numbers are expected")
    if found < (expected := offset + math.prod(shape) * dtype.itemsize):
        raise ValueError(f"it has {found} bytes, {expected} are expected")
    return open_raw(path, dtype, shape, offset, fortran_order=fortran_order)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The memory of an array in C order."""
    return array.reshape(-1).view(np.uint8).data

"""Missing and damaged chunks of zarr arrays.

zarr reads a missing chunk as the fill value, and when writing leaves out chunks that hold nothing
else: only a count shows how much of an image is missing. zarr's own `nchunks_initialized` is wrong
for shards that extend beyond the image or lack some of their chunks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dn_core.files.image import CheckedSource, share
from dn_core.files.zarr_shards import (
    call_concurrently,
    count_inner_chunks,
    full_key,
    local_folder,
)

__all__ = ["ChunkCount", "ZarrSource", "count_chunks"]

MAX_ASKED = 10_000
"""The most chunks that are looked up one by one when a store cannot be listed."""


@dataclass(frozen=True, slots=True)
class ChunkCount:
    """The number of missing chunks of an array, or why it is `unknown`."""

    missing: int
    total: int
    fill_value: Any
    unknown: str = ""

    @property
    def in_words(self) -> str:
        """What a user should know; empty when nothing is missing."""
        if self.unknown:
            return (
                f"whether chunks are missing is not known, since {self.unknown}; missing ones "
                f"would be read as {self.fill}"
            )
        if not self.missing:
            return ""
        lacking = share(self.missing, self.total, "chunks")
        return f"{lacking} are missing and were read as {self.fill}"

    @property
    def fill(self) -> str:
        """The fill value as text."""
        value = 0 if self.fill_value is None else self.fill_value
        return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def count_chunks(array: Any, name: str) -> ChunkCount:
    """Count the chunks inside the image that a zarr array has in its store.

    The store is listed once; of shards the indexes are read. The cost is proportional to the chunks
    that exist; on a local disk no memory is used per chunk: 100,000 take about half a second.

    Parameters
    ----------
    array : array
        A zarr array.
    name : str
        The array's name in error messages.

    Raises
    ------
    ImageFileError
        When the index of a shard is damaged; zarr would read it as missing chunks in part.
    OSError
        When a folder or a shard cannot be read, so that nothing is known of its chunks.
    """
    grid = _grid(array.shape, array.shards or array.chunks)
    total = math.prod(_grid(array.shape, array.chunks))
    if _has_hidden_shards(array):
        return ChunkCount(0, total, array.fill_value, "its shards cannot be inspected")
    found = _Keys.of(array, grid)
    if found is None or not _list_store(array, found):
        if math.prod(grid) > MAX_ASKED:
            return ChunkCount(0, total, array.fill_value, "its store cannot be listed")
        found = _look_up(array, grid)
    present = count_inner_chunks(array, found.keys, name) if array.shards else found.count
    return ChunkCount(total - present, total, array.fill_value)


def _grid(shape: Iterable[int], chunks: Iterable[int]) -> tuple[int, ...]:
    return tuple(-(-int(size) // int(chunk)) for size, chunk in zip(shape, chunks, strict=True))


@dataclass
class _Keys:
    """The chunks or shards in an array's store, recognised by their keys."""

    grid: tuple[int, ...]
    pattern: re.Pattern[str]
    keep: bool
    count: int = 0
    keys: dict[tuple[int, ...], str] = field(default_factory=dict)
    listed: bool = False

    @classmethod
    def of(cls, array: Any, grid: tuple[int, ...]) -> _Keys | None:
        """None if the encoding of chunk keys is unknown."""
        if array.metadata.zarr_format == 2:
            first, separator = "", array.metadata.dimension_separator
        else:
            encoding = array.metadata.chunk_key_encoding
            if encoding.name not in ("default", "v2"):
                return None
            separator = encoding.separator
            first = f"c{separator}" if encoding.name == "default" else ""
        numbers = re.escape(separator).join(["(0|[1-9][0-9]*)"] * len(grid))
        # Stores other than folders may list a key twice (a zip file in which it was replaced).
        return cls(
            grid,
            re.compile(re.escape(first) + numbers),
            keep=bool(array.shards) or local_folder(array) is None,
        )

    def take(self, key: str) -> None:
        """Count a key of the store, relative to the array's folder."""
        self.listed = self.listed or key in ("zarr.json", ".zarray")
        if (match := self.pattern.fullmatch(key)) is None:
            return
        at = tuple(map(int, match.groups()))
        if all(index < count for index, count in zip(at, self.grid, strict=True)):
            if self.keep:
                self.keys[at] = key
                self.count = len(self.keys)
            else:
                self.count += 1


def _has_hidden_shards(array: Any) -> bool:
    """Whether there are shards besides those that hold the chunks of the array."""
    from zarr.codecs import ShardingCodec

    codecs = getattr(array.metadata, "codecs", ())
    inner = itertools.chain.from_iterable(
        codec.codecs for codec in codecs if isinstance(codec, ShardingCodec)
    )
    return any(
        isinstance(codec, ShardingCodec) for codec in (*inner, *(() if array.shards else codecs))
    )


def _list_store(array: Any, found: _Keys) -> bool:
    """List the store; false if that is impossible, as on a web server.

    A listing without even the array's own metadata does not count.
    """
    folder = local_folder(array)
    # Several times faster than zarr's listing, which also skips unreadable folders silently.
    if folder is not None:
        for key in _files(folder, len(found.grid) + 1):
            found.take(key)
        return True
    if array.store.supports_listing:
        from zarr.core.sync import sync

        # Many servers allow reading but not listing, with errors of their own.
        with contextlib.suppress(Exception):
            sync(_list(array, found))
            return found.listed or found.count > 0
    return False


def _files(folder: Path | str, depth: int) -> Iterator[str]:
    """Names of files in and under a folder, down to `depth`, without broken links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                yield entry.name
            elif depth > 1 and entry.is_dir():
                for name in _files(entry.path, depth - 1):
                    yield f"{entry.name}/{name}"


async def _list(array: Any, found: _Keys) -> None:
    prefix = f"{array.path}/" if array.path else ""
    async for key in array.store.list_prefix(prefix):
        found.take(key.removeprefix(prefix))


def _look_up(array: Any, grid: tuple[int, ...]) -> _Keys:
    """The chunks or shards in the store, by a request for each."""
    keys = {at: str(array.metadata.encode_chunk_key(at)) for at in np.ndindex(*grid)}
    existing = call_concurrently(
        array.store.exists, [(full_key(array, key),) for key in keys.values()]
    )
    kept = {at: key for (at, key), exists in zip(keys.items(), existing, strict=True) if exists}
    return _Keys(grid, re.compile(""), True, len(kept), kept)


# Reading


class ZarrSource(CheckedSource):
    """A zarr array whose missing chunks are counted, and whose read errors name the chunk.

    Parameters
    ----------
    array : array
        A zarr array.
    name : Path or str, default ""
        Its name in messages; by default its path in the store.
    """

    def __init__(self, array: Any, name: Path | str = "") -> None:
        super().__init__(array, name or str(array.store_path))
        self.count = count_chunks(array, self.name)

    def _where(self, index: Any) -> str:
        """The first chunk of `index` that cannot be read."""
        array = self._array
        with contextlib.suppress(Exception):  # an invalid index
            for at in itertools.product(*self._chunk_ranges(index)):
                region = tuple(
                    slice(where * chunk, (where + 1) * chunk)
                    for where, chunk in zip(at, array.chunks, strict=True)
                )
                try:
                    array[region]
                except Exception:
                    if not array.shards:
                        return f"chunk {array.metadata.encode_chunk_key(at)} of "
                    outer = tuple(
                        where * chunk // shard
                        for where, chunk, shard in zip(at, array.chunks, array.shards, strict=True)
                    )
                    return f"chunk {at} in shard {array.metadata.encode_chunk_key(outer)} of "
        return ""

    def _chunk_ranges(self, index: Any) -> list[range]:
        given = index if isinstance(index, tuple) else (index,)
        before = given.index(...) if ... in given else len(given)
        whole = (slice(None),) * (self.ndim - len(given) + (... in given))
        full = (*given[:before], *whole, *given[before + 1 :])
        ranges = []
        for item, size, chunk in zip(full, self.shape, self._array.chunks, strict=True):
            start, stop, _ = (
                item.indices(size) if isinstance(item, slice) else (item % size, item % size + 1, 1)
            )
            ranges.append(range(start // chunk, -(-stop // chunk)))
        return ranges

"""Which chunks of a zarr array are there, and which of them cannot be read.

zarr reads a chunk that is not there as the fill value, and leaves chunks that hold nothing else out when it writes: only a count tells how
much of an image that is. Its own `nchunks_initialized` is wrong where shards reach beyond the image or lack some of their chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import CheckedSource, share

__all__ = ["ChunkCount", "ZarrSource", "count_chunks"]

MAX_ASKED = 10_000
"""Chunks that are asked for one by one where a store cannot be listed."""
SHARDS_AT_ONCE = 256
"""Shards whose indexes are decoded in one go, which is several times faster than one by one."""
REQUESTS = 32
"""Requests to a remote store at the same time."""
EMPTY = 2**64 - 1
"""Offset and length of a chunk that its shard lacks."""


@dataclass(frozen=True, slots=True)
class ChunkCount:
    """How many chunks of an array are missing; with `unknown`, why nobody can tell."""

    missing: int
    total: int
    fill_value: Any
    unknown: str = ""

    @property
    def in_words(self) -> str:
        """What a user should know; empty where nothing is missing."""
        if self.unknown:
            return f"whether chunks are missing is not known, since {self.unknown}; such would be read as {self.fill}"
        return f"{share(self.missing, self.total, 'chunks')} are missing and were read as {self.fill}" if self.missing else ""

    @property
    def fill(self) -> str:
        """The fill value as text."""
        value = 0 if self.fill_value is None else self.fill_value
        return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def count_chunks(array: Any, name: str) -> ChunkCount:
    """Count the chunks inside the image that a zarr array has in its store.

    The store is listed once, and of shards the indexes are read. The cost goes with what is there, not with what there could be, and on a
    local disk nothing is kept for a chunk: 100,000 chunks take about half a second.

    Raises
    ------
    ImageFileError
        When the index of a shard is damaged, which zarr would in part read as missing chunks; `name` is the array's in the message.
    OSError
        When a folder or a shard cannot be read: that says nothing about whether it is there.
    """
    grid, total = _grid(array.shape, array.shards or array.chunks), math.prod(_grid(array.shape, array.chunks))
    if _hidden_shards(array):
        return ChunkCount(0, total, array.fill_value, "its shards cannot be looked into")
    found = _Keys.of(array, grid)
    if found is None or not _look(array, found):
        if math.prod(grid) > MAX_ASKED:
            return ChunkCount(0, total, array.fill_value, "its store cannot be listed")
        found = _asked(array, grid)
    present = _inner_chunks(array, found.keys, name) if array.shards else found.count
    return ChunkCount(total - present, total, array.fill_value)


def _grid(shape: Iterable[int], chunks: Iterable[int]) -> tuple[int, ...]:
    return tuple(-(-int(size) // int(chunk)) for size, chunk in zip(shape, chunks, strict=True))


@dataclass
class _Keys:
    """The objects of an array's store that are its chunks or shards, told by their names."""

    grid: tuple[int, ...]
    pattern: re.Pattern[str]
    keep: bool
    count: int = 0
    keys: dict[tuple[int, ...], str] = field(default_factory=dict)
    listed: bool = False

    @classmethod
    def of(cls, array: Any, grid: tuple[int, ...]) -> _Keys | None:
        """None where chunks are named in a way that is not known here."""
        if array.metadata.zarr_format == 2:
            first, separator = "", array.metadata.dimension_separator
        else:
            encoding = array.metadata.chunk_key_encoding
            if encoding.name not in ("default", "v2"):
                return None
            separator = encoding.separator
            first = f"c{separator}" if encoding.name == "default" else ""
        numbers = re.escape(separator).join(["(0|[1-9][0-9]*)"] * len(grid))
        # A store other than a disk may list an object twice (a zip file in which it was replaced).
        return cls(grid, re.compile(re.escape(first) + numbers), keep=bool(array.shards) or _local_folder(array) is None)

    def take(self, key: str) -> None:
        """Note an object of the store, named from the array's folder on."""
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


def _local_folder(array: Any) -> Path | None:
    from zarr.storage import LocalStore

    return Path(array.store.root, array.path) if isinstance(array.store, LocalStore) else None


def _hidden_shards(array: Any) -> bool:
    """Whether there are shards besides those in which the chunks of the array lie."""
    from zarr.codecs import ShardingCodec

    codecs = getattr(array.metadata, "codecs", ())
    inner = itertools.chain.from_iterable(codec.codecs for codec in codecs if isinstance(codec, ShardingCodec))
    return any(isinstance(codec, ShardingCodec) for codec in (*inner, *(() if array.shards else codecs)))


def _look(array: Any, found: _Keys) -> bool:
    """List the store; false where it cannot be listed (a web server): then not even the array's own description is there."""
    folder = _local_folder(array)
    if folder is not None:  # several times faster than zarr's listing, which also passes over folders that may not be read
        for key in _files(folder, len(found.grid) + 1):
            found.take(key)
        return True
    if array.store.supports_listing:
        from zarr.core.sync import sync

        with contextlib.suppress(Exception):  # as servers have it; many let everybody read what they let nobody list
            sync(_list(array, found))
            return found.listed or found.count > 0
    return False


def _files(folder: Path | str, depth: int) -> Iterator[str]:
    """Names of files in and under a folder, down to `depth`; a link that leads nowhere is none."""
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


def _asked(array: Any, grid: tuple[int, ...]) -> _Keys:
    """What the store has, one question for each chunk or shard."""
    keys = {at: str(array.metadata.encode_chunk_key(at)) for at in np.ndindex(*grid)}
    there = _together(array.store.exists, [(_full_key(array, key),) for key in keys.values()])
    kept = {at: key for (at, key), exists in zip(keys.items(), there, strict=True) if exists}
    return _Keys(grid, re.compile(""), True, len(kept), kept)


def _full_key(array: Any, key: str) -> str:
    return f"{array.path}/{key}" if array.path else key


def _together(call: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """The results of asynchronous calls, some of which run side by side."""
    from zarr.core.sync import sync

    async def run() -> list[Any]:
        turn = asyncio.Semaphore(REQUESTS)

        async def one(given: tuple[Any, ...]) -> Any:
            async with turn:
                return await call(*given)

        return list(await asyncio.gather(*map(one, arguments)))

    results: list[Any] = sync(run())
    return results


# Shards


def _inner_chunks(array: Any, shards: dict[tuple[int, ...], str], name: str) -> int:
    """How many chunks inside the image these shards have."""
    indexes, present = _ShardIndexes(array, name), 0
    places = list(shards)
    for start in range(0, len(places), SHARDS_AT_ONCE):
        some = places[start : start + SHARDS_AT_ONCE]
        for at, used in zip(some, indexes.read([shards[at] for at in some]), strict=True):
            inside = tuple(slice(0, count) for count in indexes.inside(at))
            present += int(np.count_nonzero(used[inside]))
    return present


class _ShardIndexes:
    """The tables at the end (or start) of an array's shards that say where in a shard its chunks are.

    They are decoded by zarr: as the only chunks of a small array in memory, with the codecs that the sharding names for them.
    """

    def __init__(self, array: Any, name: str) -> None:
        from zarr.codecs import Crc32cCodec

        self._array, self._name = array, name
        codec = array.metadata.codecs[0]
        self._codecs = tuple(codec.index_codecs)
        self._shape = tuple(shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True))
        self._at_end = getattr(codec.index_location, "value", codec.index_location) == "end"
        # An index with a checksum that lies at the end of a file is itself the sign that the file was not cut.
        self._needs_size = not self._at_end or not any(isinstance(codec, Crc32cCodec) for codec in self._codecs)
        stored, table = self._table(1)
        table[...] = 1
        self._buffer = type(stored[self._key(0)])
        self._nbytes = len(stored[self._key(0)])

    def inside(self, shard: tuple[int, ...]) -> list[int]:
        """How many chunks of a shard begin inside the image, along each axis."""
        sizes = zip(self._array.shape, self._array.chunks, self._shape, shard, strict=True)
        return [min(count, -(-size // chunk) - at * count) for size, chunk, count, at in sizes]

    def read(self, keys: list[str]) -> Iterator[NDArray[np.bool_]]:
        """Which of its chunks each of these shards has."""
        folder = _local_folder(self._array)
        if folder is None:
            found = _together(self._from_store, [(_full_key(self._array, key),) for key in keys])
        else:
            found = [self._from_file(folder / key) for key in keys]
        for key, (_, size), table in zip(keys, found, self._decoded(keys, [content for content, _ in found]), strict=True):
            offsets, lengths = table[..., 0], table[..., 1]
            used = (offsets != EMPTY) | (lengths != EMPTY)
            ends = offsets + lengths
            if (used & ((lengths == 0) | (ends < offsets) | (ends > (EMPTY if size is None else size)))).any():
                raise self._damaged(key, "it names bytes that are not in the shard")
            yield used

    def _from_file(self, path: Path) -> tuple[bytes, int | None]:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - self._nbytes) if self._at_end else 0)
            return file.read(self._nbytes), size

    async def _from_store(self, key: str) -> tuple[bytes, int | None]:
        from zarr.abc.store import RangeByteRequest, SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype

        store, prototype = self._array.store, default_buffer_prototype()
        part = SuffixByteRequest(self._nbytes) if self._at_end else RangeByteRequest(0, self._nbytes)
        content = await store.get(key, prototype, byte_range=part)
        size = await store.getsize(key) if self._needs_size else None
        return b"" if content is None else content.to_bytes(), size

    def _decoded(self, keys: list[str], contents: list[bytes]) -> NDArray[np.uint64]:
        try:
            return self._decode(contents)
        except Exception as error:
            for key, content in zip(keys, contents, strict=True):
                try:
                    self._decode([content])
                except Exception as own:
                    raise self._damaged(key, f"{type(own).__name__}: {own!s:.200}") from own
            raise self._damaged(keys[0], f"{type(error).__name__}: {error!s:.200}") from error

    def _decode(self, contents: list[bytes]) -> NDArray[np.uint64]:
        stored, table = self._table(len(contents))
        stored.update({self._key(number): self._buffer.from_bytes(content) for number, content in enumerate(contents)})
        tables = np.asarray(table[...], np.uint64)
        return tables.reshape(len(contents), *self._shape, 2)

    def _table(self, count: int) -> tuple[dict[str, Any], Any]:
        """A zarr array of so many indexes, one a chunk, and the objects of its store."""
        import zarr
        from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec

        filters = [codec for codec in self._codecs if isinstance(codec, ArrayArrayCodec)]
        compressors = [codec for codec in self._codecs if isinstance(codec, BytesBytesCodec)]
        (serializer,) = (codec for codec in self._codecs if codec not in (*filters, *compressors))
        stored: dict[str, Any] = {}
        table = zarr.create_array(
            zarr.storage.MemoryStore(stored),
            shape=(count * self._shape[0], *self._shape[1:], 2),
            chunks=(*self._shape, 2),
            dtype="uint64",
            filters=filters,
            serializer=serializer,
            compressors=compressors,
            fill_value=0,
        )
        return stored, table

    def _key(self, number: int) -> str:
        return "/".join(["c", str(number), *"0" * len(self._shape)])

    def _damaged(self, key: str, why: str) -> ImageFileError:
        return ImageFileError(
            f"{self._name} is damaged: the index of its shard {key} cannot be read ({why}). A whole image is expected; copy it again or "
            "export it again from the program that made it."
        )


# Reading


class ZarrSource(CheckedSource):
    """A zarr array whose missing chunks are counted, and whose reading errors name the chunk."""

    def __init__(self, array: Any, name: Path | str = "") -> None:
        super().__init__(array, name or str(array.store_path))
        self.count = count_chunks(array, self.name)

    def _where(self, index: Any) -> str:
        """The first chunk of `index` that cannot be read."""
        array = self._array
        with contextlib.suppress(Exception):  # an index that is none
            for at in itertools.product(*self._chunk_ranges(index)):
                region = tuple(slice(where * chunk, (where + 1) * chunk) for where, chunk in zip(at, array.chunks, strict=True))
                try:
                    array[region]
                except Exception:
                    if not array.shards:
                        return f"chunk {array.metadata.encode_chunk_key(at)} of "
                    outer = tuple(where * chunk // shard for where, chunk, shard in zip(at, array.chunks, array.shards, strict=True))
                    return f"chunk {at} in shard {array.metadata.encode_chunk_key(outer)} of "
        return ""

    def _chunk_ranges(self, index: Any) -> list[range]:
        given = index if isinstance(index, tuple) else (index,)
        before = given.index(...) if ... in given else len(given)
        whole = (slice(None),) * (self.ndim - len(given) + (... in given))
        full = (*given[:before], *whole, *given[before + 1 :])
        ranges = []
        for item, size, chunk in zip(full, self.shape, self._array.chunks, strict=True):
            start, stop, _ = item.indices(size) if isinstance(item, slice) else (item % size, item % size + 1, 1)
            ranges.append(range(start // chunk, -(-stop // chunk)))
        return ranges

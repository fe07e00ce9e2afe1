"""Shards of zarr arrays: which chunks they hold, after their indexes; requests to remote stores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError

__all__ = ["call_concurrently", "count_inner_chunks", "full_key", "local_folder"]

SHARDS_AT_ONCE = 256
"""Shards whose indexes are decoded together, several times faster than one by one."""
REQUESTS = 32
"""Concurrent requests to a remote store."""
EMPTY = 2**64 - 1
"""Offset and length of a chunk that its shard lacks."""


def local_folder(array: Any) -> Path | None:
    """The folder of an array on a disk; None in other stores."""
    from zarr.storage import LocalStore

    return Path(array.store.root, array.path) if isinstance(array.store, LocalStore) else None


def full_key(array: Any, key: str) -> str:
    """The key in the store of a key relative to the array."""
    return f"{array.path}/{key}" if array.path else key


def call_concurrently(call: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """The results of asynchronous calls, some of which run at the same time."""
    from zarr.core.sync import sync

    async def run() -> list[Any]:
        turn = asyncio.Semaphore(REQUESTS)

        async def one(given: tuple[Any, ...]) -> Any:
            async with turn:
                return await call(*given)

        return list(await asyncio.gather(*map(one, arguments)))

    results: list[Any] = sync(run())
    return results


def count_inner_chunks(array: Any, shards: dict[tuple[int, ...], str], name: str) -> int:
    """The number of chunks inside the image that these shards hold.

    Parameters
    ----------
    array : array
        A zarr array with shards.
    shards : dict of tuple of int to str
        The shards' keys, relative to the array, by their positions in the grid.
    name : str
        The array's name in error messages.

    Raises
    ------
    ImageFileError
        When the index of a shard is damaged.
    """
    indexes, present = _ShardIndexes(array, name), 0
    places = list(shards)
    for start in range(0, len(places), SHARDS_AT_ONCE):
        some = places[start : start + SHARDS_AT_ONCE]
        for at, used in zip(some, indexes.read([shards[at] for at in some]), strict=True):
            inside = tuple(slice(0, count) for count in indexes.inside(at))
            present += int(np.count_nonzero(used[inside]))
    return present


class _ShardIndexes:
    """The indexes at the end (or start) of an array's shards, with the offsets of their chunks.

    zarr decodes them, as chunks of a small array in memory with the index codecs of the shards.
    """

    def __init__(self, array: Any, name: str) -> None:
        from zarr.codecs import Crc32cCodec

        self._array, self._name = array, name
        codec = array.metadata.codecs[0]
        self._codecs = tuple(codec.index_codecs)
        self._shape = tuple(
            shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)
        )
        self._at_end = getattr(codec.index_location, "value", codec.index_location) == "end"
        # An intact index with a checksum at the end of a file shows that the file was not cut off.
        self._needs_size = not self._at_end or not any(
            isinstance(codec, Crc32cCodec) for codec in self._codecs
        )
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
        folder = local_folder(self._array)
        if folder is None:
            found = call_concurrently(
                self._from_store, [(full_key(self._array, key),) for key in keys]
            )
        else:
            found = [self._from_file(folder / key) for key in keys]
        for key, (_, size), table in zip(
            keys, found, self._decoded(keys, [content for content, _ in found]), strict=True
        ):
            offsets, lengths = table[..., 0], table[..., 1]
            used = (offsets != EMPTY) | (lengths != EMPTY)
            ends = offsets + lengths
            limit = EMPTY if size is None else size
            if (used & ((lengths == 0) | (ends < offsets) | (ends > limit))).any():
                raise self._damaged(key, "it refers to bytes outside the shard")
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
        part = (
            SuffixByteRequest(self._nbytes) if self._at_end else RangeByteRequest(0, self._nbytes)
        )
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
        stored.update(
            {
                self._key(number): self._buffer.from_bytes(content)
                for number, content in enumerate(contents)
            }
        )
        tables = np.asarray(table[...], np.uint64)
        return tables.reshape(len(contents), *self._shape, 2)

    def _table(self, count: int) -> tuple[dict[str, Any], Any]:
        """A zarr array of a number of indexes, one a chunk, and the objects of its store."""
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
            f"{self._name} is damaged: the index of its shard {key} cannot be read ({why}). Copy "
            "it again, or export it again from the program that created it."
        )

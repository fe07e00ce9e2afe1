"""Layout of zarr arrays (chunks, shards, codecs, byte order, chunk keys), kept in the output."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["Layout", "create_as", "read_layout", "warn_of_dropped_codecs"]

_LOSSLESS = {
    "adler32",
    "blosc",
    "bytes",
    "bz2",
    "crc32",
    "crc32c",
    "delta",
    "endian",
    "fletcher32",
    "gzip",
    "jenkins_lookup3",
    "lz4",
    "lzma",
    "packbits",
    "sharding_indexed",
    "shuffle",
    "transpose",
    "zlib",
    "zstd",
}
"""Codecs that decode to exactly what was encoded."""


@dataclass(frozen=True)
class Layout:
    """The metadata document of an array, unchanged except for lossy codecs.

    Attributes
    ----------
    document : dict of str to object
        ``zarr.json`` or ``.zarray``.
    attributes : dict of str to object
        Of zarr format 2, the content of ``.zattrs``.
    shape, dtype
        Of the array.
    dropped : tuple of str, optional
        Names of codecs of the input that were replaced in the document.
    """

    document: dict[str, Any]
    attributes: dict[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    dropped: tuple[str, ...] = ()

    def reordered(self, order: Sequence[int]) -> Layout:
        """The layout for the array with its axes in another order."""
        document = copy.deepcopy(self.document)
        if document["zarr_format"] == 2:
            document["chunks"] = [document["chunks"][axis] for axis in order]
        else:
            grid = document["chunk_grid"]["configuration"]
            grid["chunk_shape"] = [grid["chunk_shape"][axis] for axis in order]
            _reorder_codecs(document["codecs"], list(order))
        attributes = {
            key: value for key, value in self.attributes.items() if key != "_ARRAY_DIMENSIONS"
        }
        return replace(
            self,
            document=document,
            attributes=attributes,
            shape=tuple(self.shape[axis] for axis in order),
        )


def _reorder_codecs(codecs: list[dict[str, Any]], order: list[int]) -> None:
    """Adapt codecs, in place, to an array whose axis i is axis ``order[i]`` of the old one.

    A transpose codec lists the axes of the array in the order in which they are stored. Each number
    becomes the new position of that axis, so that the stored order stays the same. Sharding after
    it follows the same permutation; without transposition its chunks are permuted as the array.
    """
    for codec in codecs:
        settings = codec.get("configuration", {})
        if codec["name"] == "transpose":
            settings["order"] = order = [order.index(axis) for axis in settings["order"]]
        elif codec["name"] == "sharding_indexed":
            settings["chunk_shape"] = [settings["chunk_shape"][axis] for axis in order]
            _reorder_codecs(settings["codecs"], order)


def read_layout(array: Any, folder: Path | None = None) -> Layout:
    """The layout of an array, from its metadata document in `folder` if it is there."""
    from zarr.core.buffer import default_buffer_prototype

    name = ".zarray" if array.metadata.zarr_format == 2 else "zarr.json"
    if folder is not None and (folder / name).is_file():
        content = (folder / name).read_bytes()
    else:  # in another store, or only its group describes it (consolidated metadata)
        content = array.metadata.to_buffer_dict(default_buffer_prototype())[name].to_bytes()
    dtype = np.dtype(array.dtype)
    kept, dropped = _kept_codecs(json.loads(content), dtype)
    return Layout(
        kept, dict(array.attrs), tuple(array.shape), dtype.newbyteorder("="), tuple(dropped)
    )


def create_as(
    layout: Layout,
    shape: tuple[int, ...],
    names: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Any:
    """Create an array with a layout.

    All chunks are written, empty ones too: only then can a lost chunk be told from a black one.

    Parameters
    ----------
    layout : Layout
        Chunks, shards, codecs and so on.
    shape : tuple of int
        The shape of the new array.
    names : sequence of str, optional
        Names of its axes, for zarr format 3.
    folder : Path, optional
        Where it is created; in memory by default.
    """
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    document = {**layout.document, "shape": list(shape)}
    version: Literal[2, 3] = 2 if document["zarr_format"] == 2 else 3
    if version == 3 and names is not None:
        document["dimension_names"] = list(names)
    files = (
        {".zarray": document, ".zattrs": layout.attributes}
        if version == 2
        else {"zarr.json": document}
    )
    contents = {name: json.dumps(content, indent=2).encode() for name, content in files.items()}
    if folder is None:
        buffer = default_buffer_prototype().buffer
        store: Any = zarr.storage.MemoryStore(
            {name: buffer.from_bytes(content) for name, content in contents.items()}
        )
    else:
        store = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(store, mode="r+", zarr_format=version)


def warn_of_dropped_codecs(codecs: Iterable[str], name: str, stacklevel: int) -> None:
    """Warn of codecs of the input that the output does not have."""
    if codecs := sorted(set(codecs)):
        warnings.warn(
            f"the codecs {', '.join(codecs)} of {name} are lossy or unknown; zstd replaces them",
            stacklevel=stacklevel + 1,
        )


def _kept_codecs(
    document: dict[str, Any], dtype: np.dtype[Any]
) -> tuple[dict[str, Any], list[str]]:
    """A document with lossless codecs only, with checksums where they are an option.

    The second value has the names of the codecs that were replaced.
    """
    document = copy.deepcopy(document)
    if document["zarr_format"] == 3:
        document["codecs"], dropped = _kept_chain(document["codecs"], dtype)
        return document, dropped
    chain = [
        *(document.get("filters") or ()),
        *([document["compressor"]] if document.get("compressor") else ()),
    ]
    if dropped := [codec["id"] for codec in chain if not _is_lossless(codec["id"], codec, dtype)]:
        document.update(filters=None, compressor={"id": "zstd", "level": 3, "checksum": True})
    elif document.get("compressor") and document["compressor"]["id"] == "zstd":
        document["compressor"]["checksum"] = True
    return document, dropped


def _kept_chain(codecs: list[Any], dtype: np.dtype[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    kept: list[dict[str, Any]] = [
        {"name": codec} if isinstance(codec, str) else codec for codec in codecs
    ]
    if dropped := [
        codec["name"]
        for codec in kept
        if not _is_lossless(codec["name"], codec.get("configuration", {}), dtype)
    ]:
        endian = next((codec for codec in kept if codec["name"] in ("bytes", "endian")), None)
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        return [
            endian or little,
            {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
        ], dropped
    for codec in kept:
        settings = codec.get("configuration", {})
        if codec["name"] in ("zstd", "numcodecs.zstd"):
            codec["configuration"] = {**settings, "checksum": True}
        elif codec["name"] == "sharding_indexed":
            settings["codecs"], inner = _kept_chain(settings["codecs"], dtype)
            dropped += inner
    return kept, dropped


def _is_lossless(name: str, settings: dict[str, Any], dtype: np.dtype[Any]) -> bool:
    name = name.removeprefix("numcodecs.")
    if name == "delta":  # differences of floats are rounded, and narrow ones overflow
        stored = np.dtype(settings.get("astype") or settings.get("dtype") or dtype)
        return dtype.kind in "iu" and stored.kind in "iu" and stored.itemsize >= dtype.itemsize
    if name == "packbits":
        return dtype.kind == "b"
    return name in _LOSSLESS

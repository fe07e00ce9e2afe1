"""How a zarr array lies in its store (chunks, shards, codecs, byte order, names of chunks), taken over from the input to the output."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

__all__ = ["Layout", "create_as", "read_layout", "tell_dropped"]

_LOSSLESS = {
    *("adler32", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "endian", "fletcher32", "gzip", "jenkins_lookup3"),
    *("lz4", "lzma", "packbits", "sharding_indexed", "shuffle", "transpose", "zlib", "zstd"),
}
"""Codecs that give back what they are given, whatever that is."""


@dataclass(frozen=True)
class Layout:
    """The description of an array in its store, word for word.

    `document` is ``zarr.json`` or ``.zarray``, `attributes` what version 2 has beside it in ``.zattrs``, `dropped` names the codecs of the
    input that are not among the document's any more.
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
        attributes = {key: value for key, value in self.attributes.items() if key != "_ARRAY_DIMENSIONS"}
        return replace(self, document=document, attributes=attributes, shape=tuple(self.shape[axis] for axis in order))


def _reorder_codecs(codecs: list[dict[str, Any]], order: list[int]) -> None:
    for codec in codecs:
        settings = codec.get("configuration", {})
        if codec["name"] == "transpose":
            settings["order"] = order = [order.index(axis) for axis in settings["order"]]
        elif codec["name"] == "sharding_indexed":
            settings["chunk_shape"] = [settings["chunk_shape"][axis] for axis in order]
            _reorder_codecs(settings["codecs"], order)


def read_layout(array: Any, folder: Path | None = None) -> Layout:
    """The layout of an array, word for word where it lies in a `folder`."""
    from zarr.core.buffer import default_buffer_prototype

    name = ".zarray" if array.metadata.zarr_format == 2 else "zarr.json"
    if folder is not None and (folder / name).is_file():
        content = (folder / name).read_bytes()
    else:  # in another store, or only its group describes it (consolidated metadata)
        content = array.metadata.to_buffer_dict(default_buffer_prototype())[name].to_bytes()
    dtype = np.dtype(array.dtype)
    kept, dropped = _kept_codecs(json.loads(content), dtype)
    return Layout(kept, dict(array.attrs), tuple(array.shape), dtype.newbyteorder("="), tuple(dropped))


def create_as(layout: Layout, shape: tuple[int, ...], names: Sequence[str] | None = None, folder: Path | None = None) -> Any:
    """A new array with a layout, in a folder or else in memory; `names` are those of its axes, for version 3.

    All chunks are written, empty ones too: only so is a chunk that was lost told from a black one.
    """
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    document = {**layout.document, "shape": list(shape)}
    version: Literal[2, 3] = 2 if document["zarr_format"] == 2 else 3
    if version == 3 and names is not None:
        document["dimension_names"] = list(names)
    files = {".zarray": document, ".zattrs": layout.attributes} if version == 2 else {"zarr.json": document}
    contents = {name: json.dumps(content, indent=2).encode() for name, content in files.items()}
    if folder is None:
        buffer = default_buffer_prototype().buffer
        store: Any = zarr.storage.MemoryStore({name: buffer.from_bytes(content) for name, content in contents.items()})
    else:
        store = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(store, mode="r+", zarr_format=version)


def tell_dropped(codecs: Iterable[str], name: str, stacklevel: int) -> None:
    """Warn of codecs of the input that the output does not have."""
    if codecs := sorted(set(codecs)):
        warnings.warn(
            f"the codecs {', '.join(codecs)} of {name} lose digits or are not known here; zstd takes their place",
            stacklevel=stacklevel + 1,
        )


def _kept_codecs(document: dict[str, Any], dtype: np.dtype[Any]) -> tuple[dict[str, Any], list[str]]:
    """A document whose codecs lose nothing of what is written with them, with a checksum where that is a switch; the others' names."""
    document = copy.deepcopy(document)
    if document["zarr_format"] == 3:
        document["codecs"], dropped = _kept_chain(document["codecs"], dtype)
        return document, dropped
    chain = [*(document.get("filters") or ()), *([document["compressor"]] if document.get("compressor") else ())]
    if dropped := [codec["id"] for codec in chain if not _is_lossless(codec["id"], codec, dtype)]:
        document.update(filters=None, compressor={"id": "zstd", "level": 3, "checksum": True})
    elif document.get("compressor") and document["compressor"]["id"] == "zstd":
        document["compressor"]["checksum"] = True
    return document, dropped


def _kept_chain(codecs: list[Any], dtype: np.dtype[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    kept: list[dict[str, Any]] = [{"name": codec} if isinstance(codec, str) else codec for codec in codecs]
    if dropped := [codec["name"] for codec in kept if not _is_lossless(codec["name"], codec.get("configuration", {}), dtype)]:
        endian = next((codec for codec in kept if codec["name"] in ("bytes", "endian")), None)
        little: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
        return [endian or little, {"name": "zstd", "configuration": {"level": 3, "checksum": True}}], dropped
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
    if name == "delta":  # differences of floats are rounded, narrower ones overflow
        stored = np.dtype(settings.get("astype") or settings.get("dtype") or dtype)
        return dtype.kind in "iu" and stored.kind in "iu" and stored.itemsize >= dtype.itemsize
    if name == "packbits":
        return dtype.kind == "b"
    return name in _LOSSLESS

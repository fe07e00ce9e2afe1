"""How a zarr array lies in its store (chunks, shards, codecs, byte order, names of chunks), taken over from the input to the output."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Layout", "create_as", "read_layout"]

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


def read_layout(folder: Path, array: Any) -> Layout:
    """The layout of the array in `folder`."""
    from zarr.core.buffer import default_buffer_prototype

    name = ".zarray" if array.metadata.zarr_format == 2 else "zarr.json"
    if (folder / name).is_file():
        content = (folder / name).read_bytes()
    else:  # only the group describes it (consolidated metadata)
        content = array.metadata.to_buffer_dict(default_buffer_prototype())[name].to_bytes()
    dtype = np.dtype(array.dtype)
    kept, dropped = _kept_codecs(json.loads(content), dtype)
    return Layout(kept, dict(array.attrs), tuple(array.shape), dtype.newbyteorder("="), tuple(dropped))


def create_as(folder: Path, layout: Layout, shape: tuple[int, ...], names: Sequence[str]) -> Any:
    """A new array with a layout, in a folder; `names` are those of its axes, for version 3.

    All chunks are written, empty ones too: only so is a chunk that was lost told from a black one.
    """
    import zarr

    document = {**layout.document, "shape": list(shape)}
    folder.mkdir(parents=True, exist_ok=True)
    if document["zarr_format"] == 2:
        (folder / ".zarray").write_text(json.dumps(document, indent=2), "utf-8")
        (folder / ".zattrs").write_text(json.dumps(layout.attributes, indent=2), "utf-8")
    else:
        document["dimension_names"] = list(names)
        (folder / "zarr.json").write_text(json.dumps(document, indent=2), "utf-8")
    with zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(folder, mode="r+", zarr_format=document["zarr_format"])


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

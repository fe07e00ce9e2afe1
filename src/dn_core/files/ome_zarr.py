"""Reading OME-Zarr 0.4 and 0.5 and plain zarr arrays, piece by piece; of a pyramid, level 0."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dn_core.errors import ImageFileError
from dn_core.files.image import (
    ImageFile,
    check_numeric_dtype,
    check_pixel_count,
    printable,
    reading,
    share,
)
from dn_core.files.ome_zarr_metadata import axis_letters, image_metadata
from dn_core.files.zarr_chunks import ZarrSource
from dn_core.files.zarr_layout import read_layout

__all__ = ["is_zarr", "open_zarr"]

MAX_CHUNK_BYTES = 2**32
"""The most that one chunk may decode to."""


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def open_zarr(path: Path, *, missing: str | None = None) -> ImageFile:
    """Open a zarr array, or level 0 of an OME-Zarr image."""
    import zarr

    with reading(path):
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return _plain(path, node, missing)
        notes: list[str] = []
        if "bioformats2raw.layout" in node.attrs and "0" in node:
            node = node["0"]
            notes.append("a collection of images; the first is used")
        return _ome_image(path, node, notes, missing)


def _plain(path: Path, array: Any, missing: str | None) -> ImageFile:
    _check_array(path, array)
    source = ZarrSource(array, path)
    names = getattr(array.metadata, "dimension_names", None)
    axes = axis_letters(names or ())
    metadata: dict[str, Any] = {
        "zarr_format": array.metadata.zarr_format,
        "layouts": {"0": read_layout(array, path)},
    }
    if {"Y", "X"} <= set(axes):
        metadata["dimension_names"] = names
    else:
        axes = "YX".rjust(array.ndim, "Q")
    note = _missing(source, missing)
    return ImageFile(path, source, axes, "zarr", metadata, (note,) if note else (), note)


def _ome_image(path: Path, group: Any, notes: list[str], missing: str | None) -> ImageFile:
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales")
    if not multiscales:
        raise ImageFileError(
            f"{printable(path)} is a zarr group without an OME-Zarr image (it holds "
            f"{sorted(group)[:10]}). Give the path of an image or array inside it."
        )
    first = multiscales[0]
    names = [str(dataset["path"]) for dataset in first["datasets"]]
    found = {name: _level(path, group, name) for name in names}
    levels = {name: level for name, level in found.items() if level is not None}
    if names[0] not in levels:
        raise ImageFileError(
            f"{printable(path)} lacks level {names[0]!r}, which its metadata name. Copy or export "
            "it again."
        )
    array = levels[names[0]]
    _check_array(path, array)
    source = ZarrSource(array, path)
    described = first.get("axes") or list("tczyx"[-source.ndim :])
    axes = axis_letters([axis["name"] if isinstance(axis, dict) else axis for axis in described])
    if len(axes) != source.ndim:
        raise ImageFileError(
            f"{printable(path)} must have {len(axes)} axes, as its metadata say, got "
            f"{source.ndim}. Export it again."
        )
    missing_chunks = _missing(source, missing)
    metadata = {
        **image_metadata(first, described, ome),
        "zarr_format": array.metadata.zarr_format,
        "version": str(ome.get("version") or first.get("version") or ""),
        "attributes": attributes,
        "levels": [(name, tuple(level.shape)) for name, level in levels.items()],
        "layouts": {name: read_layout(level, path / level.path) for name, level in levels.items()},
    }
    notes += _ome_notes(group, multiscales, found)
    notes += [missing_chunks] if missing_chunks else []
    return ImageFile(path, source, axes, "ome-zarr", metadata, tuple(notes), missing_chunks)


def _ome_notes(group: Any, multiscales: list[Any], levels: dict[str, Any]) -> list[str]:
    notes = []
    if "labels" in group:
        notes.append("the image has labels; they are not copied to an output")
    if len(multiscales) > 1:
        notes.append(f"{len(multiscales)} images in the file; the first is used")
    if len(levels) > 1:
        notes.append(f"pyramid of {len(levels)} levels; level 0 is used")
    if lost := [name for name, level in levels.items() if level is None]:
        notes.append(
            f"levels of the pyramid are missing ({', '.join(lost)}); an output will not have them"
        )
    return notes


def _level(path: Path, group: Any, name: str) -> Any:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ImageFileError(
            f"the levels of {printable(path)} must be inside it, got {name!r}. Export it again."
        )
    return group.get(name)


def _check_array(path: Path, array: Any) -> None:
    check_pixel_count(path, array.shape)
    check_numeric_dtype(path, np.dtype(array.dtype))
    if array.ndim < 2:
        raise ImageFileError(
            f"{printable(path)} must have at least 2 axes, got {array.ndim} (shape {array.shape}). "
            "Give the path of an image."
        )
    nbytes = math.prod(array.shards or array.chunks) * np.dtype(array.dtype).itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise ImageFileError(
            f"{printable(path)} must have chunks of at most {MAX_CHUNK_BYTES} bytes, got {nbytes}. "
            "Save it with smaller chunks."
        )


def _missing(source: ZarrSource, missing: str | None) -> str:
    """Number and share of the missing chunks; an error if none may be missing."""
    count = source.count
    if missing == "refuse" and count.missing:
        raise ImageFileError(
            f"{source.name} lacks {share(count.missing, count.total, 'chunks')}: it is "
            "incomplete, or its writer left out empty chunks. Copy it again, or read them as "
            f'{count.fill} with missing="fill".'
        )
    if missing == "refuse" and count.unknown:
        raise ImageFileError(f'{source.name}: {count.in_words}. Use missing="fill" to accept that.')
    return count.in_words

"""OME-Zarr 0.4 and 0.5 and bare zarr arrays. Level 0 is read; when writing, the further levels are made again."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import (
    SYMBOLS,
    ImageFile,
    Target,
    check_dtype,
    check_pixel_count,
    check_written,
    printable,
    reading,
    share,
)
from dn_core.files.pyramid import BAND_BYTES, block_means
from dn_core.files.zarr_blocks import BlockWriter
from dn_core.files.zarr_chunks import ZarrSource
from dn_core.files.zarr_layout import Layout, create_as, read_layout, tell_dropped
from dn_core.safe_write import replaced_folder

__all__ = ["check_zarr", "create_zarr", "is_zarr", "open_zarr", "zarr_zstd"]

MAX_CHUNK_BYTES = 2**32
"""What one chunk may decode to."""

_WORDS = {symbol: word for word, symbol in SYMBOLS.items()}
_TYPES = {"T": "time", "C": "channel", "Z": "space", "Y": "space", "X": "space"}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


# Reading


def open_zarr(path: Path, *, missing: str | None = None) -> ImageFile:
    """Open a zarr array, or level 0 of an OME-Zarr image."""
    import zarr

    with reading(path):
        node = zarr.open(path, mode="r")
        if isinstance(node, zarr.Array):
            return _bare(path, node, missing)
        notes: list[str] = []
        if "bioformats2raw.layout" in node.attrs and "0" in node:
            node = node["0"]
            notes.append("a collection of images; the first is used")
        return _ome(path, node, notes, missing)


def _bare(path: Path, array: Any, missing: str | None) -> ImageFile:
    _check_array(path, array)
    source = ZarrSource(array, path)
    names = getattr(array.metadata, "dimension_names", None)
    axes, said = _letters(names or ()), {"dimension_names": names}
    if not {"Y", "X"} <= set(axes):
        axes, said = "YX".rjust(array.ndim, "Q"), {}
    metadata = {"zarr_format": array.metadata.zarr_format, "layouts": {"0": read_layout(array, path)}, **said}
    words = _missing(source, missing)
    return ImageFile(path, source, axes, "zarr", metadata, (words,) if words else (), words)


def _ome(path: Path, group: Any, notes: list[str], missing: str | None) -> ImageFile:
    attributes = dict(group.attrs)
    ome = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales")
    if not multiscales:
        raise ImageFileError(
            f"{printable(path)} is a zarr group without an OME-Zarr image in it (it holds {sorted(group)[:10]}). "
            "Give the path of an image or array inside it."
        )
    first = multiscales[0]
    paths = [str(dataset["path"]) for dataset in first["datasets"]]
    levels = {name: _level(path, group, name) for name in paths}
    array = levels[paths[0]]
    if array is None:
        raise ImageFileError(f"{printable(path)} lacks level {paths[0]!r}, which its description names. Copy or export it again.")
    _check_array(path, array)
    source = ZarrSource(array, path)
    if "labels" in group:
        notes.append("there are labels beside the image; they are not copied to an output")
    if len(multiscales) > 1:
        notes.append(f"{len(multiscales)} images in the file; the first is used")
    if len(paths) > 1:
        notes.append(f"pyramid of {len(paths)} levels; level 0 is used")
    if lost := [name for name, level in levels.items() if level is None]:
        notes.append(f"levels of the pyramid are missing ({', '.join(lost)}); an output will not have them")
    said = first.get("axes") or list("tczyx"[-source.ndim :])
    metadata = _metadata(first, said, ome)
    metadata.update(
        zarr_format=array.metadata.zarr_format,
        version=str(ome.get("version") or first.get("version") or ""),
        attributes=attributes,
        levels=[(name, tuple(level.shape)) for name, level in levels.items() if level is not None],
        layouts={name: read_layout(level, path / level.path) for name, level in levels.items() if level is not None},
    )
    axes = _letters([axis["name"] if isinstance(axis, dict) else axis for axis in said])
    if len(axes) != source.ndim:
        raise ImageFileError(f"{printable(path)} describes {len(axes)} axes, its data have {source.ndim}. Export it again.")
    if words := _missing(source, missing):
        notes.append(words)
    return ImageFile(path, source, axes, "ome-zarr", metadata, tuple(notes), words)


def _level(path: Path, group: Any, name: str) -> Any:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ImageFileError(f"{printable(path)} names a level outside itself ({name!r}); a path inside it is expected. Export it again.")
    return group.get(name)


def _check_array(path: Path, array: Any) -> None:
    check_pixel_count(path, array.shape)
    check_dtype(path, np.dtype(array.dtype))
    if array.ndim < 2:
        raise ImageFileError(f"{printable(path)} has {array.ndim} axes (shape {array.shape}); an image with at least two is expected.")
    nbytes = math.prod(array.shards or array.chunks) * np.dtype(array.dtype).itemsize
    if nbytes > MAX_CHUNK_BYTES:
        raise ImageFileError(
            f"{printable(path)} has chunks of {nbytes} bytes, at most {MAX_CHUNK_BYTES} are read. Save it with smaller chunks."
        )


def _missing(source: ZarrSource, missing: str | None) -> str:
    """Words for the chunks that are missing, or an error where none may be."""
    count = source.count
    if missing == "refuse" and count.missing:
        raise ImageFileError(
            f"{source.name} lacks {share(count.missing, count.total, 'chunks')}: it is incomplete, or its writer left out empty chunks. "
            f'Copy it again, or have them read as {count.fill} with missing="fill".'
        )
    if missing == "refuse" and count.unknown:
        raise ImageFileError(f'{source.name}: {count.in_words}. Use missing="fill" to accept that.')
    return count.in_words


def _letters(names: Any) -> str:
    """A letter for each axis; Q for what is neither time, channel nor space, or comes twice."""
    words = {"TIME": "T", "CHANNEL": "C", "SAMPLE": "S", "SAMPLES": "S"}
    letters = ""
    for name in names:
        word = str(name or "").upper()
        letter = words.get(word, word)
        letters += letter if letter in tuple("TCZYXS") and letter not in letters else "Q"
    return letters


def _metadata(first: dict[str, Any], said: list[Any], ome: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    scale = np.ones(len(said))
    for holder in (first["datasets"][0], first):
        for transformation in holder.get("coordinateTransformations") or ():
            if transformation.get("type") == "scale" and "scale" in transformation:
                scale = scale * np.asarray(transformation["scale"], float)
    axes = [(axis["name"].upper(), axis.get("unit")) if isinstance(axis, dict) else (axis.upper(), None) for axis in said]
    units = {name: SYMBOLS.get(unit, unit) for name, unit in axes if unit}
    sizes = {name: float(size) for (name, _), size in zip(axes, scale, strict=True)}
    if spatial := {name: sizes[name] for name in "XYZ" if name in sizes and name in units}:
        metadata["pixel_size"] = spatial
        metadata["pixel_unit"] = {name: units[name] for name in spatial}
    if "T" in units:
        metadata["time_increment"], metadata["time_unit"] = sizes["T"], units["T"]
    labels = [channel.get("label") for channel in (ome.get("omero") or {}).get("channels") or ()]
    if labels and all(labels):
        metadata["channel_names"] = labels
    return metadata


# Writing


def check_zarr(path: Path, like: ImageFile) -> None:
    """Refuse, before anything is computed, what OME-Zarr cannot hold."""
    if path.exists() and not (path.is_dir() and is_zarr(path)):
        raise FileExistsError(17, "the output exists and is no zarr, so it is not replaced; choose another name", str(path))
    if like.rgb:
        raise ValueError(
            f"axes {like.axes} cannot be written as OME-Zarr, which has no RGB samples. Choose a name that ends in .tif or .png."
        )
    # Other formats may have any order: they are written in OME-Zarr's.
    ordered = like.format != "ome-zarr" and {"Y", "X"} <= set(like.axes)
    if not 2 <= len(like.axes) <= 5 or not (ordered or like.axes[-2:] == "YX") or len(set(like.axes)) != len(like.axes):
        raise ValueError(f"axes {like.axes} cannot be written as OME-Zarr; two to five different ones that end in YX are expected.")


@contextlib.contextmanager
def create_zarr(path: Path, like: ImageFile) -> Iterator[Target]:
    """Give a `Target` over level 0 of a new OME-Zarr; its further levels are made at the end."""
    import zarr

    version2 = like.metadata.get("zarr_format") == 2
    order = sorted(range(len(like.axes)), key=lambda index: "TQCZYX".index(like.axes[index]))
    if like.format != "ome-zarr" and order != list(range(len(order))):
        stored = np.broadcast_to(np.zeros((), like.dtype), [like.shape[index] for index in order])
        layouts = {name: layout.reordered(order) for name, layout in like.metadata.get("layouts", {}).items()}
        metadata = {**like.metadata, "layouts": layouts}
        like = dataclasses.replace(like, source=stored, axes="".join(like.axes[index] for index in order), metadata=metadata)
    else:
        order = list(range(len(order)))
    levels = like.metadata.get("levels") or [("0", like.shape)]
    if levels[0][1] != like.shape:  # not the image whose pyramid this was
        levels = [(levels[0][0], like.shape)]
    dropped = (name for level in levels if (layout := _layout(like, *level)) for name in layout.dropped)
    tell_dropped(dropped, printable(like.path), stacklevel=4)
    with replaced_folder(path) as temporary, _no_late_writes(temporary):
        group = zarr.create_group(temporary, zarr_format=2 if version2 else 3)
        array = _create_level(group, temporary, levels[0][0], like, like.shape, version2)
        writer = BlockWriter(array, temporary.parent)
        target = Target(_Reordered(writer, order))
        try:
            yield target
            writer.flush()
        finally:
            target.close()
            writer.close()
        factors = _add_levels(group, temporary, array, levels, like, version2)
        group.attrs.update(_attributes(like, factors, version2))
        check_written(temporary, open_zarr(temporary, missing="refuse"), like.shape, like.dtype)


@contextlib.contextmanager
def _no_late_writes(folder: Path) -> Iterator[None]:
    """After an error, remove the folder until it stays away: zarr's other threads may still be writing chunks."""
    try:
        yield
    except BaseException:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)
            if not folder.exists():
                break
        raise


class _Reordered:
    """A zarr array seen with its axes in the image's order; OME-Zarr demands time, channel, space."""

    def __init__(self, array: Any, order: list[int]) -> None:
        self._array, self._order = array, order
        self.shape = tuple(array.shape[order.index(axis)] for axis in range(array.ndim))
        self.dtype = array.dtype

    def _full(self, index: Any) -> tuple[Any, ...]:
        given = index if isinstance(index, tuple) else (index,)
        if ... not in given:
            given = (*given, ...)
        at = given.index(...)
        return (*given[:at], *(slice(None),) * (len(self.shape) - len(given) + 1), *given[at + 1 :])

    def _kept(self, full: tuple[Any, ...]) -> tuple[list[int], list[int]]:
        """The axes that an index keeps, in the image's order and in the stored order."""
        kept = [axis for axis, item in enumerate(full) if isinstance(item, slice)]
        return kept, [axis for axis in self._order if axis in kept]

    def __setitem__(self, index: Any, block: Any) -> None:
        full = self._full(index)
        kept, stored = self._kept(full)
        shape = [len(range(*full[axis].indices(self.shape[axis]))) for axis in kept]
        block = np.broadcast_to(np.asarray(block, self.dtype), shape).transpose([kept.index(axis) for axis in stored])
        self._array[tuple(full[axis] for axis in self._order)] = block

    def __getitem__(self, index: Any) -> NDArray[Any]:
        full = self._full(index)
        kept, stored = self._kept(full)
        block = np.asarray(self._array[tuple(full[axis] for axis in self._order)])
        turned: NDArray[Any] = np.transpose(block, [stored.index(axis) for axis in kept])
        return turned


def _create_level(group: Any, folder: Path, name: str, like: ImageFile, shape: tuple[int, ...], version2: bool) -> Any:
    """An array for a level: in the layout that it had in the input, or in our own."""
    if layout := _layout(like, name, shape):
        if "/" in name:
            group.require_group(str(PurePosixPath(name).parent))
        return create_as(layout, shape, _axis_names(like), folder / name)
    chunks = like.source.chunks if like.format in ("ome-zarr", "zarr") and hasattr(like.source, "chunks") else None
    chunks = chunks or (1,) * (len(shape) - 2) + (512, 512)
    options: dict[str, Any] = {"dimension_names": _axis_names(like)}
    if version2:
        import numcodecs

        options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        compressor: Any = numcodecs.Zstd(level=3, checksum=True)
    else:
        compressor = zarr_zstd()
    return group.create_array(
        name,
        shape=shape,
        dtype=like.dtype,
        chunks=tuple(min(chunk, size) for chunk, size in zip(chunks, shape, strict=True)),
        compressors=compressor,
        fill_value=0,
        # Empty chunks too: only so is a chunk that was lost told from a black one.
        config={"write_empty_chunks": True},
        **options,
    )


def _layout(like: ImageFile, name: str, shape: tuple[int, ...]) -> Layout | None:
    """How a level lay in the input, if it was of this shape and dtype."""
    layout: Layout | None = like.metadata.get("layouts", {}).get(name)
    return layout if layout and layout.shape == shape and layout.dtype == like.dtype else None


def _axis_names(like: ImageFile) -> list[str]:
    """What the description of the image will call its axes."""
    multiscale, same = _multiscale(like)
    return [axis["name"] for axis in (same and multiscale.get("axes")) or _axes(like)]


def zarr_zstd() -> Any:
    """The compression of zarr 3, with a checksum: without one most flipped bits go unnoticed."""
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=3, checksum=True)


def _add_levels(
    group: Any, folder: Path, array: Any, levels: list[Any], like: ImageFile, version2: bool
) -> dict[str, tuple[int, ...]]:
    """Make the further levels by block means; give the factors in each axis of all that were kept."""
    kept: dict[str, tuple[int, ...]] = {levels[0][0]: (1,) * len(like.shape)}
    total = (1,) * len(like.shape)
    for name, shape in levels[1:]:
        steps = _steps(tuple(array.shape), tuple(shape))
        if steps is None:
            warnings.warn(
                f"level {name!r} of the pyramid is no whole shrinking of the level before in y and x; it is left out", stacklevel=4
            )
            continue
        smaller = _create_level(group, folder, name, like, tuple(shape), version2)
        writer = BlockWriter(smaller, folder.parent)
        try:
            _shrink(array, writer, smaller.chunks, steps)
            writer.flush()
        finally:
            writer.close()
        total = tuple(a * b for a, b in zip(total, steps, strict=True))
        kept[name], array = total, smaller
    return kept


def _steps(large: tuple[int, ...], small: tuple[int, ...]) -> tuple[int, ...] | None:
    if large[:-2] != small[:-2]:
        return None
    steps = tuple(max(1, round(a / b)) for a, b in zip(large, small, strict=True))
    whole = all(b in (a // step, -(-a // step)) for a, b, step in zip(large, small, steps, strict=True))
    return steps if whole else None


def _shrink(large: Any, small: BlockWriter, chunks: tuple[int, ...], steps: tuple[int, ...]) -> None:
    """Block means, in parts whose size is bounded and in which whole chunks are read."""
    part = [max(-(-chunk // step), own) for chunk, own, step in zip(large.chunks, chunks, steps, strict=True)]
    nbytes = math.prod(part) * math.prod(steps) * large.dtype.itemsize
    for axis in (small.ndim - 1, small.ndim - 2):  # chunks beside each other, as many as there is room for
        fitting = max(1, min(BAND_BYTES // nbytes, -(-small.shape[axis] // part[axis])))
        part[axis], nbytes = part[axis] * fitting, nbytes * fitting
    for start in itertools.product(*(range(0, size, length) for size, length in zip(small.shape, part, strict=True))):
        there = tuple(slice(at, min(at + length, size)) for at, length, size in zip(start, part, small.shape, strict=True))
        block = np.asarray(large[tuple(slice(s.start * step, s.stop * step) for s, step in zip(there, steps, strict=True))])
        starts = [np.arange(0, extent, step) for extent, step in zip(block.shape[-2:], steps[-2:], strict=True)]
        mean = np.empty([s.stop - s.start for s in there], small.dtype)
        for plane in np.ndindex(*block.shape[:-2]):
            mean[plane] = block_means(block[plane], *starts)
        small[there] = mean


def _attributes(like: ImageFile, factors: dict[str, tuple[int, ...]], version2: bool) -> dict[str, Any]:
    """The OME attributes of the source with the levels that there are now, or new ones."""
    known = like.metadata
    version = "0.4" if version2 else "0.5"
    attributes = dict(known.get("attributes", {}))
    old = dict(attributes.get("ome", attributes))
    multiscale, same = _multiscale(like)
    if same:
        datasets = {dataset["path"]: dataset for dataset in multiscale["datasets"]}
        multiscale["datasets"] = [datasets[name] for name in factors]
    else:
        scale = _scale(like)
        multiscale = {"name": multiscale.get("name", like.path.name), "axes": _axes(like)}
        multiscale["datasets"] = [
            {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [s * f for s, f in zip(scale, factor, strict=True)]}]}
            for name, factor in factors.items()
        ]
    names = known.get("channel_names", ())
    if "omero" not in old and "C" in like.axes and len(names) == like.shape[like.axes.index("C")]:
        old["omero"] = {"channels": [{"label": name} for name in names]}
    old.pop("version", None)
    if version2:
        return {**old, "multiscales": [{**multiscale, "version": version}]}
    multiscale.pop("version", None)
    ome = {**(old if "ome" in attributes or not attributes else {"omero": old["omero"]} if "omero" in old else {})}
    ome.update(version=version, multiscales=[multiscale])
    others = {key: value for key, value in attributes.items() if key not in ("ome", "multiscales", "omero")}
    return {**others, "ome": ome}


def _multiscale(like: ImageFile) -> tuple[dict[str, Any], bool]:
    """The description of the input, and whether it is one of the version that is written and thus stays."""
    attributes = like.metadata.get("attributes", {})
    multiscale = dict((dict(attributes.get("ome", attributes)).get("multiscales") or [{}])[0])
    return multiscale, like.metadata.get("version") == ("0.4" if like.metadata.get("zarr_format") == 2 else "0.5")


def _axes(like: ImageFile) -> list[dict[str, str]]:
    axes = []
    for letter in like.axes:
        axis = {"name": letter.lower(), **({"type": _TYPES[letter]} if letter in _TYPES else {})}
        unit = like.metadata.get("time_unit") if letter == "T" else like.metadata.get("pixel_unit", {}).get(letter)
        axes.append({**axis, "unit": _WORDS[unit]} if unit in _WORDS else axis)
    return axes


def _scale(like: ImageFile) -> list[float]:
    sizes = {**like.metadata.get("pixel_size", {}), "T": like.metadata.get("time_increment", 1.0)}
    return [float(sizes.get(letter, 1.0)) for letter in like.axes]

"""Writing OME-Zarr 0.4 and 0.5: level 0 block by block, then the smaller levels by block means."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
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

from dn_core.files.image import ImageFile, Target, check_written, printable
from dn_core.files.ome_zarr import is_zarr, open_zarr
from dn_core.files.ome_zarr_metadata import axis_names, ome_attributes
from dn_core.files.pyramid import BAND_BYTES, block_means
from dn_core.files.zarr_blocks import BlockWriter
from dn_core.files.zarr_layout import Layout, create_as, warn_of_dropped_codecs
from dn_core.safe_write import atomic_folder

__all__ = ["check_zarr", "create_zarr", "zarr_zstd"]


def check_zarr(path: Path, like: ImageFile) -> None:
    """Refuse, before anything is computed, what OME-Zarr cannot hold."""
    if path.exists() and not (path.is_dir() and is_zarr(path)):
        raise FileExistsError(
            errno.EEXIST,
            "the output exists and is not a zarr, so it is not replaced; choose another name",
            str(path),
        )
    if like.rgb:
        raise ValueError(
            f"axes {like.axes} cannot be written as OME-Zarr, which has no RGB samples. Choose a "
            "name that ends in .tif or .png."
        )
    # Images of other formats may have any order of axes: they are written in OME-Zarr's.
    ordered = like.format != "ome-zarr" and {"Y", "X"} <= set(like.axes)
    if (
        not 2 <= len(like.axes) <= 5
        or not (ordered or like.axes[-2:] == "YX")
        or len(set(like.axes)) != len(like.axes)
    ):
        raise ValueError(
            f"axes {like.axes} cannot be written as OME-Zarr; they must be two to five different "
            "ones that end in YX. Transpose the image first, or choose a name that ends in .tif."
        )


@contextlib.contextmanager
def create_zarr(path: Path, like: ImageFile) -> Iterator[Target]:
    """Create an OME-Zarr whose level 0 is the `Target`; the other levels are made from it."""
    import zarr

    version2 = like.metadata.get("zarr_format") == 2
    like, order = _in_ome_order(like)
    levels = like.metadata.get("levels") or [("0", like.shape)]
    if levels[0][1] != like.shape:  # the pyramid of another image
        levels = [(levels[0][0], like.shape)]
    dropped = (
        name for level in levels if (layout := _layout(like, *level)) for name in layout.dropped
    )
    warn_of_dropped_codecs(dropped, printable(like.path), stacklevel=4)
    with atomic_folder(path) as temporary, _no_late_writes(temporary):
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
        smallest = group[list(factors)[-1]]
        group.attrs.update(ome_attributes(like, factors, version2, smallest))
        check_written(temporary, open_zarr(temporary, missing="refuse"), like.shape, like.dtype)


def _in_ome_order(like: ImageFile) -> tuple[ImageFile, list[int]]:
    """The image with its axes in OME-Zarr's order, and which axis of the input each one is.

    OME-Zarr demands time, channel, then space. An image that is OME-Zarr already keeps its order.
    """
    same = list(range(len(like.axes)))
    order = sorted(same, key=lambda axis: "TQCZYX".index(like.axes[axis]))
    if like.format == "ome-zarr" or order == same:
        return like, same
    layouts = {
        name: layout.reordered(order) for name, layout in like.metadata.get("layouts", {}).items()
    }
    reordered = dataclasses.replace(
        like,
        source=np.broadcast_to(np.zeros((), like.dtype), [like.shape[axis] for axis in order]),
        axes="".join(like.axes[axis] for axis in order),
        metadata={**like.metadata, "layouts": layouts},
    )
    return reordered, order


@contextlib.contextmanager
def _no_late_writes(folder: Path) -> Iterator[None]:
    """After an error, remove the folder until it stays removed.

    zarr's own threads may still be writing chunks, which creates it again.
    """
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
    """A view of a zarr array with its axes in the order of the image.

    `order` gives, for each axis of the array, the axis of the image that is stored there: with
    ``order = [2, 0, 1]`` an image ZYX-like ``(a, b, c)`` is stored as ``(c, a, b)``. An index of
    the image is completed to one item per axis and permuted by `order`. A block has only the axes
    that its index keeps (slices, not integers), so it is transposed by their permutation alone.
    """

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
        block = np.broadcast_to(np.asarray(block, self.dtype), shape).transpose(
            [kept.index(axis) for axis in stored]
        )
        self._array[tuple(full[axis] for axis in self._order)] = block

    def __getitem__(self, index: Any) -> NDArray[Any]:
        full = self._full(index)
        kept, stored = self._kept(full)
        block = np.asarray(self._array[tuple(full[axis] for axis in self._order)])
        transposed: NDArray[Any] = np.transpose(block, [stored.index(axis) for axis in kept])
        return transposed


def _create_level(
    group: Any, folder: Path, name: str, like: ImageFile, shape: tuple[int, ...], version2: bool
) -> Any:
    """Create the array of a level: in the layout that it had in the input, or in our own."""
    if layout := _layout(like, name, shape):
        if "/" in name:
            group.require_group(str(PurePosixPath(name).parent))
        return create_as(layout, shape, axis_names(like), folder / name)
    chunks = (
        like.source.chunks
        if like.format in ("ome-zarr", "zarr") and hasattr(like.source, "chunks")
        else None
    )
    chunks = chunks or (1,) * (len(shape) - 2) + (512, 512)
    options: dict[str, Any] = {"dimension_names": axis_names(like)}
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
        # Empty chunks too: only then can a lost chunk be told from a black one.
        config={"write_empty_chunks": True},
        **options,
    )


def _layout(like: ImageFile, name: str, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a level in the input, if it had this shape and dtype."""
    layout: Layout | None = like.metadata.get("layouts", {}).get(name)
    return layout if layout and layout.shape == shape and layout.dtype == like.dtype else None


def zarr_zstd() -> Any:
    """The compression of zarr 3, with a checksum: without one most flipped bits go unnoticed."""
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=3, checksum=True)


def _add_levels(
    group: Any, folder: Path, array: Any, levels: list[Any], like: ImageFile, version2: bool
) -> dict[str, tuple[int, ...]]:
    """Create the smaller levels by block means.

    Returns
    -------
    dict
        The levels that were written, each with its downsampling factor along each axis.
    """
    kept: dict[str, tuple[int, ...]] = {levels[0][0]: (1,) * len(like.shape)}
    total = (1,) * len(like.shape)
    for name, shape in levels[1:]:
        steps = _steps(tuple(array.shape), tuple(shape))
        if steps is None:
            warnings.warn(
                f"level {name!r} of the pyramid is not smaller than the level before by a whole "
                "factor in y and x; it is left out",
                stacklevel=4,
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
    whole = all(
        b in (a // step, -(-a // step)) for a, b, step in zip(large, small, steps, strict=True)
    )
    return steps if whole else None


def _shrink(
    large: Any, small: BlockWriter, chunks: tuple[int, ...], steps: tuple[int, ...]
) -> None:
    """Write the block means of a level, in parts of bounded size that read whole chunks."""
    lengths = [
        max(-(-chunk // step), own)
        for chunk, own, step in zip(large.chunks, chunks, steps, strict=True)
    ]
    nbytes = math.prod(lengths) * math.prod(steps) * large.dtype.itemsize
    # As many neighbouring chunks as there is room for.
    for axis in (small.ndim - 1, small.ndim - 2):
        fitting = max(1, min(BAND_BYTES // nbytes, -(-small.shape[axis] // lengths[axis])))
        lengths[axis], nbytes = lengths[axis] * fitting, nbytes * fitting
    for start in itertools.product(
        *(range(0, size, length) for size, length in zip(small.shape, lengths, strict=True))
    ):
        there = tuple(
            slice(at, min(at + length, size))
            for at, length, size in zip(start, lengths, small.shape, strict=True)
        )
        source = tuple(
            slice(part.start * step, part.stop * step)
            for part, step in zip(there, steps, strict=True)
        )
        block = np.asarray(large[source])
        starts = [
            np.arange(0, extent, step)
            for extent, step in zip(block.shape[-2:], steps[-2:], strict=True)
        ]
        mean = np.empty([s.stop - s.start for s in there], small.dtype)
        for plane in np.ndindex(*block.shape[:-2]):
            mean[plane] = block_means(block[plane], *starts)
        small[there] = mean

"""TIFF in its kinds: plain, OME-TIFF, ImageJ. Reading is lazy where the file allows it, writing goes block by block to its place."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import errno
import itertools
import logging
import math
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dn_core.errors import ImageFileError
from dn_core.files.image import (
    METRES,
    SYMBOLS,
    CheckedSource,
    ImageFile,
    Target,
    check_dtype,
    check_pixel_count,
    check_written,
    printable,
    reading,
    share,
)
from dn_core.files.raw import RawArray, open_raw, writing
from dn_core.files.tiff_layout import (
    MEMORY_BYTES,
    TiffLayout,
    layout_of,
    layout_of_levels,
    levels_of,
    rows_axis,
    scratch_array,
    write_in_layout,
)
from dn_core.files.tiff_tags import DESCRIPTION, SOFTWARE, WORDS, XMP, Tag, extra_tags, read_tags, text_tag, write_page_tags
from dn_core.safe_write import free_bytes, replaced_file

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = ["check_tiff", "create_tiff", "open_tiff", "tiff_kind"]

MAX_SEGMENT_BYTES = 2**29
"""What one compressed strip or tile may decode to; a gigabyte of zeros fits into a megabyte."""
MAX_EXPANSION = 2**14
"""How many times larger than its file a compressed image of over a GiB may be."""
EAGER_BYTES = 64 * 2**20
"""Up to this size a compressed image is decoded at once, which spares the import of zarr."""
CLASSIC_BYTES = 2**32 - 32 * 2**20
"""From here on BigTIFF is written; 32 MiB are left for tags and page directories."""

_OME_DTYPES = ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64", "complex64", "complex128")
_TIFF_DTYPES = (*_OME_DTYPES, "int64", "uint64", "float16")
_IMAGEJ_DTYPES = ("uint8", "uint16", "int16", "float32")
_SIZES = tuple(
    f"{name}{suffix}" for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement") for suffix in ("", "Unit")
)
_lock = threading.RLock()


# Reading


def open_tiff(path: Path, stack: contextlib.ExitStack, *, missing: str | None) -> ImageFile:
    """Open a TIFF for as long as `stack` lives."""
    import tifffile

    with reading(path), _errors_of_tifffile() as errors:
        tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False))
        if not tif.pages:
            raise ImageFileError(f"{printable(path)} is a TIFF without any image; it was cut off or never finished. Copy it again.")
        series = tif.series[0]
        pages = list(series.pages)  # loads the directories, which is when damage to them is noticed
        notes = _notes_and_refusals(path, tif, errors)
        check_pixel_count(path, series.shape)
        check_dtype(path, series.dtype)
        _check_colours(path, series)
        absent = [_check_planes(path, tif, series, pages, missing), _check_segments(path, series, pages, missing)]
        kind = _kind(tif, series)
        metadata = _metadata(tif, series, kind)
        source, axes = _source(path, stack, series, kind, metadata), series.axes.replace("I", "Q")
    if len(axes) < source.ndim:
        axes += "S"  # a palette was expanded
    words = " and ".join(filter(None, absent))
    if words:
        words = f"{words} are missing and were read as {series.keyframe.nodata:g}"
        notes = (*notes, words)
    return ImageFile(path, source, axes, kind, metadata, notes, words)


@contextlib.contextmanager
def _errors_of_tifffile() -> Iterator[list[str]]:
    """Collect what tifffile logs as errors: of several kinds of damage it is the only sign."""
    errors: list[str] = []
    thread = threading.get_ident()

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and record.thread == thread:
                errors.append(record.getMessage())

    logger, collector = logging.getLogger("tifffile"), Collector()
    with _lock:  # the logger is one for all threads
        propagate, level, disabled = logger.propagate, logger.level, logging.root.manager.disable
        logger.propagate = False
        logger.addHandler(collector)
        logger.setLevel(logging.ERROR)  # many programs silence tifffile, which must not silence damage
        if disabled >= logging.ERROR:
            logging.disable(logging.WARNING)
        try:
            yield errors
        finally:
            logger.removeHandler(collector)
            logger.propagate = propagate
            logger.setLevel(level)
            if disabled >= logging.ERROR:
                logging.disable(disabled)


def _notes_and_refusals(path: Path, tif: TiffFile, errors: list[str]) -> tuple[str, ...]:
    notes = []
    fatal = [message for message in errors if "OME series raised" not in message]
    if fatal:
        raise ImageFileError(
            f"{printable(path)} is damaged or cut off ({fatal[0]:.200}). A whole TIFF is expected; copy it again or export it again."
        )
    series = tif.series[0]
    if errors:
        notes.append("the OME description is damaged and is not used: the meaning of the axes is unknown")
    elif tif.is_ome and series.kind != "ome":
        notes.append("the OME description speaks of other files: only the pixels of this file are used, their axes are unknown")
    levels = levels_of(tif)
    if (count := len(tif.series) - len(set(levels) & set(tif.series))) > 1:
        named = f" ({', '.join(other.name for other in tif.series)})" if series.kind == "svs" else ""
        notes.append(f"{count} images in the file{named}; the first is used")
    if levels:
        notes.append(f"pyramid of {len(levels) + 1} levels; level 0 is used")
    page = series.keyframe
    if int(page.planarconfig) == 2 and (page.samplesperpixel == 4 or {1, 2} & {int(kind) for kind in page.extrasamples or ()}):
        notes.append(f"{page.samplesperpixel} samples in separate planes; each is a plane of the image, none is taken as alpha")
    return tuple(notes)


def _check_colours(path: Path, series: TiffPageSeries) -> None:
    page = series.keyframe
    name = {5: "CMYK", 8: "CIELAB", 9: "ICCLAB", 10: "ITULAB", 32844: "LOGL", 32845: "LOGLUV"}.get(int(page.photometric))
    if int(page.photometric) == 6 and int(page.compression) not in (6, 7, 33003, 33004, 33005, 33007, 34712, 34892, 50001):
        name = "YCbCr"  # only the codecs of photographs turn it to RGB while decoding
    if name:
        raise ImageFileError(f"{printable(path)} has {name} colours; grey, RGB or RGBA is expected. Convert it to RGB first.")


def _check_planes(path: Path, tif: TiffFile, series: TiffPageSeries, pages: list[Any], missing: str | None) -> str:
    """Compare the planes that the description promises with the pages that are there; words for those that are not."""
    absent = sum(page is None for page in pages)
    if absent and missing != "fill":  # no sparse file, but one that contradicts itself
        raise ImageFileError(
            f"{printable(path)} lacks {absent} of {len(pages)} planes that its OME description promises. A whole file is expected; "
            'export it again, or accept zeros for them with missing="fill".'
        )
    planes = math.prod(series.shape) // max(1, math.prod(series.keyframe.shape))
    if series.dataoffset is None and planes != len(pages):
        raise ImageFileError(f"{printable(path)} has {len(pages)} planes where its description promises {planes}. Export it again.")
    said = tif.shaped_metadata
    if series.kind != "ome" and said and "shape" in said[0] and math.prod(said[0]["shape"]) != math.prod(series.shape):
        raise ImageFileError(
            f"{printable(path)} holds {series.shape} where its description promises {tuple(said[0]['shape'])}. Export it again."
        )
    return share(absent, len(pages), "planes") if absent else ""


def _check_segments(path: Path, series: TiffPageSeries, pages: list[Any], missing: str | None) -> str:
    """Refuse strips and tiles that lie outside the file or would decode to too much; words for those that a sparse file leaves out."""
    size = path.stat().st_size
    nbytes = math.prod(series.shape) * series.dtype.itemsize
    there = [found for found in pages if found is not None]
    directories = sorted({7, *(found.offset for found in there), *(tag.valueoffset for tag in series.keyframe.tags)})
    if series.dataoffset is not None:
        if series.dataoffset + nbytes > size:
            raise ImageFileError(
                f"{printable(path)} is cut off: {series.dataoffset + nbytes} bytes are expected, it has {size}. Copy it again."
            )
        if series.dataoffset == 0:  # the file's own header
            raise ImageFileError(f"{printable(path)} has no pixels: it was never finished. Copy it again or export it again.")
        _check_apart(path, directories, [(series.dataoffset, nbytes)])
        return ""
    page = series.keyframe
    segments = math.prod(page.chunked)
    if int(page.compression) in (2, 3, 4) and page.bitspersample != 1:
        raise ImageFileError(
            f"{printable(path)} is damaged: {page.bitspersample} bits in a compression for 1. Copy it again or export it again."
        )
    if int(page.compression) != 1:
        largest = math.prod(page.chunks) * series.dtype.itemsize
        if largest > MAX_SEGMENT_BYTES:
            raise ImageFileError(
                f"{printable(path)} has compressed strips or tiles of {largest} bytes; at most {MAX_SEGMENT_BYTES} are read. "
                "Save it with smaller strips or tiles, or uncompressed."
            )
        if nbytes > max(2**30, MAX_EXPANSION * size):
            raise ImageFileError(
                f"{printable(path)} claims {nbytes} bytes of pixels in a file of {size} bytes; it is damaged or no real image."
            )
    needed = -(-page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample // 8)
    absent = sum(_check_page(path, found, size, segments, needed if page.is_contiguous else 0) for found in there)
    places = [place for found in there for place in zip(found.dataoffsets, found.databytecounts, strict=False) if place[1]]
    _check_apart(path, directories, places)
    if int(page.compression) == 1:
        _check_overlap(path, places)
    words = share(absent, segments * len(there), "tiles" if page.is_tiled else "strips") if absent else ""
    if absent and missing == "refuse":
        raise ImageFileError(f'{printable(path)} lacks {words}. Copy it again, or have them read as a fill value with missing="fill".')
    if absent == segments * len(there) and missing != "fill":
        raise ImageFileError(
            f"{printable(path)} lacks {words}: it was never finished. Export it again, or have a fill value everywhere with "
            'missing="fill".'
        )
    return words


def _check_page(path: Path, page: Any, size: int, segments: int, needed: int) -> int:
    """Refuse what contradicts itself; how many strips or tiles are left out, which have no bytes."""
    offsets, counts = page.dataoffsets, page.databytecounts
    joined = page.is_contiguous and len(offsets) == 1  # tifffile joins strips that follow each other
    if (min(len(offsets), len(counts)) < segments and not joined) or sum(counts) < needed:
        raise ImageFileError(f"{printable(path)} is damaged: page {page.index} lacks part of its data. Copy it again or export it again.")
    for offset, count in zip(offsets, counts, strict=False):
        if not (isinstance(offset, int) and isinstance(count, int) and offset >= 0):
            raise ImageFileError(f"{printable(path)} is damaged: page {page.index} has data at {offset}. Copy it again or export it again.")
        if offset + count > size:
            raise ImageFileError(
                f"{printable(path)} is cut off: page {page.index} needs {offset + count} bytes, the file has {size}. Copy it again."
            )
        if count and not offset:
            raise ImageFileError(f"{printable(path)} is damaged: page {page.index} has data without a place. Export it again.")
    return sum(count == 0 for count in counts)


def _check_apart(path: Path, directories: list[int], places: list[tuple[int, int]]) -> None:
    """Refuse pixels that lie where the file's header or directories do: where they are said to lie is damaged."""
    for offset, count in places:
        first = bisect.bisect_left(directories, offset)
        if first < len(directories) and directories[first] < offset + count:
            raise ImageFileError(f"{printable(path)} is damaged: pixels are said to lie on a directory, at {offset}. Copy it again.")


def _check_overlap(path: Path, places: list[tuple[int, int]]) -> None:
    """Refuse strips or tiles that share a part of their bytes; equal ones may be stored once."""
    for (offset, count), (following, _) in itertools.pairwise(sorted(set(places))):
        if following < offset + count:
            raise ImageFileError(f"{printable(path)} is damaged: pixels are said to lie where others do, at {following}. Copy it again.")


def _kind(tif: TiffFile, series: TiffPageSeries) -> str:
    return {"ome": "ome-tiff", "imagej": "imagej-tiff"}.get(series.kind, "tiff")


def _source(path: Path, stack: contextlib.ExitStack, series: TiffPageSeries, kind: str, metadata: dict[str, Any]) -> Any:
    page = series.keyframe
    if int(page.photometric) == 3 and kind == "tiff":
        return _expanded_palette(series.asarray(), page.colormap, metadata)
    if series.dataoffset is not None and series.dtype.kind != "b":
        byteorder = series.dtype.newbyteorder(metadata["byteorder"])
        source = open_raw(path, byteorder, series.shape, series.dataoffset)
        stack.callback(source.close)
        return source
    if math.prod(series.shape) * series.dtype.itemsize <= EAGER_BYTES:
        return series.asarray().reshape(series.shape)
    import zarr

    return CheckedSource(zarr.open_array(series.aszarr(level=0), mode="r"), path)


def _expanded_palette(indices: NDArray[Any], colours: NDArray[Any] | None, metadata: dict[str, Any]) -> NDArray[Any]:
    """RGB of a palette image: its values are numbers of colours, no intensities."""
    if colours is None:
        raise ImageFileError("a palette image without its palette")
    metadata.update(photometric="rgb", planarconfig=1)
    return np.moveaxis((colours >> 8).astype(np.uint8)[:, indices], 0, -1)


def _metadata(tif: TiffFile, series: TiffPageSeries, kind: str) -> dict[str, Any]:
    page = series.keyframe
    metadata: dict[str, Any] = {
        "byteorder": tif.byteorder,
        "bigtiff": tif.is_bigtiff,
        "photometric": {0: "miniswhite", 2: "rgb", 3: "palette", 6: "rgb"}.get(int(page.photometric), "minisblack"),
        "planarconfig": int(page.planarconfig),
        "extrasamples": tuple(int(value) for value in page.extrasamples or ()),
    }
    if 282 in page.tags and 283 in page.tags:
        metadata["resolution"] = (page.tags[282].value, page.tags[283].value)
        metadata["resolutionunit"] = int(page.resolutionunit)
    if page.iccprofile:
        metadata["icc_profile"] = page.iccprofile
    if 274 in page.tags:
        metadata["orientation"] = int(page.tags[274].value)
    tags, unknown = read_tags(tif, series)
    thumbnail = next((other for other in tif.series if other.kind == "svs" and other.name == "Thumbnail"), None)
    layout, changed = layout_of(tif, thumbnail)
    metadata.update(bits=int(page.bitspersample), tags=tags, layout=layout, lost=unknown, changed=changed)
    metadata["words"] = {tag.code: tag.text for tag in tags if tag.code in WORDS and tag.dtype == 2}
    if xmp := next((tag.content for tag in tags if tag.code == XMP), b""):
        metadata["xmp"] = xmp
    if kind == "ome-tiff":
        metadata.update(_from_ome(tif.ome_metadata or "", metadata))
    elif kind == "imagej-tiff":
        metadata.update(_from_imagej(dict(tif.imagej_metadata or {}), page))
        if "mode" not in metadata["imagej"]:  # with a mode the table is that of one channel, and all are among the LUTs
            metadata["colormap"] = page.colormap
    elif tif.shaped_metadata:
        said = {key: value for key, value in tif.shaped_metadata[0].items() if key not in ("shape", "axes", "truncated")}
        names = said.get("Channel", {}).get("Name") if isinstance(said.get("Channel"), dict) else None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            metadata["channel_names"] = names
        metadata["shaped"] = said
        metadata.update(_from_sizes(said))
    return metadata


def _from_sizes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Pixel sizes and frame time from attributes named as OME names them."""
    found: dict[str, Any] = {}
    sizes = {axis: float(attributes[f"PhysicalSize{axis}"]) for axis in "XYZ" if f"PhysicalSize{axis}" in attributes}
    if sizes:
        found["pixel_size"] = sizes
        found["pixel_unit"] = {axis: str(attributes.get(f"PhysicalSize{axis}Unit", "µm")) for axis in sizes}
    if "TimeIncrement" in attributes:
        found["time_increment"] = float(attributes["TimeIncrement"])
        found["time_unit"] = str(attributes.get("TimeIncrementUnit", "s"))
    return found


def _from_ome(xml: str, known: dict[str, Any]) -> dict[str, Any]:
    """What tifffile can write again of the first image in an OME description, and words for the rest."""
    from xml.etree import ElementTree

    def children(element: Any, name: str) -> list[Any]:
        return [child for child in element if child.tag.rpartition("}")[2] == name]

    def others(element: Any, *names: str) -> list[str]:
        told = [child for child in element if len(child) or child.attrib or (child.text or "").strip()]
        found = [child.tag.rpartition("}")[2] for child in told]
        return [f"OME {name}" for name in dict.fromkeys(found) if name not in names and not name.endswith("Ref")]

    root = ElementTree.fromstring(xml)
    image = next(image for image in children(root, "Image") if children(image, "Pixels"))
    pixels = children(image, "Pixels")[0]
    lost = [*others(root, "Image"), *others(image, "Pixels", "AcquisitionDate", "Description")]
    lost += others(pixels, "Channel", "TiffData", "Plane", "BinData", "MetadataOnly")
    lost += [name for channel in children(pixels, "Channel") for name in others(channel)]
    channels = [
        {key: value for key, value in child.attrib.items() if key not in ("ID", "SamplesPerPixel")} for child in children(pixels, "Channel")
    ]
    planes = {
        tuple(int(child.attrib.get(f"The{axis}", 0)) for axis in "TZC"): {
            key: value for key, value in child.attrib.items() if not key.startswith("The")
        }
        for child in children(pixels, "Plane")
    }
    ome: dict[str, Any] = {key: pixels.attrib[key] for key in (*_SIZES, "SignificantBits") if key in pixels.attrib}
    if "Name" in image.attrib:
        ome["Name"] = image.attrib["Name"]
    ome.update({name: child.text for name in ("AcquisitionDate", "Description") for child in children(image, name) if child.text})
    found = {"ome": ome, "channels": channels, "planes": planes, **_from_sizes(ome)}
    found["lost"] = (*known.get("lost", ()), *dict.fromkeys(lost))
    if "Description" in ome:
        found["words"] = {**known.get("words", {}), DESCRIPTION: ome["Description"]}
    if channels and all("Name" in channel for channel in channels):
        found["channel_names"] = [channel["Name"] for channel in channels]
    return found


def _from_imagej(imagej: dict[str, Any], page: Any) -> dict[str, Any]:
    for key in ("images", "channels", "slices", "frames", "shape", "axes", "dtype", "order"):
        imagej.pop(key, None)
    found: dict[str, Any] = {"imagej": imagej}
    unit = {"um": "µm", "micron": "µm", "microns": "µm", "micrometer": "µm", "\\u00B5m": "µm", "μm": "µm"}.get(
        str(imagej.get("unit", "")), str(imagej.get("unit", ""))
    )
    if unit in SYMBOLS.values():
        sizes = {axis: 1 / value for axis, value in zip("XY", page.resolution, strict=True) if value > 0}
        if "spacing" in imagej:
            sizes["Z"] = float(imagej["spacing"])
        found["pixel_size"], found["pixel_unit"] = sizes, dict.fromkeys(sizes, unit)
    if "finterval" in imagej:
        found["time_increment"], found["time_unit"] = float(imagej["finterval"]), "s"
    return found


# Writing


def check_tiff(path: Path, like: ImageFile) -> None:
    """Refuse, before anything is computed, what cannot be written."""
    kind = tiff_kind(path, like)
    allowed = _OME_DTYPES if kind == "ome-tiff" else _TIFF_DTYPES
    if like.dtype.name not in allowed:
        raise ValueError(f"{like.dtype} cannot be written as {kind}; one of {', '.join(allowed)} is expected. Convert the image first.")
    if kind == "ome-tiff" and (not set(like.axes) <= set("TZCYXSAPRHEQ") or len(set(like.axes)) != len(like.axes)):
        raise ValueError(f"axes {like.axes} cannot be written as OME-TIFF. Choose a name that ends in .tif alone.")
    if not _without_ones(like).axes.endswith(("YXS", "SYX") if like.rgb else "YX") and (like.rgb or kind != "tiff"):
        raise ValueError(f"axes {like.axes} cannot be written as {kind}; YX, YXS or SYX are expected last. Transpose the image first.")
    needed, free = math.prod(like.shape) * like.dtype.itemsize, free_bytes(path.parent)
    if needed > MEMORY_BYTES and not _tiff_layout(kind, like).is_flat:
        needed *= 2  # before it is compressed it lies beside it
    if needed > free:
        raise OSError(errno.ENOSPC, f"the output needs {needed} bytes, {free} are free. Make room or choose another place", str(path))


def tiff_kind(path: Path, like: ImageFile) -> str:
    """Which kind of TIFF is written, one of `ImageFile.format`."""
    if re.search(r"\.ome\.tiff?$", path.name, re.IGNORECASE):
        return "ome-tiff"
    if like.format == "imagej-tiff":
        in_order = [axis for axis in "TZCYXS" if axis in like.axes] == list(_imagej_axes(like.axes))
        colours = not like.rgb or like.shape[like.axes.index("S")] in (3, 4)
        classic = not like.metadata.get("bigtiff") and math.prod(like.shape) * like.dtype.itemsize < CLASSIC_BYTES
        # ImageJ itself reads no BigTIFF; its OME reader does.
        return "imagej-tiff" if in_order and colours and classic and like.dtype.name in _IMAGEJ_DTYPES else "ome-tiff"
    return like.format if like.format == "ome-tiff" else "tiff"


def _without_ones(like: ImageFile) -> ImageFile:
    """The image without axes of length 1 behind its rows and columns."""
    while like.axes[-1] not in "YXS" and like.shape[-1] == 1:
        like = dataclasses.replace(like, source=np.broadcast_to(np.zeros((), like.dtype), like.shape[:-1]), axes=like.axes[:-1])
    return like


def _imagej_axes(axes: str) -> str:
    """ImageJ has no unknown axis: pages without a meaning are slices."""
    return axes if "Z" in axes else axes.replace("Q", "Z", 1)


@contextlib.contextmanager
def create_tiff(path: Path, like: ImageFile) -> Iterator[Target]:
    """Give a `Target` over the pixels of an uncompressed TIFF."""
    import tifffile

    def check(written: Path) -> None:
        with contextlib.ExitStack() as stack:
            check_written(written, open_tiff(written, stack, missing="refuse"), like.shape, like.dtype)

    kind = tiff_kind(path, like)
    if like.format == "imagej-tiff" and kind == "ome-tiff" and not re.search(r"\.ome\.tiff?$", path.name, re.IGNORECASE):
        warnings.warn(f"{path.name} is larger or of another kind than ImageJ's own TIFF can be; it is written as OME-TIFF", stacklevel=4)
    stored = _without_ones(like)
    ones = (0,) * (len(like.axes) - len(stored.axes))
    options, layout = _options(kind, like if kind == "tiff" else stored), _tiff_layout(kind, like)
    shape = like.shape if kind == "tiff" else stored.shape
    flat = layout.is_flat and like.dtype.kind != "b"  # of which eight pixels share a byte
    with replaced_file(path, check=check) as temporary, contextlib.ExitStack() as stack:
        if flat:
            with writing(temporary, math.prod(like.shape) * like.dtype.itemsize):
                place = tifffile.imwrite(temporary, shape=shape, dtype=like.dtype, returnoffset=True, **options)
            assert place is not None  # as nothing is compressed
            array = open_raw(temporary, like.dtype.newbyteorder(options["byteorder"]), like.shape, place[0], writable=True)
            stack.callback(array.close)
        else:
            array = stack.enter_context(scratch_array(path, like.shape, like.dtype))
        target = Target(array)
        stack.callback(target.close)
        yield target
        if not flat:
            pages = array.view((..., *ones)) if isinstance(array, RawArray) else array[(..., *ones)]
            write_in_layout(temporary, path, pages, stored, layout, options, ones=len(shape) - len(stored.shape))
        with _errors_of_tifffile():  # it warns of tags whose content is yet to come
            write_page_tags(temporary, _tags(kind, like))


def _tiff_layout(kind: str, like: ImageFile) -> TiffLayout:
    """The layout of the input, or for one of another format with levels one that has such."""
    like = _without_ones(like)
    y = rows_axis(like.axes)
    height, width = like.shape[y : y + 2]
    layout: TiffLayout | None = like.metadata.get("layout")
    if layout is None:
        levels = like.metadata.get("levels", ())
        layout = layout_of_levels([(shape[y], shape[y + 1]) for _, shape in levels[1:]] if levels and levels[0][1] == like.shape else [])
    fitting = like.axes[y:].startswith("YX") and all(level.size[0] <= height and level.size[1] <= width for level in layout.levels)
    if not fitting or kind == "imagej-tiff":  # not the image whose levels they were; ImageJ knows none
        layout = dataclasses.replace(layout, levels=(), thumbnail=None)
    # Pages beside the image would be taken for planes of an OME or described image.
    return layout if kind == "tiff" and _describes_itself(like) else dataclasses.replace(layout, nested=True, thumbnail=None)


def _tags(kind: str, like: ImageFile) -> list[Tag]:
    """The tags of the input, or what an image of another format says of itself as tags."""
    known = like.metadata
    tags: list[Tag] | None = list(known["tags"]) if "tags" in known else None
    if tags is None:
        tags = [text_tag(code, text) for code, text in known.get("words", {}).items()]
        tags += [Tag(XMP, 1, known["xmp"])] if "xmp" in known else []
    if kind != "tiff":  # the descriptions of OME and ImageJ have a place of their own for it
        return [tag for tag in tags if tag.code != DESCRIPTION]
    if not _describes_itself(like):  # the axes are described beside it, once
        return [dataclasses.replace(tag, everywhere=False, pages=()) if tag.code == DESCRIPTION else tag for tag in tags]
    return tags


def _options(kind: str, like: ImageFile) -> dict[str, Any]:
    """The arguments of tifffile's writer."""
    known = like.metadata
    tags = _tags(kind, like)
    nbytes = math.prod(like.shape) * like.dtype.itemsize + sum(len(content) for tag in tags for content in tag.pages)
    big = bool(known.get("bigtiff")) or nbytes >= CLASSIC_BYTES
    options: dict[str, Any] = {"bigtiff": big, "byteorder": known.get("byteorder", "<"), **_layout(like)}
    if "resolution" in known:
        options.update(resolution=known["resolution"], resolutionunit=known["resolutionunit"])
    elif "dpi" in known and min(known["dpi"]) > 0:
        options.update(resolution=known["dpi"], resolutionunit="INCH")
    elif {"X", "Y"} <= known.get("pixel_size", {}).keys() and kind == "tiff":
        options.update(_resolution(known))
    if "icc_profile" in known:
        options["iccprofile"] = known["icc_profile"]
    layout = _tiff_layout(kind, like)
    described = _describes_itself(like) and (any(tag.code == DESCRIPTION for tag in tags) or (layout.levels and not layout.nested))
    if kind == "tiff" and not described:
        description = next((tag for tag in tags if tag.code == DESCRIPTION), None)
        options.update(description=description.content) if description else None
        tags = [tag for tag in tags if tag.code != DESCRIPTION]
    if any(tag.code == SOFTWARE for tag in tags):
        options["software"] = False  # tifffile's own
    options["extratags"] = extra_tags(tags, options["byteorder"])
    if known.get("orientation", 1) != 1:
        options["extratags"].append((274, 3, 1, known["orientation"], False))
    if kind == "ome-tiff":
        options.update(ome=True, metadata=_ome(like))
    elif kind == "imagej-tiff":
        options.update(imagej=True, metadata={**known["imagej"], "axes": _imagej_axes(like.axes)})
        if known.get("colormap") is not None:
            options["colormap"] = known["colormap"]
    else:
        said = {**known.get("shaped", {}), **_sizes(known), **_names(like), "axes": like.axes}
        options.update(ome=False, metadata=None if described else said)
    return options


def _describes_itself(like: ImageFile) -> bool:
    """Whether a plain TIFF with a description of the user's own reads back with the same axes and sizes."""
    leading = re.fullmatch("(Q?)(YX|YXS|SYX)", like.axes)
    return leading is not None and not {"shaped", "pixel_size", "time_increment", "channel_names"} & like.metadata.keys()


def _names(like: ImageFile) -> dict[str, Any]:
    names = like.metadata.get("channel_names", ())
    return {"Channel": {"Name": names}} if "C" in like.axes and len(names) == like.shape[like.axes.index("C")] else {}


def _layout(like: ImageFile) -> dict[str, Any]:
    photometric = like.metadata.get("photometric", "minisblack")
    if not like.rgb:
        kept = photometric == "miniswhite" or (photometric == "palette" and like.metadata.get("colormap") is not None)
        return {"photometric": photometric if kept else "minisblack", "planarconfig": None}
    samples = like.shape[like.axes.index("S")]
    colour = samples in (3, 4) and like.metadata.get("photometric", "rgb") == "rgb"
    layout: dict[str, Any] = {
        "photometric": "rgb" if colour else ("miniswhite" if photometric == "miniswhite" else "minisblack"),
        "planarconfig": "contig" if like.axes.endswith("S") else "separate",
    }
    extra = samples - (3 if colour else 1)
    if extra:
        kept_extra = like.metadata.get("extrasamples", ())
        layout["extrasamples"] = kept_extra if len(kept_extra) == extra else (2,) * extra if like.alpha else (0,) * extra
    return layout


def _sizes(known: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis, size in known.get("pixel_size", {}).items():
        found[f"PhysicalSize{axis}"], found[f"PhysicalSize{axis}Unit"] = size, known["pixel_unit"][axis]
    if "time_increment" in known:
        found.update(TimeIncrement=known["time_increment"], TimeIncrementUnit=known["time_unit"])
    return found


def _resolution(known: dict[str, Any]) -> dict[str, Any]:
    sizes = [known["pixel_size"][axis] * METRES.get(known["pixel_unit"][axis], 0) for axis in "XY"]
    return {"resolution": tuple(0.01 / size for size in sizes), "resolutionunit": "CENTIMETER"} if min(sizes) > 0 else {}


def _ome(like: ImageFile) -> dict[str, Any]:
    known = like.metadata
    metadata: dict[str, Any] = {**known.get("ome", {}), **_sizes(known), "axes": like.axes}
    if DESCRIPTION in known.get("words", {}):
        metadata.setdefault("Description", known["words"][DESCRIPTION])
    count = like.shape[like.axes.index("C")] if "C" in like.axes else 1
    if like.dtype.kind not in "iu":
        metadata.pop("SignificantBits", None)
    channels: list[dict[str, Any]] = known.get("channels") or [{"Name": name} for name in known.get("channel_names", ())]
    if len(channels) == count:
        metadata["Channel"] = _columns(channels)
    leading = [(axis, size) for axis, size in zip(like.axes, like.shape, strict=True) if axis not in "YXS"]
    indices = np.ndindex(*(size for _, size in leading))
    places = [dict(zip((axis for axis, _ in leading), index, strict=True)) for index in indices] if known.get("planes") else []
    planes = [known["planes"].get(tuple(place.get(axis, 0) for axis in "TZC")) for place in places]
    if planes and all(plane is not None for plane in planes):
        metadata["Plane"] = _columns(planes)
    return metadata


def _columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Attributes that all rows have, as tifffile wants them."""
    return {key: [row[key] for row in rows] for key in rows[0] if all(key in row for row in rows)}

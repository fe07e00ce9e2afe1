"""How a written TIFF describes its image: arguments of tifffile's writer, tags, OME attributes."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np

from dn_core.files.image import METRES, ImageFile
from dn_core.files.tiff_layout import TiffLayout, layout_of_levels, rows_axis
from dn_core.files.tiff_tags import DESCRIPTION, SOFTWARE, XMP, Tag, extra_tags, text_tag

__all__ = [
    "imagej_axes",
    "needs_bigtiff",
    "tags_to_write",
    "tiff_layout_for",
    "without_trailing_ones",
    "writer_options",
]

CLASSIC_BYTES = 2**32 - 32 * 2**20
"""From this size on BigTIFF is written; 32 MiB are left for tags and page directories."""


def without_trailing_ones(like: ImageFile) -> ImageFile:
    """The image without axes of length 1 after its rows and columns."""
    while like.axes[-1] not in "YXS" and like.shape[-1] == 1:
        smaller = np.broadcast_to(np.zeros((), like.dtype), like.shape[:-1])
        like = dataclasses.replace(like, source=smaller, axes=like.axes[:-1])
    return like


def imagej_axes(axes: str) -> str:
    """The axes for ImageJ, which has no unknown axis: such planes are slices."""
    return axes if "Z" in axes else axes.replace("Q", "Z", 1)


def needs_bigtiff(like: ImageFile, tag_bytes: int = 0) -> bool:
    """Whether an image with this many bytes of tags was a BigTIFF or is too large for another."""
    nbytes = math.prod(like.shape) * like.dtype.itemsize + tag_bytes
    return bool(like.metadata.get("bigtiff")) or nbytes >= CLASSIC_BYTES


def tiff_layout_for(kind: str, like: ImageFile) -> TiffLayout:
    """The layout of the input; for a pyramid in another format a usual one with levels."""
    like = without_trailing_ones(like)
    y = rows_axis(like.axes)
    height, width = like.shape[y : y + 2]
    layout: TiffLayout | None = like.metadata.get("layout")
    if layout is None:
        levels = like.metadata.get("levels", ())
        same_image = levels and levels[0][1] == like.shape
        smaller = levels[1:] if same_image else ()
        layout = layout_of_levels([(shape[y], shape[y + 1]) for _, shape in smaller])
    fitting = like.axes[y:].startswith("YX") and all(
        level.size[0] <= height and level.size[1] <= width for level in layout.levels
    )
    # Levels of another image are dropped, and all levels for ImageJ, which has none.
    if not fitting or kind == "imagej-tiff":
        layout = dataclasses.replace(layout, levels=(), thumbnail=None)
    if kind == "tiff" and _describes_itself(like):
        return layout
    # Pages beside the image would be taken for planes of an OME or described image.
    return dataclasses.replace(layout, nested=True, thumbnail=None)


def tags_to_write(kind: str, like: ImageFile) -> list[Tag]:
    """The tags of the input; of an image in another format its text and XMP as tags."""
    known = like.metadata
    if "tags" in known:
        tags: list[Tag] = list(known["tags"])
    else:
        tags = [text_tag(code, text) for code, text in known.get("words", {}).items()]
        tags += [Tag(XMP, 1, known["xmp"])] if "xmp" in known else []
    if kind != "tiff":  # OME-XML and ImageJ's text have their own place for the description
        return [tag for tag in tags if tag.code != DESCRIPTION]
    if not _describes_itself(like):  # tifffile describes the axes beside it, on the first page
        return [
            dataclasses.replace(tag, everywhere=False, pages=()) if tag.code == DESCRIPTION else tag
            for tag in tags
        ]
    return tags


def writer_options(kind: str, like: ImageFile) -> dict[str, Any]:
    """The arguments of tifffile's writer for an image; `kind` is one of `ImageFile.format`."""
    known = like.metadata
    tags = tags_to_write(kind, like)
    options: dict[str, Any] = {
        "bigtiff": needs_bigtiff(like, sum(len(text) for tag in tags for text in tag.pages)),
        "byteorder": known.get("byteorder", "<"),
        **_colour_options(like),
        **_resolution_options(kind, known),
    }
    if "icc_profile" in known:
        options["iccprofile"] = known["icc_profile"]
    layout = tiff_layout_for(kind, like)
    described = _describes_itself(like) and (
        any(tag.code == DESCRIPTION for tag in tags) or (layout.levels and not layout.nested)
    )
    if kind == "tiff" and not described:
        description = next((tag for tag in tags if tag.code == DESCRIPTION), None)
        if description:
            options["description"] = description.content
        tags = [tag for tag in tags if tag.code != DESCRIPTION]
    if any(tag.code == SOFTWARE for tag in tags):
        options["software"] = False  # tifffile's own name
    options["extratags"] = extra_tags(tags, options["byteorder"])
    if known.get("orientation", 1) != 1:
        options["extratags"].append((274, 3, 1, known["orientation"], False))
    if kind == "ome-tiff":
        options.update(ome=True, metadata=_ome_attributes(like))
    elif kind == "imagej-tiff":
        options.update(imagej=True, metadata={**known["imagej"], "axes": imagej_axes(like.axes)})
        if known.get("colormap") is not None:
            options["colormap"] = known["colormap"]
    else:
        attributes = {**known.get("shaped", {}), **_sizes(known), **_channel_names(like)}
        attributes["axes"] = like.axes
        options.update(ome=False, metadata=None if described else attributes)
    return options


def _describes_itself(like: ImageFile) -> bool:
    """Whether a plain TIFF with the user's description alone reads back with the same axes."""
    simple_axes = re.fullmatch("(Q?)(YX|YXS|SYX)", like.axes) is not None
    described = {"shaped", "pixel_size", "time_increment", "channel_names"} & like.metadata.keys()
    return simple_axes and not described


def _colour_options(like: ImageFile) -> dict[str, Any]:
    """How samples are to be interpreted and stored (photometric, planar, extra samples)."""
    photometric = like.metadata.get("photometric", "minisblack")
    if not like.rgb:
        kept = photometric == "miniswhite" or (
            photometric == "palette" and like.metadata.get("colormap") is not None
        )
        return {"photometric": photometric if kept else "minisblack", "planarconfig": None}
    samples = like.shape[like.axes.index("S")]
    colour = samples in (3, 4) and like.metadata.get("photometric", "rgb") == "rgb"
    grey = "miniswhite" if photometric == "miniswhite" else "minisblack"
    options: dict[str, Any] = {
        "photometric": "rgb" if colour else grey,
        "planarconfig": "contig" if like.axes.endswith("S") else "separate",
    }
    extra = samples - (3 if colour else 1)
    if extra:
        known = like.metadata.get("extrasamples", ())
        unassociated_alpha = 2 if like.alpha else 0  # 0: unspecified
        options["extrasamples"] = known if len(known) == extra else (unassociated_alpha,) * extra
    return options


def _resolution_options(kind: str, known: dict[str, Any]) -> dict[str, Any]:
    if "resolution" in known:
        return {"resolution": known["resolution"], "resolutionunit": known["resolutionunit"]}
    if "dpi" in known and min(known["dpi"]) > 0:
        return {"resolution": known["dpi"], "resolutionunit": "INCH"}
    if kind != "tiff" or not {"X", "Y"} <= known.get("pixel_size", {}).keys():
        return {}
    metres = [known["pixel_size"][axis] * METRES.get(known["pixel_unit"][axis], 0) for axis in "XY"]
    if min(metres) <= 0:
        return {}
    return {"resolution": tuple(0.01 / size for size in metres), "resolutionunit": "CENTIMETER"}


def _channel_names(like: ImageFile) -> dict[str, Any]:
    names = like.metadata.get("channel_names", ())
    fitting = "C" in like.axes and len(names) == like.shape[like.axes.index("C")]
    return {"Channel": {"Name": names}} if fitting else {}


def _sizes(known: dict[str, Any]) -> dict[str, Any]:
    """Pixel sizes and frame interval as OME names them."""
    found: dict[str, Any] = {}
    for axis, size in known.get("pixel_size", {}).items():
        found[f"PhysicalSize{axis}"] = size
        found[f"PhysicalSize{axis}Unit"] = known["pixel_unit"][axis]
    if "time_increment" in known:
        found.update(TimeIncrement=known["time_increment"], TimeIncrementUnit=known["time_unit"])
    return found


def _ome_attributes(like: ImageFile) -> dict[str, Any]:
    """Attributes of an OME image as tifffile's writer takes them."""
    known = like.metadata
    attributes: dict[str, Any] = {**known.get("ome", {}), **_sizes(known), "axes": like.axes}
    if DESCRIPTION in known.get("words", {}):
        attributes.setdefault("Description", known["words"][DESCRIPTION])
    if like.dtype.kind not in "iu":
        attributes.pop("SignificantBits", None)
    count = like.shape[like.axes.index("C")] if "C" in like.axes else 1
    channels: list[dict[str, Any]] = known.get("channels") or [
        {"Name": name} for name in known.get("channel_names", ())
    ]
    if len(channels) == count:
        attributes["Channel"] = _columns(channels)
    planes = _ome_planes(like) if known.get("planes") else []
    if planes and all(plane is not None for plane in planes):
        attributes["Plane"] = _columns(planes)
    return attributes


def _ome_planes(like: ImageFile) -> list[Any]:
    """What is known of each plane, in the order of writing; None for unknown planes."""
    leading = [axis for axis in like.axes if axis not in "YXS"]
    sizes = [like.shape[like.axes.index(axis)] for axis in leading]
    found = []
    for index in np.ndindex(*sizes):
        position = dict(zip(leading, index, strict=True))
        found.append(like.metadata["planes"].get(tuple(position.get(axis, 0) for axis in "TZC")))
    return found


def _columns(rows: list[Any]) -> dict[str, list[Any]]:
    """Attributes that all rows have, a list each, as tifffile wants them."""
    return {key: [row[key] for row in rows] for key in rows[0] if all(key in row for row in rows)}

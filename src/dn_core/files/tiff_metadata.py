"""Metadata of a TIFF: tags, OME-XML, ImageJ's description, pixel sizes, channel names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dn_core.files.image import SYMBOLS
from dn_core.files.tiff_layout import layout_of
from dn_core.files.tiff_tags import DESCRIPTION, WORDS, XMP, read_tags

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

__all__ = ["read_tiff_metadata"]

_SIZES = tuple(
    f"{name}{suffix}"
    for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement")
    for suffix in ("", "Unit")
)


_PHOTOMETRIC = {0: "miniswhite", 2: "rgb", 3: "palette", 6: "rgb"}  # 6: decoded to RGB
_MICROMETRE = ("um", "micron", "microns", "micrometer", "\\u00B5m", "μm")
"""What ImageJ's users call a micrometre, besides OME's symbol."""


def read_tiff_metadata(tif: TiffFile, series: TiffPageSeries, kind: str) -> dict[str, Any]:
    """What a TIFF says of its image, as `ImageFile.metadata` has it."""
    page = series.keyframe
    metadata: dict[str, Any] = {
        "byteorder": tif.byteorder,
        "bigtiff": tif.is_bigtiff,
        "photometric": _PHOTOMETRIC.get(int(page.photometric), "minisblack"),
        "planarconfig": int(page.planarconfig),
        "extrasamples": tuple(int(value) for value in page.extrasamples or ()),
        "bits": int(page.bitspersample),
    }
    if 282 in page.tags and 283 in page.tags:
        metadata["resolution"] = (page.tags[282].value, page.tags[283].value)
        metadata["resolutionunit"] = int(page.resolutionunit)
    if page.iccprofile:
        metadata["icc_profile"] = page.iccprofile
    if 274 in page.tags:
        metadata["orientation"] = int(page.tags[274].value)
    thumbnail = next(
        (other for other in tif.series if other.kind == "svs" and other.name == "Thumbnail"), None
    )
    metadata["layout"], metadata["changed"] = layout_of(tif, thumbnail)
    tags, metadata["lost"] = read_tags(tif, series)
    metadata["tags"] = tags
    metadata["words"] = {tag.code: tag.text for tag in tags if tag.code in WORDS and tag.dtype == 2}
    if xmp := next((tag.content for tag in tags if tag.code == XMP), b""):
        metadata["xmp"] = xmp
    if kind == "ome-tiff":
        metadata.update(_from_ome(tif.ome_metadata or "", metadata))
    elif kind == "imagej-tiff":
        metadata.update(_from_imagej(dict(tif.imagej_metadata or {}), page))
        # With a display mode, the page's table is that of one channel, and all are among the LUTs.
        if "mode" not in metadata["imagej"]:
            metadata["colormap"] = page.colormap
    elif tif.shaped_metadata:
        metadata.update(_from_shaped(tif.shaped_metadata[0]))
    return metadata


def _from_shaped(description: dict[str, Any]) -> dict[str, Any]:
    """From tifffile's own JSON description of a plain TIFF."""
    attributes = {
        key: value
        for key, value in description.items()
        if key not in ("shape", "axes", "truncated")
    }
    found: dict[str, Any] = {"shaped": attributes, **_from_sizes(attributes)}
    channel = attributes.get("Channel", {})
    names = channel.get("Name") if isinstance(channel, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        found["channel_names"] = names
    return found


def _from_sizes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Pixel sizes and frame interval from attributes named as OME names them."""
    found: dict[str, Any] = {}
    sizes = {
        axis: float(attributes[f"PhysicalSize{axis}"])
        for axis in "XYZ"
        if f"PhysicalSize{axis}" in attributes
    }
    if sizes:
        found["pixel_size"] = sizes
        found["pixel_unit"] = {
            axis: str(attributes.get(f"PhysicalSize{axis}Unit", "µm")) for axis in sizes
        }
    if "TimeIncrement" in attributes:
        found["time_increment"] = float(attributes["TimeIncrement"])
        found["time_unit"] = str(attributes.get("TimeIncrementUnit", "s"))
    return found


def _from_ome(xml: str, known: dict[str, Any]) -> dict[str, Any]:
    """What tifffile can write again of the first OME image, and names of the rest (``lost``)."""
    from xml.etree import ElementTree

    root = ElementTree.fromstring(xml)
    image = next(image for image in _children(root, "Image") if _children(image, "Pixels"))
    pixels = _children(image, "Pixels")[0]
    lost = [
        *_other_children(root, "Image"),
        *_other_children(image, "Pixels", "AcquisitionDate", "Description"),
        *_other_children(pixels, "Channel", "TiffData", "Plane", "BinData", "MetadataOnly"),
    ]
    channels = []
    for channel in _children(pixels, "Channel"):
        lost += _other_children(channel)
        ignored = ("ID", "SamplesPerPixel")
        channels.append({key: text for key, text in channel.attrib.items() if key not in ignored})
    planes = {
        tuple(int(plane.attrib.get(f"The{axis}", 0)) for axis in "TZC"): {
            key: value for key, value in plane.attrib.items() if not key.startswith("The")
        }
        for plane in _children(pixels, "Plane")
    }
    ome: dict[str, Any] = {
        key: pixels.attrib[key] for key in (*_SIZES, "SignificantBits") if key in pixels.attrib
    }
    if "Name" in image.attrib:
        ome["Name"] = image.attrib["Name"]
    for name in ("AcquisitionDate", "Description"):
        for child in _children(image, name):
            if child.text:
                ome[name] = child.text
    found = {"ome": ome, "channels": channels, "planes": planes, **_from_sizes(ome)}
    found["lost"] = (*known.get("lost", ()), *dict.fromkeys(lost))
    if "Description" in ome:
        found["words"] = {**known.get("words", {}), DESCRIPTION: ome["Description"]}
    if channels and all("Name" in channel for channel in channels):
        found["channel_names"] = [channel["Name"] for channel in channels]
    return found


def _children(element: Any, name: str) -> list[Any]:
    """The children of an XML element with a name, whatever their namespace."""
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def _other_children(element: Any, *names: str) -> list[str]:
    """Names of the children with content, except these and references."""
    with_content = [
        child for child in element if len(child) or child.attrib or (child.text or "").strip()
    ]
    found = dict.fromkeys(child.tag.rpartition("}")[2] for child in with_content)
    return [f"OME {name}" for name in found if name not in names and not name.endswith("Ref")]


def _from_imagej(imagej: dict[str, Any], page: Any) -> dict[str, Any]:
    for key in ("images", "channels", "slices", "frames", "shape", "axes", "dtype", "order"):
        imagej.pop(key, None)
    found: dict[str, Any] = {"imagej": imagej}
    unit = str(imagej.get("unit", ""))
    unit = "µm" if unit in _MICROMETRE else unit
    if unit in SYMBOLS.values():
        sizes = {
            axis: 1 / value for axis, value in zip("XY", page.resolution, strict=True) if value > 0
        }
        if "spacing" in imagej:
            sizes["Z"] = float(imagej["spacing"])
        found["pixel_size"], found["pixel_unit"] = sizes, dict.fromkeys(sizes, unit)
    if "finterval" in imagej:
        found["time_increment"], found["time_unit"] = float(imagej["finterval"]), "s"
    return found

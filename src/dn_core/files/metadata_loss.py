"""Metadata preservation: warnings of what an output format cannot hold of the input's metadata."""

from __future__ import annotations

from dn_core.files.image import ImageFile
from dn_core.files.orientation import is_white_zero
from dn_core.files.png_jpeg_metadata import PNG_TEXT, density, exif_beyond_text, text_of_exif
from dn_core.files.tiff_tags import WORDS, XMP, tag_names

__all__ = ["lost_metadata", "metadata_warnings"]

_FORMAT_NAMES = {
    "tiff": "TIFF",
    "ome-tiff": "OME-TIFF",
    "imagej-tiff": "ImageJ TIFF",
    "png": "PNG",
    "jpeg": "JPEG",
    "ome-zarr": "OME-Zarr",
}
_TIFFS, _PICTURES = ("tiff", "ome-tiff", "imagej-tiff"), ("png", "jpeg")
MAX_JPEG_DENSITY = 2**16 - 1
MAX_SEGMENT_BYTES = 2**16 - 64

_IMAGEJ_NAMES = {
    "Info": "ImageJ info",
    "Labels": "slice labels",
    "Ranges": "display ranges",
    "min": "display ranges",
    "LUTs": "colour tables (LUTs)",
    "mode": "display mode",
    "ROI": "ROI",
    "Overlays": "overlays",
    "Properties": "ImageJ properties",
    "Plot": "plot",
}
_CHUNK_NAMES = {
    b"sRGB": "sRGB flag",
    b"gAMA": "gamma",
    b"cHRM": "primary colours",
    b"cICP": "colour space",
    b"tIME": "time of change",
}
_SEGMENT_NAMES = {0xED: "IPTC", 0xEC: "picture info (APP12)"}


def metadata_warnings(like: ImageFile, kind: str) -> list[str]:
    """Warnings of what is not kept, or kept in another way, when an image is written.

    Parameters
    ----------
    like : ImageFile
        The input.
    kind : str
        The format of the output, one of `ImageFile.format`.
    """
    found = []
    if lost := lost_metadata(like, kind):
        found.append(f"not kept in {_FORMAT_NAMES[kind]}: {', '.join(lost)}")
    if kind not in _TIFFS and like.metadata.get("photometric") == "miniswhite" and not like.rgb:
        result = (
            "its values are inverted, so that it looks the same"
            if is_white_zero(like)
            else "it will be displayed as its negative"
        )
        found.append(
            f"0 is white in the input, which {_FORMAT_NAMES[kind]} cannot express: {result}"
        )
    return found


def lost_metadata(like: ImageFile, kind: str) -> list[str]:
    """Names of all metadata of an image that a file of this format cannot hold."""
    found = list(like.metadata.get("lost", ()))
    if kind in _TIFFS:
        found += like.metadata.get("changed", ())
    for part in (_sizes, _channels, _tags, _pictures, _shaped, _imagej, _ome, _zarr, _levels):
        found += part(like, kind)
    return list(dict.fromkeys(found))


def _sizes(like: ImageFile, kind: str) -> list[str]:
    known, dots = like.metadata, density(like.metadata)
    found = []
    if kind in _PICTURES:
        if "pixel_size" in known and dots is None:
            found.append("pixel size")
        if dots is not None and kind == "jpeg" and max(dots) > MAX_JPEG_DENSITY:
            found.append("pixel size" if "pixel_size" in known else "resolution")
    elif kind == "ome-zarr" and "pixel_size" not in known and dots is not None:
        found.append("resolution")
    if kind not in _TIFFS:  # which have these even for single planes
        written = set(like.axes) if kind == "ome-zarr" else set()
        found += ["z spacing"] if "Z" in known.get("pixel_size", {}) and "Z" not in written else []
        found += ["frame interval"] if "time_increment" in known and "T" not in written else []
    return found


def _channels(like: ImageFile, kind: str) -> list[str]:
    names = like.metadata.get("channel_names", ())
    fitting = "C" in like.axes and len(names) == like.shape[like.axes.index("C")]
    kept = kind == "ome-tiff" or (kind in ("tiff", "ome-zarr") and fitting)
    return ["channel names"] if names and not kept else []


def _tags(like: ImageFile, kind: str) -> list[str]:
    tags, words = like.metadata.get("tags", ()), like.metadata.get("words", {})
    if kind in _TIFFS:
        return []
    if kind in _PICTURES:
        return tag_names(tag for tag in tags if tag.code not in (*WORDS, XMP))
    return [
        *(WORDS[code] for code in words if code in WORDS),
        *(["XMP"] if "xmp" in like.metadata else []),
        *tag_names(tags),
    ]


def _pictures(like: ImageFile, kind: str) -> list[str]:
    known = like.metadata
    found = ["colour profile"] if kind == "ome-zarr" and "icc_profile" in known else []
    if kind not in _PICTURES and "exif" in known:
        found += exif_beyond_text(known["exif"])
    if kind != "png":
        # What other formats have a place for is among the words, or as a comment.
        text = known.get("text", {})
        words = (
            text_of_exif(known["exif"])
            if kind == "jpeg" and "exif" in known
            else known.get("words", {})
        )
        kept = {key for key in text if words.get(PNG_TEXT.get(key, 0)) == text[key]}
        kept |= {"Comment"} if kind == "jpeg" else set()
        found += [f"text {key!r}" for key in text if key not in kept]
        found += [
            _CHUNK_NAMES[name] for name, _ in known.get("png_chunks", ()) if name in _CHUNK_NAMES
        ]
    if kind == "jpeg" and like.format != "jpeg":
        parts = (("exif", "EXIF"), ("xmp", "XMP"), ("comment", "comment"))
        found += [word for key, word in parts if len(known.get(key, b"")) > MAX_SEGMENT_BYTES]
    if kind != "jpeg":
        others = [
            number
            for number, _ in known.get("jpeg_segments", ())
            if number not in (0xE1, 0xE2, 0xFE)
        ]
        found += [_SEGMENT_NAMES.get(number, f"segment APP{number - 0xE0}") for number in others]
    return found


def _shaped(like: ImageFile, kind: str) -> list[str]:
    """Attributes that users of tifffile have added to its description."""
    if kind == "tiff":
        return []
    others = [
        key
        for key in like.metadata.get("shaped", ())
        if not key.startswith(("PhysicalSize", "TimeIncrement")) and key != "Channel"
    ]
    return [f"attributes {', '.join(others)}"] if others else []


def _imagej(like: ImageFile, kind: str) -> list[str]:
    if kind == "imagej-tiff" or "imagej" not in like.metadata:
        return []
    known = like.metadata["imagej"]
    found = [
        name
        for key, name in _IMAGEJ_NAMES.items()
        if known.get(key) is not None and (key, known[key]) != ("mode", "grayscale")
    ]
    return found + (["colour table (LUT)"] if like.metadata.get("colormap") is not None else [])


def _ome(like: ImageFile, kind: str) -> list[str]:
    known = like.metadata
    channels, planes = known.get("channels", []), known.get("planes", {})
    if kind == "ome-tiff":  # tifffile writes an attribute for all channels or for none
        keys = sorted({key for channel in channels for key in channel})
        return [
            f"{key} of single channels"
            for key in keys
            if not all(key in channel for channel in channels)
        ]
    found = ["channel settings"] if any(set(channel) - {"Name"} for channel in channels) else []
    found += ["plane times and positions"] if any(planes.values()) else []
    return found + (["acquisition date"] if known.get("ome", {}).get("AcquisitionDate") else [])


def _zarr(like: ImageFile, kind: str) -> list[str]:
    attributes = like.metadata.get("attributes", {})
    if kind == "ome-zarr" or not attributes:
        return []
    found = ["display settings (omero)"] if "omero" in attributes.get("ome", attributes) else []
    others = sorted(
        set(attributes) - {"ome", "multiscales", "omero", "labels", "bioformats2raw.layout"}
    )
    return found + ([f"attributes {', '.join(others)}"] if others else [])


def _levels(like: ImageFile, kind: str) -> list[str]:
    layout = like.metadata.get("layout")
    levels = (layout.levels if layout else ()) or like.metadata.get("levels", ())[1:]
    return ["pyramid"] if levels and kind in (*_PICTURES, "imagej-tiff") else []

"""What of an image's description a format cannot hold, in words: nothing is dropped in silence."""

from __future__ import annotations

from dn_core.files.image import ImageFile
from dn_core.files.picture_metadata import PNG_TEXT, density, exif_beyond_words, words_of_exif
from dn_core.files.shown import is_inverted
from dn_core.files.tiff_tags import WORDS, XMP, tag_names

__all__ = ["not_kept", "said_of_writing"]

_NAMES = {
    "tiff": "TIFF", "ome-tiff": "OME-TIFF", "imagej-tiff": "ImageJ TIFF", "png": "PNG", "jpeg": "JPEG", "ome-zarr": "OME-Zarr",
}  # fmt: skip
_TIFFS, _PICTURES = ("tiff", "ome-tiff", "imagej-tiff"), ("png", "jpeg")
MOST_JPEG_DENSITY = 2**16 - 1
MOST_IN_SEGMENT = 2**16 - 64

_IMAGEJ_WORDS = {
    "Info": "ImageJ info", "Labels": "slice labels", "Ranges": "display ranges", "min": "display ranges", "LUTs": "colour tables (LUTs)",
    "mode": "display mode", "ROI": "ROI", "Overlays": "overlays", "Properties": "ImageJ properties", "Plot": "plot",
}  # fmt: skip
_CHUNK_WORDS = {b"sRGB": "sRGB mark", b"gAMA": "gamma", b"cHRM": "primary colours", b"cICP": "colour space", b"tIME": "time of change"}
_SEGMENT_WORDS = {0xED: "IPTC", 0xEC: "picture info (APP12)"}


def said_of_writing(like: ImageFile, kind: str) -> list[str]:
    """Sentences about what is not kept, or kept in another way, when an image is written as `kind`, one of `ImageFile.format`."""
    said = []
    if lost := not_kept(like, kind):
        said.append(f"not kept in {_NAMES[kind]}: {', '.join(lost)}")
    if kind not in _TIFFS and like.metadata.get("photometric") == "miniswhite" and not like.rgb:
        inverted = "its numbers are inverted, so that it looks the same" if is_inverted(like) else "it will be shown as its negative"
        said.append(f"0 is white in the input, which {_NAMES[kind]} cannot say: {inverted}")
    return said


def not_kept(like: ImageFile, kind: str) -> list[str]:
    """Words for all that an image says of itself and a file of another kind cannot."""
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
        if dots is not None and kind == "jpeg" and max(dots) > MOST_JPEG_DENSITY:
            found.append("pixel size" if "pixel_size" in known else "resolution")
    elif kind == "ome-zarr" and "pixel_size" not in known and dots is not None:
        found.append("resolution")
    if kind not in _TIFFS:  # which say it even of single planes
        written = set(like.axes) if kind == "ome-zarr" else set()
        found += ["distance of planes"] if "Z" in known.get("pixel_size", {}) and "Z" not in written else []
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
    return [*(WORDS[code] for code in words if code in WORDS), *(["XMP"] if "xmp" in like.metadata else []), *tag_names(tags)]


def _pictures(like: ImageFile, kind: str) -> list[str]:
    known = like.metadata
    found = ["colour profile"] if kind == "ome-zarr" and "icc_profile" in known else []
    if kind not in _PICTURES and "exif" in known:
        found += exif_beyond_words(known["exif"])
    if kind != "png":
        # What other formats have a place for is among the words, or as a comment.
        text = known.get("text", {})
        words = words_of_exif(known["exif"]) if kind == "jpeg" and "exif" in known else known.get("words", {})
        kept = {key for key in text if words.get(PNG_TEXT.get(key, 0)) == text[key]}
        kept |= {"Comment"} if kind == "jpeg" else set()
        found += [f"text {key!r}" for key in text if key not in kept]
        found += [_CHUNK_WORDS[name] for name, _ in known.get("png_chunks", ()) if name in _CHUNK_WORDS]
    if kind == "jpeg" and like.format != "jpeg":
        parts = (("exif", "EXIF"), ("xmp", "XMP"), ("comment", "comment"))
        found += [word for key, word in parts if len(known.get(key, b"")) > MOST_IN_SEGMENT]
    if kind != "jpeg":
        others = [number for number, _ in known.get("jpeg_segments", ()) if number not in (0xE1, 0xE2, 0xFE)]
        found += [_SEGMENT_WORDS.get(number, f"segment APP{number - 0xE0}") for number in others]
    return found


def _shaped(like: ImageFile, kind: str) -> list[str]:
    """What users of tifffile have said in its description."""
    if kind == "tiff":
        return []
    others = [key for key in like.metadata.get("shaped", ()) if not key.startswith(("PhysicalSize", "TimeIncrement")) and key != "Channel"]
    return [f"attributes {', '.join(others)}"] if others else []


def _imagej(like: ImageFile, kind: str) -> list[str]:
    if kind == "imagej-tiff" or "imagej" not in like.metadata:
        return []
    said = like.metadata["imagej"]
    found = [word for key, word in _IMAGEJ_WORDS.items() if said.get(key) is not None and (key, said[key]) != ("mode", "grayscale")]
    return found + (["colour table (LUT)"] if like.metadata.get("colormap") is not None else [])


def _ome(like: ImageFile, kind: str) -> list[str]:
    known = like.metadata
    channels, planes = known.get("channels", []), known.get("planes", {})
    if kind == "ome-tiff":  # which tifffile writes for all channels or for none
        keys = sorted({key for channel in channels for key in channel})
        return [f"{key} of single channels" for key in keys if not all(key in channel for channel in channels)]
    found = ["settings of channels"] if any(set(channel) - {"Name"} for channel in channels) else []
    found += ["times and positions of planes"] if any(planes.values()) else []
    return found + (["acquisition date"] if known.get("ome", {}).get("AcquisitionDate") else [])


def _zarr(like: ImageFile, kind: str) -> list[str]:
    attributes = like.metadata.get("attributes", {})
    if kind == "ome-zarr" or not attributes:
        return []
    found = ["display settings (omero)"] if "omero" in attributes.get("ome", attributes) else []
    others = sorted(set(attributes) - {"ome", "multiscales", "omero", "labels", "bioformats2raw.layout"})
    return found + ([f"attributes {', '.join(others)}"] if others else [])


def _levels(like: ImageFile, kind: str) -> list[str]:
    layout = like.metadata.get("layout")
    levels = (layout.levels if layout else ()) or like.metadata.get("levels", ())[1:]
    return ["pyramid"] if levels and kind in (*_PICTURES, "imagej-tiff") else []

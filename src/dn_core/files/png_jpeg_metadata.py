"""Metadata of PNG and JPEG: chunks, segments, EXIF, XMP, text and resolution.

Chunks and segments are preserved byte by byte within a format; EXIF and text are translated
between formats. The orientation is removed everywhere, since it has been applied to the pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from dn_core.files.image import METRES
from dn_core.files.orientation import reset_xmp_orientation

__all__ = [
    "PNG_TEXT",
    "chunks_of",
    "density",
    "exif_beyond_text",
    "exif_of_text",
    "jpeg_segments",
    "png_chunks",
    "read_metadata",
    "text_of_exif",
    "with_chunks",
    "with_segments",
]  # fmt: skip

PNG_TEXT = {"Title": 269, "Description": 270, "Software": 305, "Author": 315, "Copyright": 33432}
"""Keywords of PNG text, and the TIFF and EXIF tags with the same meaning."""
_EXIF_TEXT = (270, 271, 272, 305, 306, 315, 33432)
_ORIENTATION, _EXIF_DIRECTORY, _GPS, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0x8825, 0xA002, 0xA003
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Chunks that stay valid when the pixels change, beyond those that PNG itself marks as such.
_SAFE_CHUNKS = {
    b"cHRM",
    b"cICP",
    b"cLLI",
    b"eXIf",
    b"gAMA",
    b"iCCP",
    b"mDCV",
    b"oFFs",
    b"pCAL",
    b"sBIT",
    b"sCAL",
    b"sRGB",
    b"sTER",
    b"tIME",
}
# Chunks of palettes and animations, which the pixels that are read have not.
_PIXEL_CHUNKS = {b"acTL", b"fcTL", b"fdAT", b"hIST", b"sPLT"}


def read_metadata(picture: Any, content: bytes) -> dict[str, Any]:
    """The metadata of an image opened and loaded by Pillow, as `ImageFile.metadata` has them.

    Parameters
    ----------
    picture : object
        The image.
    content : bytes
        All bytes of a PNG; of a JPEG nothing is needed.
    """
    png = picture.format == "PNG"
    metadata: dict[str, Any] = {
        key: picture.info[key] for key in ("dpi", "icc_profile") if picture.info.get(key)
    }
    lost: list[str] = []
    exif = _exif_bytes(picture.info)
    if exif:
        metadata["exif"], thumbnail = _upright_exif(exif, picture.size)
        lost += ["EXIF thumbnail"] if thumbnail else []
    xmp = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp")
    if xmp:
        metadata["xmp"] = reset_xmp_orientation(xmp.encode() if isinstance(xmp, str) else xmp)
    words = text_of_exif(metadata.get("exif", b""))
    if png:
        text = {
            key: str(value)
            for key, value in picture.text.items()
            if not key.startswith(("XML:com.adobe.xmp", "Raw profile type"))
        }
        words |= {
            PNG_TEXT[key]: value
            for key, value in text.items()
            if key in PNG_TEXT and PNG_TEXT[key] not in words
        }
        if text:
            metadata["text"] = text
        metadata["png_chunks"], dropped = _kept_chunks(
            content, metadata, palette=picture.mode in ("P", "PA")
        )
        lost += dropped
    else:
        metadata["comment"] = picture.info.get("comment", b"")
        metadata["jpeg_segments"] = _kept_segments(picture, metadata)
        metadata["jpeg"] = {
            "tables": picture.quantization,
            "progressive": bool(picture.info.get("progressive")),
        }
    if metadata.get("comment") and 270 not in words:
        words[270] = metadata["comment"].decode("utf-8", "replace")
    if words:
        metadata["words"] = words
    if lost:
        metadata["lost"] = tuple(lost)
    return metadata


def density(metadata: dict[str, Any]) -> tuple[float, float] | None:
    """Dots per inch along x and y, from the resolution or pixel size of any format."""
    if "dpi" in metadata:
        found = tuple(float(value) for value in metadata["dpi"])
    elif {"X", "Y"} <= metadata.get("pixel_size", {}).keys():
        sizes = [
            metadata["pixel_size"][axis] * METRES.get(metadata["pixel_unit"][axis], 0)
            for axis in "XY"
        ]
        found = tuple(0.0254 / size if size > 0 else 0.0 for size in sizes)
    elif metadata.get("resolutionunit") in (2, 3):
        per_inch = 1 if metadata["resolutionunit"] == 2 else 2.54
        found = tuple(
            per_inch * value[0] / value[1] if value[1] else 0.0 for value in metadata["resolution"]
        )
    else:
        return None
    return (found[0], found[1]) if min(found) > 0 else None


# EXIF


def _exif_bytes(info: dict[str, Any]) -> bytes:
    if info.get("exif"):
        return bytes(info["exif"]).removeprefix(_EXIF)
    raw = info.get("Raw profile type exif") or info.get("Raw profile type APP1")
    if not raw:
        return b""
    with contextlib.suppress(ValueError):
        return bytes.fromhex("".join(raw.split("\n")[3:])).removeprefix(_EXIF)
    return b""


def _upright_exif(exif: bytes, size: tuple[int, int]) -> tuple[bytes, bool]:
    """EXIF with orientation 1 and without its thumbnail, and whether there was a thumbnail.

    It is changed in place: camera makers' notes contain offsets that only their programs know.
    """
    changed = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return exif, False
    transposed = False
    try:
        first = struct.unpack_from(f"{order}I", exif, 4)[0]
        for at, code in _entries(exif, order, first):
            if code == _ORIENTATION:
                transposed = struct.unpack_from(f"{order}H", exif, at + 8)[0] in (5, 6, 7, 8)
                struct.pack_into(f"{order}HIHH", changed, at + 2, 3, 1, 1, 0)
        for at, code in _entries(exif, order, first):
            if code == _EXIF_DIRECTORY and transposed:
                _exchange_sizes(
                    exif, changed, order, struct.unpack_from(f"{order}I", exif, at + 8)[0]
                )
        end = first + 2 + 12 * struct.unpack_from(f"{order}H", exif, first)[0]
        thumbnail = struct.unpack_from(f"{order}I", exif, end)[0] != 0
        struct.pack_into(f"{order}I", changed, end, 0)
    except struct.error:  # cut off: other programs cannot read it either
        return exif, False
    return bytes(changed), thumbnail


def _entries(exif: bytes, order: str, directory: int) -> Iterator[tuple[int, int]]:
    for number in range(struct.unpack_from(f"{order}H", exif, directory)[0]):
        at = directory + 2 + 12 * number
        yield at, struct.unpack_from(f"{order}H", exif, at)[0]


def _exchange_sizes(exif: bytes, changed: bytearray, order: str, directory: int) -> None:
    places = {
        code: at for at, code in _entries(exif, order, directory) if code in (_WIDTH, _HEIGHT)
    }
    if len(places) == 2:
        for code, other in ((_WIDTH, _HEIGHT), (_HEIGHT, _WIDTH)):
            changed[places[code] + 2 : places[code] + 12] = exif[
                places[other] + 2 : places[other] + 12
            ]


def text_of_exif(exif: bytes) -> dict[int, str]:
    """The text in EXIF, by the numbers of the tags."""
    from PIL import Image

    found = Image.Exif()
    with contextlib.suppress(Exception):  # unreadable EXIF is still passed on byte by byte
        found.load(exif)
    return {code: _text(found[code]) for code in _EXIF_TEXT if isinstance(found.get(code), str)}


def _text(latin: str) -> str:
    """Text of EXIF: the standard is ASCII, most programs write UTF-8, Pillow reads Latin-1."""
    with contextlib.suppress(UnicodeError):
        latin = latin.encode("latin-1").decode()
    return latin.rstrip("\0")


def exif_of_text(words: dict[int, str]) -> bytes:
    """EXIF with the text of another format; empty when there is none."""
    from PIL import Image

    exif = Image.Exif()
    exif.update({code: text.encode() for code, text in words.items() if code in _EXIF_TEXT})
    return exif.tobytes().removeprefix(_EXIF) if len(exif) else b""


def exif_beyond_text(exif: bytes) -> list[str]:
    """Names of what EXIF holds that formats without it cannot."""
    from PIL import Image

    found = Image.Exif()
    with contextlib.suppress(Exception):
        found.load(exif)
    others = [
        code for code in found if code not in (*_EXIF_TEXT, _ORIENTATION, _GPS, 282, 283, 296, 531)
    ]
    return [*(["EXIF"] if others else []), *(["GPS position"] if _GPS in found else [])]


# PNG


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a PNG: their names and contents."""
    at = len(_SIGNATURE)
    while at + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, at)
        yield name, content[at + 8 : at + 8 + length]
        at += length + 12


def _kept_chunks(
    content: bytes, metadata: dict[str, Any], *, palette: bool
) -> tuple[list[tuple[bytes, bytes]], list[str]]:
    kept, lost = [], list[str]()
    for name, data in png_chunks(content):
        if name[:1].isupper() or name in _PIXEL_CHUNKS or (name == b"tRNS" and palette):
            continue
        keyword = data.partition(b"\0")[0]
        if (name == b"sBIT" and palette) or not (name in _SAFE_CHUNKS or name[3:].islower()):
            words = {
                b"tRNS": "transparent colour",
                b"bKGD": "background colour",
                b"sBIT": "significant bits",
            }
            lost.append(words.get(name, f"PNG chunk {name.decode('latin-1')}"))
        elif name in (b"eXIf", b"iTXt", b"tEXt", b"zTXt") and (
            name == b"eXIf" or keyword.startswith(b"Raw profile type exif")
        ):
            continue  # written with orientation 1
        elif name == b"iTXt" and keyword == b"XML:com.adobe.xmp":
            continue
        else:
            kept.append((name, data))
    if "exif" in metadata:
        kept.append((b"eXIf", metadata["exif"]))
    if "xmp" in metadata:
        kept.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata["xmp"]))
    return kept, lost


def with_chunks(png: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG with further chunks after its header, where every chunk may be."""
    start = len(_SIGNATURE) + 25
    laid = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return png[:start] + b"".join(laid) + png[start:]


def chunks_of(
    options: dict[str, Any], xmp: bytes, texts: dict[str, str]
) -> list[tuple[bytes, bytes]]:
    """The chunks that Pillow writes for resolution, profile and EXIF, and for XMP and text."""
    from PIL import Image, PngImagePlugin

    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("L", (1, 1)).save(file, format="PNG", pnginfo=info, **options)
    chunks = [(name, data) for name, data in png_chunks(file.getvalue()) if name[:1].islower()]
    return chunks + ([(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)] if xmp else [])


# JPEG


def jpeg_segments(metadata: dict[str, Any]) -> list[tuple[int, bytes]]:
    """The segments with EXIF, XMP and comment for an image that was not a JPEG."""
    exif = metadata.get("exif") or exif_of_text(metadata.get("words", {}))
    segments = [(0xE1, _EXIF + exif)] if exif else []
    segments += [(0xE1, _XMP + metadata["xmp"])] if metadata.get("xmp") else []
    comment = metadata.get("comment") or metadata.get("text", {}).get("Comment", "").encode()
    return segments + ([(0xFE, comment)] if comment else [])


def _kept_segments(picture: Any, metadata: dict[str, Any]) -> list[tuple[int, bytes]]:
    kept = []
    for name, data in picture.applist:
        number = 0xFE if name == "COM" else 0xE0 + int(name[3:])
        if number in (0xE0, 0xEE) or (number == 0xE2 and data.startswith(b"MPF\0")):
            continue  # how the pixels are coded, and the offsets of further images
        if number == 0xE1 and data.startswith(_EXIF) and "exif" in metadata:
            data = _EXIF + metadata["exif"]
        elif number == 0xE1 and data.startswith(_XMP) and "xmp" in metadata:
            data = _XMP + metadata["xmp"]
        kept.append((number, data))
    return kept


def with_segments(jpeg: bytes, segments: list[tuple[int, bytes]]) -> bytes:
    """A JPEG with further segments after its first one, which is JFIF's."""
    start = 2 + 2 + struct.unpack_from(">H", jpeg, 4)[0] if jpeg[2:4] == b"\xff\xe0" else 2
    laid = [
        b"\xff" + bytes([number]) + struct.pack(">H", len(data) + 2) + data
        for number, data in segments
        if len(data) <= 65533
    ]
    return jpeg[:start] + b"".join(laid) + jpeg[start:]

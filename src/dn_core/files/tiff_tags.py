"""Metadata tags of a TIFF: description, software, date, GeoTIFF, XMP, private ones.

They are preserved byte by byte, in the byte order of the file, so that unknown ones survive too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

__all__ = [
    "DESCRIPTION",
    "SOFTWARE",
    "WORDS",
    "XMP",
    "Tag",
    "extra_tags",
    "read_tags",
    "tag_names",
    "text_tag",
    "write_page_tags",
]

DESCRIPTION, SOFTWARE, XMP = 270, 305, 700
WORDS = {
    DESCRIPTION: "description",
    271: "make",
    272: "model",
    SOFTWARE: "software",
    306: "date",
    315: "artist",
    33432: "copyright",
}
"""Tags with text, which EXIF has under the same numbers."""
GEOTIFF = {33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113}
MAX_BYTES = 64 * 2**20
"""The most bytes of all preserved tags together."""

# Tags of the pixel layout, and of what is preserved elsewhere: resolution, orientation, palette,
# colour profile, ImageJ's metadata.
# fmt: off
_OF_PIXELS = {
    *range(254, 260), 262, 263, 264, 265, 266, 273, 274, 277, 278, 279, 282, 283, 284, 288, 289,
    290, 291, 292, 293, 296, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347, *range(512, 522),
    529, 530, 531, 532, 32997, 32998, 34675, 50674, 50838, 50839,
}
# fmt: on
# Further directories, which contain offsets in the file.
_DIRECTORIES = {400: "global parameters", 34665: "EXIF", 34853: "GPS position", 40965: "EXIF"}
# Tags by which readers recognise a microscope's own kind of TIFF: in a file of another structure
# they would break reading.
_VENDORS = {
    33628,
    33629,
    33630,
    33631,
    34361,
    34362,
    34412,
    43314,
    34118,
    *range(65420, 65460),
    33445,
    33446,
    33447,
    33448,
    33449,
    33560,
}
_FRACTIONS = {5: "I", 10: "i"}
_PLAIN_KINDS = {"generic", "uniform", "shaped", "ome", "imagej", "svs"}
_DESCRIBED_KINDS = {"fluoview", "scn", "qpi", "philips", "scanimage", "bif", "eer"}


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of the first page, with its bytes in the file.

    Attributes
    ----------
    code, dtype : int
        Numbers of TIFF.
    content : bytes
        Its bytes, in the byte order of the file.
    everywhere : bool, default False
        Whether all pages have it.
    pages : tuple of bytes, optional
        The content in each page, if it differs.
    """

    code: int
    dtype: int
    content: bytes
    everywhere: bool = False
    pages: tuple[bytes, ...] = ()

    @property
    def text(self) -> str:
        """The text of a tag that holds text."""
        return self.content.rstrip(b"\0").decode("utf-8", "replace")


def text_tag(code: int, text: str) -> Tag:
    """A tag with text, in UTF-8: the standard is ASCII, but all programs read UTF-8."""
    return Tag(code, 2, text.encode() + b"\0")


def read_tags(tif: TiffFile, series: TiffPageSeries) -> tuple[tuple[Tag, ...], tuple[str, ...]]:
    """The tags of the first page that are preserved, and names of the others."""
    page, lost = series.keyframe, list[str]()
    kept: dict[int, Tag] = {}
    room = MAX_BYTES
    for tag in page.tags:
        code = int(tag.code)
        if (
            code in _OF_PIXELS
            or code in kept
            or (code == DESCRIPTION and not _is_own_description(series, tag.value))
        ):
            continue
        if code == SOFTWARE and tag.value == "tifffile.py":  # its default, nobody's choice
            continue
        vendor = series.kind not in _PLAIN_KINDS and code not in (*WORDS, *GEOTIFF, XMP)
        if code in _DIRECTORIES:
            lost.append(_DIRECTORIES[code])
        elif (
            vendor
            or code in _VENDORS
            or (code in (DESCRIPTION, SOFTWARE) and series.kind in _DESCRIBED_KINDS)
        ):
            lost.append(
                f"metadata of {series.kind.upper()} files"
                if vendor or code in WORDS
                else f"tag {code}"
            )
        elif tag.valuebytecount > room or int(tag.dtype) in (13, 18):
            lost.append(f"tag {code}")
        else:
            room -= tag.valuebytecount
            kept[code] = Tag(code, int(tag.dtype), _content(tif, tag))
    if len(series.pages) > 1 and series.kind != "imagej" and kept:
        kept, differing = _of_all_pages(tif, series, kept, room)
        lost += differing
    return tuple(kept.values()), tuple(dict.fromkeys(lost))


def _is_own_description(series: TiffPageSeries, value: Any) -> bool:
    """Whether a description is the user's, not that of the axes in this kind of TIFF."""
    return series.kind not in ("ome", "imagej") and not (
        series.kind == "shaped" and str(value).startswith('{"shape":')
    )


def _content(tif: TiffFile, tag: Any) -> bytes:
    tif.filehandle.seek(tag.valueoffset)
    content: bytes = tif.filehandle.read(tag.valuebytecount)
    return content


def _of_all_pages(
    tif: TiffFile, series: TiffPageSeries, kept: dict[int, Tag], room: int
) -> tuple[dict[int, Tag], list[str]]:
    """The tags with their contents in further pages, and names of those in only some pages."""
    looked_at = [
        page.aspage()
        for page in (series.pages[1], series.pages[-1])
        if page is not None and page.offset
    ]
    if not any(code in page.tags for code in kept for page in looked_at):
        return kept, []
    if all(_found(tif, page, tag) == tag.content for page in looked_at for tag in kept.values()):
        return {
            code: Tag(code, tag.dtype, tag.content, everywhere=True) for code, tag in kept.items()
        }, []
    contents: dict[int, list[bytes | None]] = {code: [] for code in kept}
    for frame in series.pages:
        page = frame.aspage() if frame is not None else None
        for code, tag in kept.items():
            contents[code].append(None if page is None else _found(tif, page, tag))
    found, lost = {}, list[str]()
    for code, tag in kept.items():
        there = [content for content in contents[code] if content is not None]
        room -= sum(map(len, there))
        if len(there) == 1:
            found[code] = tag
        elif (
            len(there) < len(series.pages)
            or room < 0
            or (_room(code) > 1 and min(map(len, there)) <= _room(code))
        ):
            found[code] = tag
            lost.append(f"{WORDS.get(code, f'tag {code}')} of single planes")
        else:
            found[code] = Tag(
                code,
                tag.dtype,
                tag.content,
                everywhere=True,
                pages=tuple(there) if len(set(there)) > 1 else (),
            )
    return found, lost


def _found(tif: TiffFile, page: TiffPage, like: Tag) -> bytes | None:
    tag = page.tags.get(like.code)
    return None if tag is None or int(tag.dtype) != like.dtype else _content(tif, tag)


def tag_names(tags: Iterable[Tag]) -> list[str]:
    """Names of tags, for a message."""
    tags = list(tags)
    names = [WORDS[tag.code] for tag in tags if tag.code in WORDS]
    if GEOTIFF & {tag.code for tag in tags}:
        names.append("GeoTIFF tags")
    if XMP in {tag.code for tag in tags}:
        names.append("XMP")
    others = [str(tag.code) for tag in tags if tag.code not in (*WORDS, *GEOTIFF, XMP)]
    if others:
        names.append(
            f"tag{'s' if len(others) > 1 else ''} "
            f"{', '.join(others[:8])}{', ...' if len(others) > 8 else ''}"
        )
    return names


def extra_tags(tags: Iterable[Tag], byteorder: str) -> list[tuple[int, int, int, Any, bool]]:
    """Tags as tifffile's writer takes them.

    Tags that differ between pages are written as placeholders that `write_page_tags` fills.
    """
    found: list[tuple[int, int, int, Any, bool]] = []
    for tag in tags:
        if tag.pages:
            found.append((tag.code, 1, 0, bytes(_room(tag.code)), False))
        elif tag.dtype in _FRACTIONS:  # given as bytes, tifffile would miscount them
            count = len(tag.content) // 8
            values = struct.unpack(
                f"{byteorder}{2 * count}{_FRACTIONS[tag.dtype]}", tag.content[: 8 * count]
            )
            found.append((tag.code, tag.dtype, count, values, not tag.everywhere))
        else:
            found.append((tag.code, tag.dtype, 0, tag.content, not tag.everywhere))
    return found


def _room(code: int) -> int:
    """The size of a tag's placeholder, in bytes.

    One byte is stored in the directory of its page. Tags with a special reader in tifffile must not
    be there; all pages share their placeholder, and only longer contents can replace it.
    """
    import tifffile

    return 9 if code in tifffile.TIFF.TAG_READERS else 1


def write_page_tags(path: Path, tags: Iterable[Tag]) -> None:
    """Give each page of a complete TIFF its own content of the tags that differ between pages."""
    import tifffile

    differing = [tag for tag in tags if tag.pages]
    if not differing:
        return
    with tifffile.TiffFile(path, mode="r+") as tif:
        for index in range(len(differing[0].pages)):  # the pages of levels come after these
            page = tif.pages[index].aspage()
            for tag in differing:
                page.tags[tag.code].overwrite(tag.pages[index], dtype=tag.dtype)

"""Checksums of PNG chunks, of which Pillow checks only some."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from dn_core.errors import ImageFileError
from dn_core.files.image import printable

__all__ = ["check_png_checksums"]

PIECE = 2**20


def check_png_checksums(path: Path) -> None:
    """Refuse a PNG with a chunk that is cut off or does not match its checksum.

    Pillow does not check the chunks with the pixels: a damaged palette image would be read with
    wrong pixels. Data after the last chunk are ignored.
    """
    with open(path, "rb") as file:
        file.seek(8)
        name = b""
        while name != b"IEND":
            start = file.read(8)
            if len(start) < 8:
                raise ImageFileError(
                    f"{printable(path)} is cut off: its last chunk is missing. Copy it again or "
                    "export it again."
                )
            length, name = struct.unpack(">I4s", start)
            checksum, left = zlib.crc32(name), length
            while left and (content := file.read(min(left, PIECE))):
                checksum, left = zlib.crc32(content, checksum), left - len(content)
            if file.read(4) != struct.pack(">I", checksum):
                raise ImageFileError(
                    f"{printable(path)} is damaged: its chunk {name.decode('latin-1')!r} does not "
                    "match its checksum. Copy it again or export it again."
                )

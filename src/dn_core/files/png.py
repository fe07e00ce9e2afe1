"""The checksums of a PNG, of which readers check some."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from dn_core.errors import ImageFileError
from dn_core.files.image import printable

__all__ = ["check_chunks"]

PIECE = 2**20


def check_chunks(path: Path) -> None:
    """Refuse a PNG in which a chunk is cut off or is not what its checksum says; what comes after the last chunk is not looked at.

    Pillow does not check the pixels' own: a damaged palette image is read with wrong pixels.
    """
    with open(path, "rb") as file:
        file.seek(8)
        name = b""
        while name != b"IEND":
            start = file.read(8)
            if len(start) < 8:
                raise ImageFileError(f"{printable(path)} is cut off: its last chunk is missing. Copy it again or export it again.")
            length, name = struct.unpack(">I4s", start)
            checksum, left = zlib.crc32(name), length
            while left and (content := file.read(min(left, PIECE))):
                checksum, left = zlib.crc32(content, checksum), left - len(content)
            if file.read(4) != struct.pack(">I", checksum):
                raise ImageFileError(
                    f"{printable(path)} is damaged: its chunk {name.decode('latin-1')!r} is not what its checksum says. Copy it again or "
                    "export it again."
                )

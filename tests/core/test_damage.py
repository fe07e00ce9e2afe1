"""Damaged files are refused, or read with the right pixels.

PNG, TIFF with zlib and OME-Zarr as we write it have checksums: there no damage of the pixels goes
unnoticed. Other compressions of TIFF and raw pixels have none, and nobody can know; there the
places of the pixels are damaged instead, which contradict each other then. What a directory alone
says, such as the size and the bits of a pixel, is left out: it cannot be checked against anything.
"""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from dn_core import files
from dn_core.errors import ImageFileError

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (8, 48, 40)).astype(np.uint16)
WHAT_PIXELS_ARE = {
    *(
        "ImageWidth",
        "ImageLength",
        "BitsPerSample",
        "SampleFormat",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "Orientation",
    )
}


def refused_or_right(path, content, pixels):
    """Whether the file with this content is refused; if it is not, its pixels must be these."""
    path.write_bytes(content)
    try:
        found = files.read_image(path, missing="refuse").pixels
    except (ImageFileError, MemoryError):
        return True
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    return False


def palette_image():
    colours = Image.fromarray(RNG.integers(0, 4, (40, 32)).astype(np.uint8))
    return colours.convert("P")


PNGS = {
    "grey": lambda: Image.fromarray(RNG.integers(0, 256, (40, 32)).astype(np.uint8)),
    "16 bits": lambda: Image.fromarray(RNG.integers(0, 65536, (40, 32)).astype(np.uint16)),
    "colours": lambda: Image.fromarray(RNG.integers(0, 256, (40, 32, 3)).astype(np.uint8)),
    "palette": palette_image,
}


@pytest.mark.parametrize("kind", PNGS)
def test_every_flipped_bit_of_a_png_is_noticed(kind, tmp_path):
    path = tmp_path / "a.png"
    PNGS[kind]().save(path, dpi=(100, 100))
    whole, pixels = path.read_bytes(), files.read_image(path).pixels
    for position in (
        *range(60),
        *RNG.integers(60, len(whole), 60),
        *range(len(whole) - 16, len(whole)),
    ):
        content = bytearray(whole)
        content[position] ^= 1 << RNG.integers(8)
        assert refused_or_right(path, content, pixels), f"byte {position}"


def test_a_png_says_which_chunk_is_damaged_and_when_it_is_cut_off(tmp_path):
    path = tmp_path / "a.png"
    palette_image().save(path)
    whole = path.read_bytes()
    content = bytearray(whole)
    content[whole.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ImageFileError,
        match=r"a\.png is damaged: its chunk 'IDAT' does not match its checksum\. Copy it again",
    ):
        files.read_image(path)
    path.write_bytes(whole[:-12])
    with pytest.raises(ImageFileError, match=r"a\.png is cut off"):
        files.read_image(path)
    path.write_bytes(whole + b"what a camera adds")
    assert files.read_image(path).shape == (40, 32, 3)


TIFFS = {
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "imagej": {"imagej": True},
    "plain": {},
    "lzw": {"compression": "lzw", "tile": (16, 16)},
    "zlib": {"compression": "zlib"},
}


def written(path, kind):
    """A TIFF, its bytes other than pixels and their layout, and those of its description."""
    tifffile.imwrite(path, STACK, photometric="minisblack", **TIFFS[kind])
    whole = path.read_bytes()
    structure, description = np.ones(len(whole), bool), slice(0, 0)
    with tifffile.TiffFile(path) as tif:
        tif.pages.useframes = False
        for page in tif.pages:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                structure[offset : offset + count] = False
            for tag in page.tags:
                if tag.name in WHAT_PIXELS_ARE:
                    structure[tag.offset : tag.offset + 12] = False
        if text := tif.pages[0].tags.get("ImageDescription"):
            description = slice(text.valueoffset, text.valueoffset + text.valuebytecount)
    structure[description] = False
    return whole, np.flatnonzero(structure), np.arange(description.start, description.stop)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", TIFFS)
def test_damaged_places_of_pixels_never_give_other_pixels(kind, count, tmp_path):
    path = tmp_path / "a.tif"
    whole, positions, _ = written(path, kind)
    rng, refused = np.random.default_rng(count), 0
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.choice(positions, count, replace=False):
            content[position] = rng.integers(256)
        refused += refused_or_right(path, content, STACK)
    assert refused


@pytest.mark.parametrize("kind", TIFFS)
def test_a_damaged_description_never_gives_other_pixels(kind, tmp_path):
    path = tmp_path / "a.tif"
    whole, _, positions = written(path, kind)
    rng, read = np.random.default_rng(5), 0
    for _ in range(60):
        content = bytearray(whole)
        for position in rng.choice(positions, 2, replace=False):
            content[position] = rng.integers(256)
        read += not refused_or_right(path, content, STACK)
    assert read


@pytest.mark.parametrize("kind", TIFFS)
def test_every_flipped_bit_of_where_the_pixels_are_is_noticed_or_changes_nothing(kind, tmp_path):
    path = tmp_path / "a.tif"
    whole, *_ = written(path, kind)
    with tifffile.TiffFile(path) as tif:
        entries = [
            tag.offset
            for tag in tif.pages[0].tags
            if tag.name.endswith(("Offsets", "ByteCounts")) or tag.name == "Compression"
        ]
    assert len(entries) == 3
    for offset in entries:
        for bit in range(12 * 8):
            content = bytearray(whole)
            content[offset + bit // 8] ^= 1 << bit % 8
            refused_or_right(path, content, STACK)


def test_tiles_that_are_equal_may_be_stored_once(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((32, 32), np.uint8), tile=(16, 16), photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        entry, first = tif.pages[0].tags["TileOffsets"], tif.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[entry.valueoffset : entry.valueoffset + 16] = np.full(4, first, "<u4").tobytes()
    assert not refused_or_right(path, content, np.zeros((32, 32), np.uint8))

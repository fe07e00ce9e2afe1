"""Metadata are preserved or reported as lost in every format; images look the same."""

from __future__ import annotations

import json
import re
import struct
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image, ImageCms, ImageOps, features
from typer.testing import CliRunner

from dn_core import files
from dn_core.cli import app
from dn_core.comparison import write_comparison
from dn_core.files import tiff_layout

RANDOM = np.random.default_rng(0)
DEEP = RANDOM.integers(900, 1100, (70, 90)).astype(np.uint16)
GREY = RANDOM.integers(90, 110, (70, 90)).astype(np.uint8)
COLOURS = RANDOM.integers(90, 110, (70, 90, 3)).astype(np.uint8)
PROFILE = (
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if features.check("littlecms2")
    else b"profile" * 100
)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:title>cells</dc:title></x:xmpmeta>'
ROI = b"Iout\x00\xe3\x00\x00\x00\x01\x00\x02\x00\x05\x00\x06" + bytes(48)


def copied(source, target):
    """Write the image to another file; give what was said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with (
            files.open_image(source) as image,
            files.create_image(target, image, overwrite=True) as out,
        ):
            out[...] = image.source[...]
    assert [entry.category for entry in caught] == [UserWarning] * len(caught)
    return " ".join(str(entry.message) for entry in caught)


# Every format to every other: each thing an image says is kept, or named as lost


def plain_tiff(path, pixels=DEEP, **more):
    tags = [
        (270, 2, 0, "exposure 50 ms, caf\u00e9".encode(), True),
        (306, 2, 0, "2020:02:03 04:05:06", True),
        (315, 2, 0, "Anna", True),
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (42113, 2, 0, "-9999", True),
        (65000, 2, 0, "secret", True),
        (700, 1, len(XMP), XMP, True),
    ]
    options = {"resolution": (300, 200), "resolutionunit": "INCH", "iccprofile": PROFILE, **more}
    tifffile.imwrite(path, pixels, software="MyScope", metadata=None, extratags=tags, **options)


def described_tiff(path):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "operator": "Anna"}
    tifffile.imwrite(path, DEEP, metadata=metadata, software="MyScope")


def ome_tiff(path):
    metadata = {
        "axes": "CYX",
        "PhysicalSizeX": 0.25,
        "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 2.0,
        "TimeIncrement": 3.0,
        "Name": "cells",
        "AcquisitionDate": "2020-02-03T04:05:06",
        "Description": "exposure 50 ms",
        "Channel": {"Name": ["DNA"], "Color": [255], "EmissionWavelength": [500]},
        "Plane": {"PositionX": [1.5], "DeltaT": [0.5]},
    }
    tifffile.imwrite(
        path, DEEP[None], metadata=metadata, ome=True, photometric="minisblack", software="MyScope"
    )
    xml = tifffile.tiffcomment(path)
    more = '<Instrument ID="Instrument:0"><Objective ID="Objective:0"/></Instrument><Image '
    tifffile.tiffcomment(path, xml.replace("<Image ", more, 1).encode())


def imagej_tiff(path):
    metadata = {
        "axes": "YX",
        "unit": "um",
        "spacing": 2.0,
        "finterval": 3.0,
        "min": 900.0,
        "max": 1000.0,
        "Info": "objective 40x",
        "Labels": ["one"],
        "Ranges": (900.0, 1000.0),
        "ROI": ROI,
        "Overlays": [ROI],
        "LUTs": [np.arange(768, dtype=np.uint8).reshape(3, 256)],
    }
    tifffile.imwrite(path, DEEP, imagej=True, resolution=(4, 2), metadata=metadata)


def exif(*, orientation=None):
    found = Image.Exif()
    found.update({270: "exposure 50 ms", 305: "MyScope", 306: "2020:02:03 04:05:06"})
    found.get_ifd(0x8769).update({0x829A: 0.05, 0xA002: 90, 0xA003: 70, 0x927C: b"maker" * 5})
    found.get_ifd(0x8825).update({1: "N"})
    if orientation:
        found[274] = orientation
    return found.tobytes()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path, pixels=COLOURS):
    chunks = [
        chunk(b"gAMA", struct.pack(">I", 50000)),
        chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(PROFILE)),
        chunk(b"pHYs", struct.pack(">IIB", 11811, 7874, 1)),
        chunk(b"tEXt", b"Description\0exposure 50 ms"),
        chunk(b"zTXt", b"Lamp\0\0" + zlib.compress(b"mercury")),
        chunk(b"iTXt", b"Author\0\0\0\0\0" + "Zoë".encode()),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"eXIf", exif().removeprefix(b"Exif\0\0")),
        chunk(b"tIME", struct.pack(">HBBBBB", 2020, 2, 3, 4, 5, 6)),
        chunk(b"laMp", b"safe to copy"),
        chunk(b"laMP", b"not safe to copy"),
    ]
    content = imagecodecs.png_encode(pixels)
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def deep_png(path):
    png(path, COLOURS.astype(np.uint16) * 200)


def jpeg(path):
    Image.fromarray(COLOURS).save(
        path,
        quality=80,
        dpi=(300, 200),
        icc_profile=PROFILE,
        exif=exif(),
        comment=b"by hand",
        progressive=True,
    )
    content = path.read_bytes()
    segments = [
        b"\xff\xe1" + struct.pack(">H", len(XMP) + 31) + b"http://ns.adobe.com/xap/1.0/\0" + XMP,
        b"\xff\xed\0\x10Photoshop 3.0\0",
    ]
    path.write_bytes(content[:20] + b"".join(segments) + content[20:])


def ome_zarr(path):
    group = zarr.create_group(path)
    for name, shape in (("0", (1, 70, 90)), ("1", (1, 35, 45))):
        group.create_array(
            name, shape=shape, dtype="u2", chunks=(1, 35, 45), dimension_names=["c", "y", "x"]
        )[...] = 1000
    axes = [
        {"name": "c", "type": "channel"},
        *({"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"),
    ]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1, 0.5 * 2**level, 0.25 * 2**level]}
            ],
        }
        for level in range(2)
    ]
    omero = {
        "channels": [
            {
                "label": "DNA",
                "color": "0000FF",
                "window": {"start": 0, "end": 9, "min": 0, "max": 99},
            }
        ]
    }
    multiscales = [{"name": "cells", "axes": axes, "datasets": datasets}]
    group.attrs.update(
        ome={"version": "0.5", "multiscales": multiscales, "omero": omero}, lab={"operator": "Anna"}
    )


SOURCES = {
    "plain.tif": plain_tiff,
    "grey.tif": lambda path: plain_tiff(path, GREY),
    "described.tif": described_tiff,
    "a.ome.tif": ome_tiff,
    "imagej.tif": imagej_tiff,
    "a.png": png,
    "deep.png": deep_png,
    "a.jpg": jpeg,
    "a.ome.zarr": ome_zarr,
}


def said_by(path):
    """All that a file says of itself, as other libraries read it."""
    if path.suffix == ".zarr":
        return said_by_zarr(path)
    return said_by_tiff(path) if path.suffix == ".tif" else said_by_picture(path)


def said_by_tiff(path):
    with tifffile.TiffFile(path) as tif:
        page, series = tif.pages.first, tif.series[0]
        tags = {tag.code: tag.value for tag in page.tags}
        said = {
            "software": tags.get(305),
            "date": tags.get(306),
            "artist": tags.get(315),
            "geo": tags.get(33550),
        }
        said["private"] = tags.get(65000)
        said.update(
            {
                "nodata": tags.get(42113),
                "xmp": tags.get(700),
                "profile": tags.get(34675),
                "levels": len(series.levels) - 1 or None,
            }
        )
        said["software"] = (
            None if str(said["software"]).startswith("tifffile") else said["software"]
        )
        if page.resolutionunit in (2, 3) and not tif.is_imagej:
            said["resolution"] = round(
                page.resolution[0] * (1 if page.resolutionunit == 2 else 2.54)
            )
        if tif.is_ome:
            xml = tif.ome_metadata
            names = {
                "description": "<Description>(.*?)</",
                "acquired": "<AcquisitionDate>(.*?)</",
                "channel": '<Channel [^>]*Name="(.*?)"',
            }
            names.update(
                {
                    "colour": 'Color="(.*?)"',
                    "position": 'PositionX="(.*?)"',
                    "instrument": "<Instrument (.*?)>",
                }
            )
            names.update(
                {
                    "pixel size": 'PhysicalSizeX="(.*?)"',
                    "spacing": 'PhysicalSizeZ="(.*?)"',
                    "interval": 'TimeIncrement="(.*?)"',
                }
            )
            said.update(
                {
                    name: found[1]
                    for name, pattern in names.items()
                    if (found := re.search(pattern, xml))
                }
            )
        elif tif.is_imagej:
            found = tif.imagej_metadata
            said.update(
                {
                    "pixel size": 1 / page.resolution[0],
                    "spacing": found["spacing"],
                    "interval": found["finterval"],
                }
            )
            said.update(
                {
                    key: str(found[key])
                    for key in ("Info", "Labels", "Ranges", "LUTs", "ROI", "Overlays")
                    if key in found
                }
            )
        elif tif.is_shaped:
            found = tif.shaped_metadata[0]
            said.update(
                {"description": page.description if not page.description.startswith("{") else None}
            )
            said["pixel size"] = found.get("PhysicalSizeX")
            said["channel"] = found.get("Channel", {}).get("Name", [None])[0]
            said["operator"] = found.get("operator")
        else:
            said["description"] = page.description
    return said


def said_by_picture(path):
    with Image.open(path) as picture:
        picture.load()
        found = picture.getexif()
        words = {
            code: str(found[code]).encode("latin-1").decode()
            for code in (270, 315)
            if code in found
        }
        said = {
            "profile": picture.info.get("icc_profile"),
            "description": words.get(270),
            "software": found.get(305),
        }
        said["date"] = found.get(306)
        said.update(
            {
                "artist": words.get(315),
                "exposure": found.get_ifd(0x8769).get(0x829A),
                "maker": found.get_ifd(0x8769).get(0x927C),
            }
        )
        said["gps"] = found.get_ifd(0x8825).get(1)
        said["xmp"] = (
            picture.info.get("xmp")
            or getattr(picture, "text", {}).get("XML:com.adobe.xmp", "").encode()
        )
        dots = picture.info.get("dpi")
        said["resolution"] = round(dots[0]) if dots else None
        said["pixel size"] = 25400 / dots[0] if dots else None
        text = getattr(picture, "text", {})
        said.update({"text": text.get("Lamp"), "author": text.get("Author")})
        said["comment"] = picture.info.get("comment", b"").decode() or text.get("Comment")
        said.update(
            {"gamma": picture.info.get("gamma"), "primaries": picture.info.get("chromaticity")}
        )
        if path.suffix == ".png":
            content = path.read_bytes()
            said.update(
                {
                    "time": b"tIME" in content or None,
                    "safe": b"laMp" in content or None,
                    "unsafe": b"laMP" in content or None,
                }
            )
        else:
            said["iptc"] = b"Photoshop" in path.read_bytes() or None
    return said


def said_by_zarr(path):
    attributes = dict(zarr.open_group(path, mode="r").attrs)
    multiscale = attributes["ome"]["multiscales"][0]
    units = {axis["name"]: axis.get("unit") for axis in multiscale["axes"]}
    scale = multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][-1]
    channels = attributes["ome"].get("omero", {}).get("channels", [{}])
    return {
        "pixel size": scale * {"micrometer": 1, "nanometer": 1e-3}[units["x"]]
        if units["x"]
        else None,
        "channel": channels[0].get("label"),
        "omero": channels[0].get("window"),
        "operator": attributes.get("lab"),
        "levels": len(multiscale["datasets"]) - 1 or None,
    }


# What is said of each thing that is lost.
LOST = {
    "description": "description",
    "software": "software",
    "date": "date",
    "artist": "artist",
    "geo": "GeoTIFF",
    "nodata": "GeoTIFF",
    "private": "tag 65000",
    "xmp": "XMP",
    "profile": "colour profile",
    "resolution": "resolution|pixel size",
    "levels": "pyramid",
    "pixel size": "pixel size|resolution",
    "spacing": "z spacing",
    "interval": "frame interval",
    "channel": "channel names",
    "colour": "channel settings",
    "position": "plane times and positions",
    "acquired": "acquisition date",
    "instrument": "OME Instrument",
    "Info": "ImageJ info",
    "Labels": "slice labels",
    "Ranges": "display range",
    "LUTs": "LUT",
    "ROI": "ROI",
    "Overlays": "overlays",
    "exposure": "EXIF",
    "maker": "EXIF",
    "gps": "GPS position",
    "text": "text 'Lamp'",
    "author": "text 'Author'|artist",
    "comment": "comment|description",
    "gamma": "gamma",
    "primaries": "primary colours",
    "time": "time of change",
    "iptc": "IPTC",
    "unsafe": "PNG chunk laMP",
    "omero": "display settings",
    "operator": "attributes lab|operator",
}
# A thing that another format has elsewhere: text of PNG is a tag in TIFF, a comment a description.
ELSEWHERE = {"author": "artist", "comment": "description", "pixel size": "resolution", "safe": ""}


@pytest.mark.parametrize("target", ["out.tif", "out.ome.tif", "out.png", "out.jpg", "out.ome.zarr"])
@pytest.mark.parametrize("source", SOURCES)
def test_everything_that_is_said_is_kept_or_named_as_lost(source, target, tmp_path):
    SOURCES[source](tmp_path / source)
    try:
        words = copied(tmp_path / source, tmp_path / target)
    except ValueError as error:
        assert re.search("cannot be written as|no RGB samples", str(error))  # noqa: PT017
        pytest.skip("the format has no such pixels")
    before, after = said_by(tmp_path / source), said_by(tmp_path / target)
    lost = []
    for key, value in before.items():
        if value is None or value == b"":
            continue
        there = after.get(key)
        if there is None and key in ELSEWHERE:
            there = after.get(ELSEWHERE[key]) or ("" if key == "safe" else None)
            value = there if there is not None and key != "author" else value
        near = (
            key == "pixel size"
            and there is not None
            and float(there) == pytest.approx(float(value), rel=1e-3)
        )
        if there is None or not (near or str(there) == str(value)):
            lost.append(key)
            assert re.search(LOST[key], words), (
                f"{key}: {value!r} became {there!r}, and all that was said is: {words!r}"
            )
    if words:
        assert lost, f"nothing is lost, and still this was said: {words}"
    if kind_of(source) == kind_of(target):
        assert not set(lost) - {"instrument", "unsafe"}


def kind_of(name):
    return ".ome.tif" if name.endswith(".ome.tif") else name[name.rindex(".") :]


def test_the_command_says_it_in_one_line(tmp_path):
    plain_tiff(tmp_path / "a.tif")
    with pytest.warns(UserWarning, match="not kept") as caught:
        assert (
            CliRunner()
            .invoke(app, ["denoise", str(tmp_path / "a.tif"), "-o", str(tmp_path / "b.png")])
            .exit_code
            == 0
        )
    assert [str(entry.message) for entry in caught] == [
        "b.png: not kept in PNG: GeoTIFF tags, tag 65000"
    ]


def test_words_that_are_no_ascii_come_back(tmp_path):
    plain_tiff(tmp_path / "a.tif")
    for name in ("b.png", "c.tif", "d.png"):
        copied(
            tmp_path / ("a.tif" if name == "b.png" else "b.png" if name == "c.tif" else "c.tif"),
            tmp_path / name,
        )
    assert said_by(tmp_path / "d.png")["description"] == "exposure 50 ms, café"


# Tags of TIFF


def page_of(path):
    with tifffile.TiffFile(path) as tif:
        return tif.pages[0]


def test_tags_of_single_planes_are_kept(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index in range(4):
            tags = [
                (65001, "d", 1, index + 0.5, True),
                (65002, "H", 1, index, True),
                (65003, 2, 0, "same", True),
            ]
            tags.append(
                (51123, 2, 0, json.dumps({"FrameIndex": index, "Camera": "x" * index}), True)
            )  # as Micro-Manager does
            words = {
                "description": f"plane {index}" + "!" * index,
                "datetime": f"2020:01:01 00:00:0{index}",
            }
            writer.write(DEEP, extratags=tags, metadata=None, **words)
    assert copied(tmp_path / "a.tif", tmp_path / "b.tif") == ""
    with (
        tifffile.TiffFile(tmp_path / "a.tif") as before,
        tifffile.TiffFile(tmp_path / "b.tif") as after,
    ):
        for one, other in zip(before.pages, after.pages, strict=True):
            for code in (270, 306, 51123, 65001, 65002, 65003):
                assert one.aspage().tags[code].value == other.aspage().tags[code].value


def test_tags_that_only_some_planes_have_are_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index in range(3):
            writer.write(
                DEEP,
                datetime="2020:01:01 00:00:00",
                extratags=[(65001, "H", 1, 7, True)] if index < 2 else [],
                metadata=None,
            )
    assert (
        copied(tmp_path / "a.tif", tmp_path / "b.tif")
        == "b.tif: not kept in TIFF: tag 65001 of single planes"
    )
    assert page_of(tmp_path / "b.tif").tags[65001].value == 7


def test_directories_inside_a_tiff_are_named(tmp_path):
    found = Image.Exif()
    found.load(exif())
    Image.fromarray(GREY).save(tmp_path / "a.tif", exif=found)
    assert (
        copied(tmp_path / "a.tif", tmp_path / "b.tif")
        == "b.tif: not kept in TIFF: EXIF, GPS position"
    )


@pytest.mark.parametrize("big", [False, True])
def test_big_endian_and_bigtiff_tags_are_the_same(big, tmp_path):
    tags = [
        (33550, "d", 3, (10.0, 10.5, 0.0), True),
        (65000, "i", 3, (-1, 2, 70000), True),
        (65001, "2I", 2, (1, 3, 2, 7), True),
    ]
    tifffile.imwrite(tmp_path / "a.tif", DEEP, byteorder=">", bigtiff=big, extratags=tags)
    assert copied(tmp_path / "a.tif", tmp_path / "b.tif") == ""
    with (
        tifffile.TiffFile(tmp_path / "a.tif") as before,
        tifffile.TiffFile(tmp_path / "b.tif") as after,
    ):
        assert (after.byteorder, after.is_bigtiff) == (">", big)
        for code in (33550, 65000, 65001):
            assert before.pages[0].tags[code].value == after.pages[0].tags[code].value


# Shown means equal


def turned_tiff(path, orientation, pixels, **options):
    tifffile.imwrite(path, pixels, extratags=[(274, 3, 1, orientation, True)], **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["b.png", "b.ome.zarr", "b.tif", "b.jpg"])
def test_a_turned_tiff_is_shown_as_it_was(orientation, name, tmp_path):
    y, x = np.mgrid[:32, :48]
    pixels = (2 * x + y).astype(np.uint8)
    turned_tiff(
        tmp_path / "a.tif",
        orientation,
        pixels,
        compression="zlib",
        resolution=(100, 200),
        resolutionunit="INCH",
    )
    assert "negative" not in copied(tmp_path / "a.tif", tmp_path / name)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.tif")))
    if name == "b.tif":
        assert page_of(tmp_path / name).tags.valueof(274, 1) == orientation
        np.testing.assert_array_equal(tifffile.imread(tmp_path / name), pixels)
        return
    found = files.read_image(tmp_path / name)
    np.testing.assert_allclose(
        found.pixels.astype(int), shown.astype(int), atol=3 if name == "b.jpg" else 0
    )
    if name != "b.ome.zarr":
        with Image.open(tmp_path / name) as picture:
            assert picture.getexif().get(274, 1) == 1
            assert picture.info["dpi"] == pytest.approx(
                (200, 100) if orientation > 4 else (100, 200), rel=0.01
            )


@pytest.mark.filterwarnings("ignore:.* its values are inverted")
def test_a_turned_stack_may_be_written_in_any_blocks(tmp_path):
    stack = np.arange(2 * 30 * 20, dtype=np.uint16).reshape(2, 30, 20)
    for orientation in range(1, 9):
        turned_tiff(
            tmp_path / "a.tif",
            orientation,
            stack,
            metadata={"axes": "ZYX"},
            photometric="miniswhite",
        )
        out = tmp_path / f"{orientation}.ome.zarr"
        with (
            files.open_image(tmp_path / "a.tif") as image,
            files.create_image(out, image) as target,
        ):
            assert target.shape == stack.shape
            target[0, 0] = stack[0, 0]
            target[0, 1:, 5] = stack[0, 1:, 5]
            target[0, 1:, :5], target[0, 1:, 6:] = stack[0, 1:, :5], stack[0, 1:, 6:]
            target[-1, ::2] = stack[-1, ::2]
            target[1:, 1::2, ...] = stack[1:, 1::2]
            target[1, 3, 4] = 7
            target[1, 3, 4] = stack[1, 3, 4]
            assert (target[...] == stack).all()
            assert target[1, 2, 3] == stack[1, 2, 3]
            assert (target[:, 4:9, -2] == stack[:, 4:9, -2]).all()
        shown = [
            np.asarray(ImageOps.exif_transpose(with_orientation(plane, orientation)))
            for plane in stack
        ]
        np.testing.assert_array_equal(files.read_image(out).pixels, 65535 - np.stack(shown))


def with_orientation(plane, orientation):
    picture = Image.fromarray(plane)
    picture.getexif()[274] = orientation
    return picture


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("b.png", "u1"), ("b.png", "u2"), ("b.jpg", "u1"), ("b.ome.zarr", "u2"), ("b.png", "?")],
)
def test_white_stays_white(name, dtype, tmp_path):
    grey = np.add.outer(np.arange(70), np.arange(90))
    pixels = (grey > 100) if dtype == "?" else grey.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    words = copied(tmp_path / "a.tif", tmp_path / name)
    assert re.search(f"{name}: 0 is white .* inverted, so that it looks the same", words)
    expected = ~pixels if dtype == "?" else np.iinfo(dtype).max - pixels
    np.testing.assert_allclose(
        files.read_image(tmp_path / name).pixels.astype(int),
        expected.astype(int),
        atol=4 if name == "b.jpg" else 0,
    )
    assert copied(tmp_path / "a.tif", tmp_path / "c.tif") == ""
    assert page_of(tmp_path / "c.tif").photometric.name == "MINISWHITE"


def test_an_inverted_picture_by_imagej_stays_so(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, photometric="miniswhite")
    assert copied(tmp_path / "a.tif", tmp_path / "b.tif") == ""
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.is_imagej
        assert tif.pages[0].photometric.name == "MINISWHITE"


def test_numbers_whose_black_is_not_known_are_not_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP.astype(np.float32), photometric="miniswhite")
    assert "displayed as its negative" in copied(tmp_path / "a.tif", tmp_path / "b.ome.zarr")
    assert (files.read_image(tmp_path / "b.ome.zarr").pixels == DEEP).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_upright_in_every_format(orientation, tmp_path):
    y, x = np.mgrid[:32, :48]
    found = (2 * x + y).astype(np.uint8)
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{orientation}"/>'.encode()
    Image.fromarray(found).save(
        tmp_path / "a.jpg", quality=95, dpi=(100, 200), exif=exif(orientation=orientation), xmp=xmp
    )
    shown = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    for name in ("b.jpg", "b.png", "b.tif"):
        copied(tmp_path / "a.jpg", tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            again = np.asarray(ImageOps.exif_transpose(picture))
            np.testing.assert_allclose(again.astype(int), shown.astype(int), atol=3)
            assert (
                f'Orientation="{orientation}"'.encode() not in (tmp_path / name).read_bytes()
                or orientation == 1
            )
            if name != "b.tif":
                directory = picture.getexif().get_ifd(0x8769)
                assert (directory[0xA002], directory[0xA003]) == (
                    (70, 90) if orientation > 4 else (90, 70)
                )
                assert directory[0x927C] == b"maker" * 5


def test_the_command_compares_what_is_shown(tmp_path):
    pixels = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    turned_tiff(tmp_path / "a.tif", 6, pixels, photometric="miniswhite")
    arguments = [
        "denoise",
        str(tmp_path / "a.tif"),
        "-o",
        str(tmp_path / "b.tif"),
        "--compare",
        str(tmp_path / "c.png"),
        "--amount",
        "0",
    ]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    picture = np.asarray(Image.open(tmp_path / "c.png"))
    assert picture.shape == (40, 2 * 20 + 4)
    assert picture[0, 0] > 250
    assert picture[-1, 0] < 5


def test_the_comparison_is_shown_as_the_image(tmp_path):
    pixels = np.tile(np.arange(40, dtype=np.uint8), (20, 1))
    write_comparison(tmp_path / "a.png", pixels, pixels, "YX", orientation=6, inverted=True)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (40, 2 * 20 + 4)
    assert picture[0, 0] == 255
    assert picture[-1, 0] == 0


# Pictures


def test_a_thumbnail_is_named_and_left_out(tmp_path):
    found = Image.Exif()
    found[305] = "camera"
    content = bytearray(found.tobytes().removeprefix(b"Exif\0\0"))
    end = 8 + 2 + 12
    content[end : end + 4] = struct.pack("<I" if content[:2] == b"II" else ">I", len(content))
    content += b"\0\0" + bytes(4)
    Image.fromarray(GREY).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(content))
    assert "EXIF thumbnail" in copied(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert said_by(tmp_path / "b.jpg")["software"] == "camera"
    assert copied(tmp_path / "b.jpg", tmp_path / "c.jpg") == ""


@pytest.mark.parametrize("quality", [30, 100])
def test_a_jpeg_is_never_coded_more_coarsely_than_it_was(quality, tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg", quality=quality, subsampling=2)
    copied(tmp_path / "a.jpg", tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "b.jpg") as after:
        for number, table in before.quantization.items():
            assert sum(after.quantization[number]) <= sum(table)
        assert after.layer[0][1:3] == (1, 1)


@pytest.mark.parametrize(
    "pixels",
    [COLOURS, COLOURS.astype(np.uint16) * 200, GREY, DEEP],
    ids=["8", "16", "grey", "deep grey"],
)
def test_chunks_of_png_are_the_same_bytes(pixels, tmp_path):
    png(tmp_path / "a.png", pixels)
    copied(tmp_path / "a.png", tmp_path / "b.png")
    before, after = (tmp_path / "a.png").read_bytes(), (tmp_path / "b.png").read_bytes()
    for name in (b"gAMA", b"cHRM", b"iCCP", b"pHYs", b"tEXt", b"zTXt", b"tIME", b"laMp"):
        at = before.index(name) - 4
        assert before[at : at + 12 + int.from_bytes(before[at : at + 4])] in after, name
    np.testing.assert_array_equal(imagecodecs.png_decode(after), pixels)


def test_a_transparent_colour_is_named(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png", transparency=(1, 2, 3))
    assert (
        copied(tmp_path / "a.png", tmp_path / "b.png")
        == "b.png: not kept in PNG: transparent colour"
    )


# Layouts of TIFF


def layout_of(path):
    with tifffile.TiffFile(path) as tif:
        page, levels = tif.pages.first, tif.series[0].levels
        tile = (page.tilelength, page.tilewidth) if page.is_tiled else None
        tiles = [
            (level.keyframe.tilelength, level.keyframe.tilewidth)
            if level.keyframe.is_tiled
            else None
            for level in levels
        ]
        rows = None if page.is_tiled or page.compression == 1 else page.rowsperstrip
        nested = page.subifds is not None
        return (
            tile,
            rows,
            int(page.compression),
            int(page.predictor),
            [level.shape for level in levels],
            tiles,
            nested,
            levels[0].axes,
        )


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize(
    "options", [{"tile": (16, 32)}, {"rowsperstrip": 9}], ids=["tiles", "strips"]
)
@pytest.mark.parametrize(
    ("pixels", "more"),
    [
        (np.stack([DEEP, DEEP + 1]), {"photometric": "minisblack"}),
        (np.stack([COLOURS, COLOURS + 1]), {"photometric": "rgb"}),
        (np.moveaxis(COLOURS, -1, 0), {"photometric": "rgb", "planarconfig": "separate"}),
        (DEEP.astype(np.float32), {}),
        (GREY > 100, {}),
    ],
    ids=["stack", "rgb", "planar", "float", "bool"],
)
def test_tiles_strips_and_compression_are_kept(
    byteorder, compression, options, pixels, more, tmp_path
):
    options = {} if compression is None and "tile" not in options else dict(options)
    predictor = compression is not None and compression != "packbits" and pixels.dtype != bool
    if pixels.dtype == bool:
        options.pop("rowsperstrip", None)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        compression=compression,
        predictor=predictor,
        byteorder=byteorder,
        **options,
        **more,
    )
    assert copied(tmp_path / "a.tif", tmp_path / "b.tif") == ""
    assert layout_of(tmp_path / "b.tif") == layout_of(tmp_path / "a.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), pixels)
    if pixels.ndim < 4 and compression in (
        None,
        "zlib",
        "lzw",
        "packbits",
    ):  # what another program can read
        with Image.open(tmp_path / "a.tif") as before, Image.open(tmp_path / "b.tif") as after:
            np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def shrunk(pixels, step):
    """Block means of whole blocks, as the levels of a pyramid are."""
    height, width = pixels.shape[-2] // step, pixels.shape[-1] // step
    blocks = pixels[..., : height * step, : width * step].reshape(
        *pixels.shape[:-2], height, step, width, step
    )
    return np.rint(blocks.mean((-3, -1))).astype(pixels.dtype)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kind", ["ome", "shaped", "pages"])
def test_pyramids_are_made_again(kind, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_layout, "MEMORY_BYTES", 2**20 if in_memory else 0)
    monkeypatch.setattr("dn_core.files.pyramid.BAND_BYTES", 2**14)
    monkeypatch.setattr(tiff_layout, "BAND_BYTES", 2**14)
    stack = RANDOM.integers(0, 60000, (1 if kind == "pages" else 3, 128, 160)).astype(np.uint16)
    stack = stack[0] if kind == "pages" else stack
    options = {
        "tile": (32, 48),
        "compression": "zlib",
        "predictor": True,
        "photometric": "minisblack",
    }
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    with tifffile.TiffWriter(path, ome=kind == "ome") as writer:
        metadata = None if kind == "pages" else {"axes": "TYX"}
        writer.write(stack, subifds=0 if kind == "pages" else 2, metadata=metadata, **options)
        for step in (2, 4):
            metadata = metadata if kind == "shaped" else None
            writer.write(
                np.zeros_like(stack)[..., ::step, ::step],
                subfiletype=1,
                metadata=metadata,
                **options,
            )
    out = tmp_path / ("b" + path.name[1:])
    assert copied(path, out) == ""
    assert layout_of(out) == layout_of(path)
    assert layout_of(out)[4] == [
        stack.shape,
        *((*stack.shape[:-2], 128 // step, 160 // step) for step in (2, 4)),
    ]
    with tifffile.TiffFile(out) as tif:
        np.testing.assert_array_equal(tif.series[0].levels[0].asarray(), stack)
        np.testing.assert_array_equal(tif.series[0].levels[1].asarray(), shrunk(stack, 2))
        np.testing.assert_array_equal(
            tif.series[0].levels[2].asarray(), shrunk(shrunk(stack, 2), 2)
        )
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([path.name, out.name])


@pytest.mark.parametrize("size", [(65, 81), (64, 81), (65, 80)])
def test_levels_keep_their_sizes(size, tmp_path):
    pixels = RANDOM.integers(0, 999, (129, 161)).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, metadata=None, tile=(32, 32))
        writer.write(np.zeros(size, np.uint16), metadata=None, tile=(32, 32), subfiletype=1)
    copied(tmp_path / "a.tif", tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert [level.shape for level in tif.series[0].levels] == [(129, 161), size]
        assert tif.series[0].levels[1].asarray()[1, 2] == round(float(pixels[2:4, 4:6].mean()))


def test_packed_numbers_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP, bitspersample=12)
    assert (
        copied(tmp_path / "a.tif", tmp_path / "b.tif")
        == "b.tif: not kept in TIFF: 12 bits per sample (16 instead)"
    )
    assert (tifffile.imread(tmp_path / "b.tif") == DEEP).all()


def test_a_slide_stays_a_slide(tmp_path):
    slide = np.repeat(np.repeat(COLOURS, 4, 0), 4, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        options = {"metadata": None, "compression": "jpeg"}
        writer.write(
            slide,
            tile=(64, 64),
            description="Aperio Image Library v1\n280x360|AppMag = 20|MPP = 0.5",
            **options,
        )
        writer.write(slide[::4, ::4], description="Aperio thumbnail", **options)
        writer.write(slide[::2, ::2], tile=(64, 64), description="Aperio level", **options)
        writer.write(slide[::8, ::8], description="Aperio label", subfiletype=1, **options)
    with files.open_image(tmp_path / "a.tif") as image:
        assert "3 images in the file (Baseline, Thumbnail, Label); the first is used" in image.notes
    said = copied(tmp_path / "a.tif", tmp_path / "b.tif")
    assert said == "b.tif: not kept in TIFF: JPEG compression (lossless Deflate instead)"
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.is_svs
        assert [level.shape for level in tif.series[0].levels] == [(280, 360, 3), (140, 180, 3)]
        assert tif.series[1].name == "Thumbnail"
        assert "AppMag = 20" in tif.pages[0].description
        np.testing.assert_array_equal(tif.asarray(), files.read_image(tmp_path / "a.tif").pixels)


@pytest.mark.parametrize("axes", ["ZYX", "YX", "ZTCYX"])
def test_pyramids_go_from_tiff_to_zarr_and_back(axes, tmp_path):
    sizes = {"Z": 2, "T": 3, "C": 2, "Y": 64, "X": 80}
    pixels = RANDOM.integers(0, 999, [sizes[axis] for axis in axes]).astype(np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(pixels, subifds=1, metadata={"axes": axes}, photometric="minisblack")
        writer.write(pixels[..., ::2, ::2], subfiletype=1, photometric="minisblack")
    copied(tmp_path / "a.ome.tif", tmp_path / "b.ome.zarr")
    levels = files.read_image(tmp_path / "b.ome.zarr").metadata["levels"]
    assert [shape[-2:] for _, shape in levels] == [(64, 80), (32, 40)]
    copied(tmp_path / "b.ome.zarr", tmp_path / "c.ome.tif")
    copied(tmp_path / "b.ome.zarr", tmp_path / "c.tif")
    for name in ("c.ome.tif", "c.tif"):
        with tifffile.TiffFile(tmp_path / name) as tif:
            assert tif.series[0].shape[-2:] == (64, 80)
            for page in tif.pages:
                (level,) = page.aspage().pages
                assert level.shape == (32, 40)
        with files.open_image(
            tmp_path / name
        ) as image:  # stacks of which tifffile itself does not find the levels too
            assert image.notes == ("pyramid of 2 levels; level 0 is used",)
        assert copied(tmp_path / name, tmp_path / f"again {name}") == ""
        with tifffile.TiffFile(tmp_path / f"again {name}") as tif:
            assert all(page.aspage().pages[0].shape == (32, 40) for page in tif.pages)


def test_an_error_while_a_pyramid_is_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_layout, "MEMORY_BYTES", 0)
    tifffile.imwrite(tmp_path / "a.tif", DEEP, compression="zlib", tile=(16, 16))
    with files.open_image(tmp_path / "a.tif") as image:
        with pytest.raises(RuntimeError), files.create_image(tmp_path / "b.tif", image) as target:  # noqa: PT012
            target[:9] = 1
            assert len(list(tmp_path.glob(".part-*"))) == 1
            raise RuntimeError
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.tif"]

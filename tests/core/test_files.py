"""Images are read correctly or refused, written whole or not at all, and keep their metadata."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dn_core import files
from dn_core.errors import ImageFileError
from dn_core.files import image as files_image
from dn_core.files import ome_zarr_writer, tiff_description
from dn_core.files import tiff as files_tiff

DATA = (
    Path(os.environ.get("DN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    / "microscopy_formats"
)
ENTRIES = (
    json.loads((DATA / "manifest.json").read_text("utf-8"))["files"]
    if (DATA / "manifest.json").exists()
    else []
)
REFUSED = ("real_cmyk.jpg",)  # the manifest lets a reader choose between converting and refusing
READABLE = [entry for entry in ENTRIES if entry["should_read"] and entry["file"] not in REFUSED]
UNREADABLE = [entry for entry in ENTRIES if entry not in READABLE]
IMAGE = np.random.default_rng(0).integers(0, 4000, (48, 40)).astype(np.uint16)
STACK = np.random.default_rng(1).integers(0, 4000, (8, 48, 40)).astype(np.uint16)
MICROMETRES = {"nm": 1e-3, "µm": 1.0, "mm": 1e3}


def names(entry):
    return entry["file"]


def like(pixels, axes=None, **more):
    """An image in memory, as a caller would describe a result."""
    axes = axes or "YX".rjust(pixels.ndim, "Q")
    return files.ImageFile(
        Path("memory"), pixels, axes, more.pop("format", "tiff"), more.pop("metadata", {})
    )


def save(path, pixels, axes=None, **more):
    with files.create_image(path, like(pixels, axes, **more)) as target:
        target[...] = pixels
    return path


def run_child(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def opened_lazily(path):
    with files.open_image(path) as image:
        return np.array(image.source[...])


# The collection of real files


@pytest.mark.parametrize("entry", READABLE, ids=names)
def test_real_files_are_read_as_the_manifest_says(entry):
    image = files.read_image(DATA / entry["file"])
    expected_shape, expected_axes = entry["shape"], entry["axes"]
    if (
        entry.get("mode") == "P"
    ):  # the manifest gives the indices' shape; the colours are what counts
        expected_shape, expected_axes = [*expected_shape, 3], "YXS"
    assert list(image.shape) == expected_shape
    assert image.axes == expected_axes
    assert image.dtype.name == image.pixels.dtype.name == entry["dtype"]
    assert image.dtype.isnative
    if entry["min"] is not None:
        finite = image.pixels[np.isfinite(image.pixels)]
        tolerance = 4 if "jpeg_ycbcr" in entry["file"] else 0  # decoders differ
        assert abs(float(finite.min()) - entry["min"]) <= tolerance
        assert abs(float(finite.max()) - entry["max"]) <= tolerance
        assert float(finite.mean(dtype=float)) == pytest.approx(
            entry["mean"], abs=max(1e-4, tolerance)
        )


@pytest.mark.parametrize(
    "entry", [entry for entry in READABLE if entry.get("pixel_size_um")], ids=names
)
def test_pixel_sizes_are_read(entry):
    metadata = files.read_image(DATA / entry["file"]).metadata
    sizes = {
        axis: size * MICROMETRES[metadata["pixel_unit"][axis]]
        for axis, size in metadata["pixel_size"].items()
    }
    assert sizes == pytest.approx(entry["pixel_size_um"])


@pytest.mark.parametrize(
    "entry",
    [entry for entry in READABLE if "imagej_xy" in entry and entry["imagej_unit"] != "px"],
    ids=names,
)
def test_calibration_by_imagej_is_read(entry):
    metadata = files.read_image(DATA / entry["file"]).metadata
    assert metadata["pixel_size"]["X"] == pytest.approx(entry["imagej_xy"], rel=1e-4)
    assert set(metadata["pixel_unit"].values()) == {"µm"}
    if "imagej_spacing" in entry:
        assert metadata["pixel_size"]["Z"] == pytest.approx(entry["imagej_spacing"])


@pytest.mark.parametrize("entry", READABLE, ids=names)
def test_lazy_reading_gives_the_same_pixels(entry, monkeypatch):
    whole = files.read_image(DATA / entry["file"]).pixels
    monkeypatch.setattr(files_tiff, "EAGER_BYTES", 0)
    with files.open_image(DATA / entry["file"]) as image:
        np.testing.assert_array_equal(image.pixels, whole)
        index = (0,) * (whole.ndim - 2) + (slice(0, 1), slice(0, 1))
        np.testing.assert_array_equal(image.source[index], whole[index])


@pytest.mark.parametrize("entry", UNREADABLE, ids=names)
def test_bad_files_are_refused_by_name(entry):
    with pytest.raises(ImageFileError, match=entry["file"]):
        files.read_image(DATA / entry["file"])


@pytest.mark.parametrize("entry", READABLE, ids=names)
def test_what_is_written_reads_back_with_all_it_said(entry, tmp_path):
    path = DATA / entry["file"]
    with files.open_image(path) as image:
        pixels = image.pixels
        lossy = pytest.warns(
            UserWarning, match=r"not kept in TIFF: JPEG\w* compression \(lossless Deflate instead"
        )
        with (
            lossy if "jpeg" in entry["file"] else contextlib.nullcontext(),
            files.create_image(tmp_path / entry["file"], image) as target,
        ):
            target[...] = pixels
    back = files.read_image(tmp_path / entry["file"])
    np.testing.assert_array_equal(back.pixels, pixels)
    assert back.axes == image.axes
    assert back.dtype == image.dtype
    if image.format != "zarr":  # a bare array becomes an OME-Zarr
        assert back.format == image.format
    for key in (
        "pixel_size",
        "pixel_unit",
        "channel_names",
        "time_increment",
        "time_unit",
        "byteorder",
        "bigtiff",
        "extrasamples",
    ):
        assert back.metadata.get(key) == image.metadata.get(key), key
    for key in ("channels", "planes", "ome", "levels", "version"):
        if key in image.metadata:
            assert back.metadata[key] == image.metadata[key], key
    if "imagej" in image.metadata:
        for key in (
            "unit",
            "spacing",
            "finterval",
            "mode",
            "min",
            "max",
            "Ranges",
            "LUTs",
            "Labels",
            "Info",
            "Properties",
            "loop",
        ):
            if key in image.metadata["imagej"]:
                np.testing.assert_equal(
                    back.metadata["imagej"].get(key), image.metadata["imagej"][key], err_msg=key
                )
        np.testing.assert_array_equal(back.metadata.get("colormap"), image.metadata.get("colormap"))
    assert os.listdir(tmp_path) == [entry["file"]]


@pytest.mark.parametrize("ending", [".ome.tif", ".tif", ".ome.zarr"])
def test_pixel_sizes_and_channel_names_survive_a_change_of_format(ending, tmp_path):
    metadata = {
        "pixel_size": {"X": 0.13, "Y": 0.14, "Z": 0.6},
        "pixel_unit": dict.fromkeys("XYZ", "µm"),
        "channel_names": ["DNA", "µ-tubules"],
        "time_increment": 30.0,
        "time_unit": "s",
    }
    pixels = np.arange(2 * 2 * 3 * 16 * 16, dtype=np.uint16).reshape(2, 2, 3, 16, 16)
    back = files.read_image(save(tmp_path / f"a{ending}", pixels, "TCZYX", metadata=metadata))
    assert back.axes == "TCZYX"
    assert back.metadata["pixel_size"] == pytest.approx(metadata["pixel_size"])
    assert back.metadata["time_increment"] == 30.0
    if ending != ".tif":
        assert back.metadata["channel_names"] == metadata["channel_names"]


# Names, places, overwriting


@pytest.mark.parametrize(
    "name",
    ["with spaces", "µ", "细胞", "🔬", "a" * 240, "it's [1] 100% %d {x}", "invalid \udcff utf-8"],
)
@pytest.mark.parametrize("ending", [".tif", ".png", ".ome.zarr"])
def test_odd_names_work(name, ending, tmp_path):
    path = tmp_path / f"{name}{ending}"
    if "\udcff" in name and sys.platform != "linux":
        pytest.skip("this system knows no names that are not text")
    assert (files.read_image(save(path, IMAGE)).pixels == IMAGE).all()
    assert files.image_paths([tmp_path]) == [path]


def test_messages_about_names_that_are_no_text_can_be_printed(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_image(tmp_path / "\udcff.tif")
    if sys.platform == "linux":
        (tmp_path / "\udcff.tif").write_bytes(b"text")
        with pytest.raises(ImageFileError) as caught:
            files.read_image(tmp_path / "\udcff.tif")
        assert str(caught.value).encode()


@pytest.mark.parametrize("ending", [".tif", ".png", ".zarr"])
def test_an_existing_output_is_kept_unless_overwriting_is_allowed(ending, tmp_path):
    path = save(tmp_path / f"a{ending}", IMAGE)
    with pytest.raises(FileExistsError, match="exists.*choose") as caught:
        save(path, IMAGE + 1)
    assert caught.value.errno == errno.EEXIST
    assert (files.read_image(path).pixels == IMAGE).all()
    with files.create_image(path, like(IMAGE), overwrite=True) as target:
        target[...] = IMAGE + 1
    assert (files.read_image(path).pixels == IMAGE + 1).all()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("way", ["same", "link", "hard link", "dots"])
def test_the_input_is_overwritten_only_when_allowed(way, tmp_path):
    path = save(tmp_path / "in.tif", STACK)
    output = {"same": path, "dots": tmp_path / "x" / ".." / "in.tif"}.get(way, tmp_path / "out.tif")
    (tmp_path / "x").mkdir()
    if way == "link":
        output.symlink_to(path)
    elif way == "hard link":
        os.link(path, output)
    with files.open_image(path) as image:
        with pytest.raises(FileExistsError, match="the output is the input"):
            files.check_output(output, image)
        with files.create_image(
            output, image, overwrite=True
        ) as target:  # plane by plane, reading on while writing
            for index in range(len(STACK)):
                target[index] = image.source[index] + 1
    assert (files.read_image(output).pixels == STACK + 1).all()
    assert output.is_symlink() == (way == "link")
    if way == "link":  # what the link points to is replaced
        assert (files.read_image(path).pixels == STACK + 1).all()


def test_a_zarr_is_overwritten_by_its_own_result(tmp_path):
    path = save(tmp_path / "in.ome.zarr", STACK, "ZYX")
    with files.open_image(path) as image, files.create_image(path, image, overwrite=True) as target:
        for index in range(len(STACK)):
            target[index] = image.source[index] + 1
    assert (files.read_image(path).pixels == STACK + 1).all()


def test_input_and_output_may_not_lie_in_each_other(tmp_path):
    path = save(tmp_path / "in.ome.zarr", IMAGE)
    level = files.read_image(path / "0")
    with pytest.raises(ValueError, match="must not contain each other"):
        files.check_output(path, level, overwrite=True)


def test_a_folder_that_is_no_zarr_is_never_replaced(tmp_path):
    (tmp_path / "results.zarr").mkdir()
    (tmp_path / "results.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a zarr"):
        files.check_output(tmp_path / "results.zarr", like(IMAGE), overwrite=True)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("missing/a.tif", FileNotFoundError, "folder of the output is missing; create it"),
        ("folder.tif", IsADirectoryError, "must be a file, got a folder.*add a file name"),
        ("a.xyz", ValueError, "must end in one of .tif.*a.xyz"),
        ("a", ValueError, "must end in one of"),
    ],
)
def test_impossible_places_are_refused_before_computing(path, error, message, tmp_path):
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(error, match=message) as caught:
        files.check_output(tmp_path / path, like(IMAGE), overwrite=True)
    if isinstance(caught.value, OSError):
        assert caught.value.errno


@pytest.mark.parametrize(
    ("name", "pixels", "axes", "message"),
    [
        ("a.png", IMAGE.astype(np.float32), "YX", "float32 cannot be written as PNG.*uint16.*.tif"),
        ("a.jpg", IMAGE, "YX", "uint16 cannot be written as JPEG"),
        ("a.png", STACK, "ZYX", "PNG must have one plane, got 8 "),
        ("a.jpg", np.zeros((8, 8, 4), np.uint8), "YXS", "4 samples"),
        ("a.ome.tif", IMAGE.astype(np.int64), "YX", "int64 cannot be written as ome-tiff.*Convert"),
        ("a.tif", IMAGE.astype(object), "YX", "object cannot be written"),
        ("a.ome.tif", np.zeros((4, 4, 3), np.uint8), "YXC", "the last axes must be YX, YXS or SYX"),
        ("a.zarr", np.zeros((4, 4, 3), np.uint8), "YXS", "no RGB samples"),
        ("a.zarr", np.zeros((1, 1, 1, 1, 4, 4), np.uint8), "QTCZYX", "two to five"),
    ],
)
def test_images_that_a_format_cannot_hold_are_refused_before_a_file_is_made(
    name, pixels, axes, message, tmp_path
):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / name, pixels, axes)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users and permissions")
def test_a_folder_without_permission_is_refused(tmp_path):
    code = (
        "import os, sys, numpy as np; from pathlib import Path; from dn_core import files\n"
        "import tifffile, dn_core.files.tiff\n"
        "like = files.ImageFile(Path('memory'), np.zeros((4, 4), np.uint8), 'YX', 'tiff')\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: files.check_output(sys.argv[1], like)\n"
        "except PermissionError as error: print(error.errno == 13, error.strerror)\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o555)
        done = run_child(code, Path(folder, "a.tif"))
        assert done.stdout.startswith("True the output is not writable"), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("ending", [".tif", ".png", ".zarr"])
def test_files_get_the_mode_that_the_umask_says(umask, ending, tmp_path):
    before = os.umask(umask)
    try:
        path = save(tmp_path / f"a{ending}", IMAGE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask


# Nothing half-written


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".png", ".zarr"])
def test_an_exception_leaves_the_old_file_and_nothing_else(error, ending, tmp_path):
    path = save(tmp_path / f"a{ending}", IMAGE)
    with pytest.raises(error), files.create_image(path, like(IMAGE), overwrite=True) as target:  # noqa: PT012
        target[:10] = 0
        raise error
    assert (files.read_image(path).pixels == IMAGE).all()
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("ending", [".tif", ".png", ".zarr"])
def test_a_killed_writer_leaves_the_old_file(ending, tmp_path):
    path = save(tmp_path / f"a{ending}", IMAGE)
    code = (
        "import sys, time; from dn_core import files\n"
        "image = files.read_image(sys.argv[1])\n"
        "with files.create_image(sys.argv[1], image, overwrite=True) as target:\n"
        "    target[:10] = 0; print('writing', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    assert (files.read_image(path).pixels == IMAGE).all()
    assert files.image_paths([tmp_path]) == [path]  # what is left of the new file is hidden


@pytest.mark.skipif(os.name == "nt", reason="no resource limits")
@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".png", ".zarr"])
def test_a_full_disk_is_an_os_error_with_errno_and_leaves_nothing(ending, tmp_path):
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from dn_core import files\n"
        "pixels = np.random.default_rng(0).integers(0, 65536, (700, 700)).astype(np.uint16)\n"
        "like = files.ImageFile(Path('memory'), pixels, 'YX', 'tiff')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    with files.create_image(sys.argv[1], like) as target: target[...] = pixels\n"
        "except OSError as error: print('errno', error.errno)\n"
    )
    done = run_child(code, tmp_path / f"a{ending}")
    assert done.stdout == f"errno {errno.EFBIG}\n", done.stderr
    assert not os.listdir(tmp_path)


def test_an_output_larger_than_the_free_space_is_refused_before_computing(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    huge = np.broadcast_to(np.float32(0), (free // 4 // 1000 + 1000, 1000))
    with pytest.raises(OSError, match=r"needs \d+ bytes, \d+ are free") as caught:
        files.check_output(tmp_path / "a.tif", like(huge))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".png", ".zarr"])
def test_blocks_are_written_in_any_order(ending, tmp_path):
    with files.create_image(tmp_path / f"a{ending}", like(IMAGE)) as target:
        assert target.shape == IMAGE.shape
        assert target.dtype == IMAGE.dtype
        for y in (32, 0, 16):
            for x in (20, 0):
                block = (slice(y, y + 16), slice(x, x + 20))
                target[block] = IMAGE[block]
        assert target[3, 5] == IMAGE[3, 5]
    assert (files.read_image(tmp_path / f"a{ending}").pixels == IMAGE).all()
    with pytest.raises(ValueError, match="complete already"):
        target[0] = 0


# TIFF: reading


def broken(path, content):
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_cut_in_its_header_is_refused(length, big, tmp_path):
    tifffile.imwrite(tmp_path / "whole.tif", IMAGE, bigtiff=big)
    path = broken(tmp_path / "cut.tif", (tmp_path / "whole.tif").read_bytes()[:length])
    with pytest.raises(ImageFileError, match=r"cut\.tif"):
        files.read_image(path)


@pytest.mark.parametrize(
    ("kind", "compression", "tile"),
    [
        ("imagej", None, None),  # neither compressed nor tiled
        *(
            (kind, compression, tile)
            for kind in ("plain", "ome", "pages")
            for compression in (None, "zlib", "lzw", "zstd")
            for tile in (None, (16, 16))
        ),
    ],
)
@pytest.mark.parametrize("part", [0.3, 0.5, 0.9, 0.999])
def test_a_tiff_cut_anywhere_is_refused(kind, compression, tile, part, tmp_path):
    whole = tmp_path / "whole.tif"
    options = {"compression": compression, "tile": tile, "photometric": "minisblack"}
    if kind == "pages":  # directories between the pages, as several programs write
        with tifffile.TiffWriter(whole) as writer:
            for plane in STACK:
                writer.write(plane, contiguous=False, metadata=None, **options)
    else:
        more = {
            "plain": {},
            "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
            "imagej": {"imagej": True},
        }[kind]
        tifffile.imwrite(whole, STACK, **options, **more)
    content = whole.read_bytes()
    assert files.read_image(whole).shape == STACK.shape
    with pytest.raises(ImageFileError, match=r"cut\.tif"):
        files.read_image(broken(tmp_path / "cut.tif", content[: int(len(content) * part)]))


@pytest.mark.parametrize("lazy", [False, True])
def test_damaged_compressed_data_is_refused(lazy, tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[3].dataoffsets[0], tif.pages[3].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset + count // 2] ^= 0x10
    broken(path, content)
    if lazy:
        monkeypatch.setattr(files_tiff, "EAGER_BYTES", 0)
    with pytest.raises(ImageFileError, match=r"a\.tif is damaged"):
        opened_lazily(path)
    if lazy:
        with files.open_image(path) as image:
            assert (image.source[0] == STACK[0]).all()  # what is whole can be read
            with pytest.raises(ImageFileError, match=r"a\.tif"):
                image.source[3]


def test_every_flipped_bit_in_zlib_data_is_noticed(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    whole = path.read_bytes()
    generator = np.random.default_rng(2)
    for _ in range(50):
        content = bytearray(whole)
        content[offset + generator.integers(count)] ^= 1 << generator.integers(8)
        broken(path, content)
        try:
            assert (
                files.read_image(path).pixels == IMAGE
            ).all()  # bits of the header that change nothing
        except ImageFileError:
            pass


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "text"),
        (b"\x89PNG\r\n\x1a\n12345678", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\1\2\3\4\5", "an unknown format"),
    ],
)
def test_what_is_no_tiff_is_refused_with_what_it_looks_like(content, looks, tmp_path):
    with pytest.raises(
        ImageFileError,
        match=rf"a\.tif is not a TIFF file: it looks like .*{looks}.*export it again",
    ):
        files.read_image(broken(tmp_path / "a.tif", content))


def test_a_png_named_tif_is_refused(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match="looks like PNG"):
        files.read_image(tmp_path / "a.tif")


def ome(path, change, pixels=STACK):
    """An OME-TIFF whose description was changed."""
    tifffile.imwrite(
        path,
        pixels,
        ome=True,
        metadata={"axes": "ZYX"},
        photometric="minisblack",
        compression="zlib",
    )
    with tifffile.TiffFile(path) as tif:
        description = tif.ome_metadata
    assert change(description) != description
    tifffile.tiffcomment(path, change(description).encode())
    return path


def test_an_ome_tiff_that_lacks_planes_is_refused_unless_filling_is_asked_for(tmp_path):
    path = ome(
        tmp_path / "a.ome.tif",
        lambda text: text.replace('SizeZ="8"', 'SizeZ="9"').replace(
            'PlaneCount="8"', 'PlaneCount="9"'
        ),
    )
    with pytest.raises(ImageFileError, match=r"lacks 1 of 9 planes.*missing=\"fill\""):
        files.read_image(path)
    with pytest.raises(ImageFileError, match="lacks 1 of 9 planes"):
        files.read_image(path, missing="refuse")
    with pytest.warns(UserWarning, match=r"1 of 9 planes \(11%\) are missing and were read as 0"):
        filled = files.read_image(path, missing="fill").pixels
    assert filled.shape == (9, 48, 40)
    assert (filled[:8] == STACK).all()
    assert not filled[8].any()


def test_an_ome_tiff_never_reads_another_file(tmp_path):
    (tmp_path / "x").mkdir()
    tifffile.imwrite(tmp_path / "secret.tif", STACK + 1, photometric="minisblack")
    other = (
        '<TiffData IFD="0" PlaneCount="8">'
        '<UUID FileName="../secret.tif">urn:uuid:5</UUID></TiffData>'
    )
    path = ome(
        tmp_path / "x" / "a.ome.tif",
        lambda text: text.replace('<TiffData IFD="0" PlaneCount="8"/>', other),
    )
    image = files.read_image(path)
    assert (image.pixels == STACK).all()
    assert "other files" in image.notes[0]


def test_a_broken_ome_description_leaves_the_axes_unknown(tmp_path):
    image = files.read_image(
        ome(tmp_path / "a.ome.tif", lambda text: text.replace("</Pixels>", ""))
    )
    assert image.axes == "QYX"
    assert "axes is unknown" in image.notes[0]
    assert (image.pixels == STACK).all()


def test_an_entity_bomb_is_stopped(tmp_path):
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE OME [<!ENTITY e0 "lol">{entities}]><OME '
    path = ome(
        tmp_path / "a.ome.tif",
        lambda text: text.replace("<OME ", bomb, 1).replace("<Pixels", "&e11;<Pixels", 1),
    )
    try:
        assert (files.read_image(path).pixels == STACK).all()
    except ImageFileError:
        pass


def tiff_header(width, height, compressed, *, bits=8):
    """A classic TIFF with a single strip."""
    values = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits),
        (259, 3, 8),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(compressed)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in values)
    start = 8 + len(compressed) + len(compressed) % 2
    return (
        struct.pack("<2sHI", b"II", 42, start)
        + compressed.ljust(start - 8, b"\0")
        + struct.pack("<H", len(values))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize("size", [2_000_000, 60_000])
def test_a_header_bomb_is_refused_before_memory_is_taken(size, tmp_path):
    with pytest.raises(ImageFileError, match="claims|strips or tiles of"):
        files.read_image(
            broken(tmp_path / "a.tif", tiff_header(size, size, zlib.compress(bytes(1000))))
        )


def test_a_strip_that_decodes_to_a_gigabyte_is_refused(tmp_path):
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(bytes(2**20)) for _ in range(1024)) + compressor.flush()
    with pytest.raises(ImageFileError, match="strips or tiles of at most .*smaller strips"):
        files.read_image(broken(tmp_path / "a.tif", tiff_header(32768, 32768, data)))
    # the header says little, the data hold a gigabyte
    code = (
        "import resource, sys; from dn_core import files; import tifffile, dn_core.files.tiff\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9))\n"
        "try: print(files.read_image(sys.argv[1]).shape)\n"
        "except ValueError as error: print('refused')\n"
        # Not getrusage: its figure counts the memory of the process that started this one.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(peak.split()[1]) < 500_000)\n"
    )
    if sys.platform == "linux":
        done = run_child(code, broken(tmp_path / "b.tif", tiff_header(64, 64, data)))
        assert done.stdout.splitlines()[-1] == "True", done.stderr


def test_many_small_strips_that_claim_far_more_than_the_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files_image, "MAX_PIXELS", 1000)
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, compression="zlib")
    with pytest.raises(ImageFileError, match="at most 1000 pixels, but claims 1920"):
        files.read_image(tmp_path / "a.tif")


def test_cmyk_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8, 4), np.uint8), photometric="separated")
    with pytest.raises(ImageFileError, match="CMYK colours.*Convert it to RGB"):
        files.read_image(tmp_path / "a.tif")


def test_a_palette_is_expanded(tmp_path):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8)
    palette = (np.random.default_rng(4).integers(0, 256, (3, 256)) * 257).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", indices, photometric="palette", colormap=palette)
    image = files.read_image(tmp_path / "a.tif")
    assert image.axes == "YXS"
    np.testing.assert_array_equal(image.pixels, np.moveaxis(palette[:, indices] // 257, 0, -1))
    save(tmp_path / "b.tif", image.pixels, "YXS", metadata=image.metadata)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.pages[0].photometric.name == "RGB"


@pytest.mark.parametrize("lazy", [False, True])
def test_min_is_white_keeps_its_values_and_its_tag(lazy, tmp_path, monkeypatch):
    tifffile.imwrite(
        tmp_path / "a.tif", IMAGE, photometric="miniswhite", compression="zlib" if lazy else None
    )
    if lazy:
        monkeypatch.setattr(files_tiff, "EAGER_BYTES", 0)
    with (
        files.open_image(tmp_path / "a.tif") as image,
        files.create_image(tmp_path / "b.tif", image) as target,
    ):
        target[...] = image.source[...]
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.pages[0].photometric.name == "MINISWHITE"
        assert (tif.asarray() == IMAGE).all()


@pytest.mark.parametrize("axes", ["YXS", "SYX", "QYXS", "QSYX"])
@pytest.mark.parametrize("samples", [3, 4])
def test_rgb_layouts_are_kept(axes, samples, tmp_path):
    shape = tuple({"Y": 9, "X": 7, "S": samples, "Q": 5}[axis] for axis in axes)
    pixels = np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)
    path = save(tmp_path / "a.tif", pixels, axes)
    image = files.read_image(path)
    assert image.axes == axes
    assert image.rgb
    assert image.channel_axis == axes.index("S")
    assert image.alpha == (samples == 4 and axes.endswith("S"))  # separate planes are planes
    assert (image.pixels == pixels).all()
    with tifffile.TiffFile(path) as tif:
        assert tif.pages[0].photometric.name == "RGB"
        assert (tif.pages[0].planarconfig.name == "CONTIG") == axes.endswith("S")


@pytest.mark.parametrize(
    "shape", [(48, 3), (3, 48, 40), (4, 40, 3), (3, 4, 3), (1, 1), (1, 5, 1), (5, 1, 1)]
)
@pytest.mark.parametrize("ending", [".tif", ".ome.tif", ".ome.zarr"])
def test_grey_images_of_odd_shapes_are_not_taken_for_rgb(shape, ending, tmp_path):
    pixels = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    axes = "ZYX"[-len(shape) :]
    image = files.read_image(save(tmp_path / f"a{ending}", pixels, axes))
    assert image.axes.lstrip("Z") == "YX"
    assert (image.pixels.squeeze() == pixels.squeeze()).all()


@pytest.mark.parametrize(
    "dtype",
    ["bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ">u2", ">f4"],
)
@pytest.mark.parametrize("ending", [".tif", ".zarr"])
def test_every_dtype_comes_back(dtype, ending, tmp_path):
    pixels = (IMAGE % 100).astype(dtype)
    image = files.read_image(save(tmp_path / f"a{ending}", pixels))
    assert image.dtype == pixels.dtype.newbyteorder("=")
    assert (image.pixels == pixels).all()


def test_four_grey_samples_in_a_page_are_no_alpha(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((8, 8, 4), np.uint16),
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=(0, 0, 0),
    )
    image = files.read_image(tmp_path / "a.tif")
    assert image.rgb
    assert not image.alpha


def test_a_missing_codec_is_named_with_its_cure(tmp_path):
    tifffile.imwrite(tmp_path / "lzw.tif", IMAGE, compression="lzw")
    tifffile.imwrite(tmp_path / "zstd.tif", IMAGE, compression="zstd")
    tifffile.imwrite(tmp_path / "zlib.tif", IMAGE, compression="zlib")
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from dn_core import files\n"
        "for name in ('lzw', 'zstd', 'zlib'):\n"
        "    try: print(files.read_image(f'{sys.argv[1]}/{name}.tif').shape)\n"
        "    except ValueError as error: print(f'{name}.tif' in str(error) and 'pip install "
        "imagecodecs' in str(error))\n"
    )
    done = run_child(code, tmp_path)
    assert done.stdout.split("\n")[:3] == ["True", "True", "(48, 40)"], done.stdout + done.stderr


def test_nothing_is_logged_and_the_logger_is_left_as_it_was(tmp_path, caplog):
    import logging

    logger = logging.getLogger("tifffile")
    before = (logger.propagate, list(logger.handlers))
    ome(tmp_path / "a.ome.tif", lambda text: text.replace("</Pixels>", ""))
    files.read_image(tmp_path / "a.ome.tif")
    assert (logger.propagate, list(logger.handlers)) == before
    assert not caplog.records


@pytest.mark.parametrize("way", ["level", "disable"])
def test_damage_is_noticed_where_tifffile_is_silenced(way, tmp_path):
    import logging

    with tifffile.TiffWriter(tmp_path / "whole.tif") as writer:
        for plane in STACK:
            writer.write(plane, contiguous=False, metadata=None)
    content = (tmp_path / "whole.tif").read_bytes()
    path = broken(tmp_path / "cut.tif", content[: len(content) // 2])
    logger = logging.getLogger("tifffile")
    try:
        if way == "level":
            logger.setLevel(logging.CRITICAL)
        else:
            logging.disable(logging.CRITICAL)
        with pytest.raises(ImageFileError, match=r"cut\.tif"):
            files.read_image(path)
        assert (logger.level, logging.root.manager.disable) == (
            (50, 0) if way == "level" else (0, 50)
        )
    finally:
        logger.setLevel(logging.NOTSET)
        logging.disable(logging.NOTSET)


def test_threads_read_at_once(tmp_path):
    good, bad = save(tmp_path / "good.tif", STACK), tmp_path / "bad.tif"
    tifffile.imwrite(bad, STACK, compression="zlib", tile=(16, 16), photometric="minisblack")
    broken(bad, bad.read_bytes()[: bad.stat().st_size // 2])
    results = []

    def read(path):
        for _ in range(20):
            try:
                results.append((path, (files.read_image(path).pixels == STACK).all()))
            except ImageFileError:
                results.append((path, "refused"))

    threads = [threading.Thread(target=read, args=(path,)) for path in (good, bad, good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result for path, result in results if path == good} == {True}
    assert {result for path, result in results if path == bad} == {"refused"}


def test_several_images_and_pyramids_are_noted(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(IMAGE, subifds=1, metadata={"axes": "YX"})
        writer.write(IMAGE[::2, ::2], subfiletype=1)
        writer.write(STACK, photometric="minisblack", metadata={"axes": "ZYX"})
    image = files.read_image(tmp_path / "a.ome.tif")
    assert (image.pixels == IMAGE).all()
    assert "2 images" in image.notes[0]
    assert "level 0" in image.notes[1]


# TIFF: writing


@pytest.mark.parametrize("ending", [".tif", ".ome.tif"])
def test_bigtiff_is_written_from_the_threshold_on(ending, tmp_path, monkeypatch):
    assert tiff_description.CLASSIC_BYTES == 2**32 - 2**25
    for threshold, big in ((IMAGE.nbytes + 1, False), (IMAGE.nbytes, True)):
        monkeypatch.setattr(tiff_description, "CLASSIC_BYTES", threshold)
        path = save(tmp_path / f"{big}{ending}", IMAGE)
        with tifffile.TiffFile(path) as tif:
            assert tif.is_bigtiff == big


def test_an_imagej_image_too_large_for_imagej_becomes_an_ome_tiff(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff_description, "CLASSIC_BYTES", 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        STACK,
        imagej=True,
        resolution=(5, 5),
        metadata={"axes": "ZYX", "unit": "um", "spacing": 0.5},
    )
    image = files.read_image(tmp_path / "a.tif")
    with (
        pytest.warns(UserWarning, match="written as OME-TIFF"),
        files.create_image(tmp_path / "b.tif", image) as target,
    ):
        target[...] = STACK
    back = files.read_image(tmp_path / "b.tif")
    assert (back.pixels == STACK).all()
    assert back.format == "ome-tiff"
    assert back.metadata["pixel_size"] == pytest.approx({"X": 0.2, "Y": 0.2, "Z": 0.5})


def test_writing_a_large_tiff_takes_little_memory(tmp_path):
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from dn_core import files\n"
        "like = files.ImageFile(Path('memory'), np.broadcast_to(np.uint16(0), (64, 1024, 1024)), "
        "'ZYX', 'tiff')\n"
        "import tifffile, dn_core.files.tiff\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with files.create_image(sys.argv[1], like) as target:\n"
        "    resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))\n"
        "    for z in range(64): target[z, :512] = z; target[z, 512:] = z\n"
        "with files.open_image(sys.argv[1]) as image: assert all((image.source[z] == z).all() for "
        "z in range(64))\n"
    )
    if os.name == "nt":
        pytest.skip("no resource limits")
    done = run_child(code, tmp_path / "a.tif")
    assert done.returncode == 0, done.stderr


def test_resolution_and_orientation_are_kept(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        IMAGE,
        resolution=(3, 7),
        resolutionunit="CENTIMETER",
        extratags=[(274, 3, 1, 6, True)],
    )
    image = files.read_image(tmp_path / "a.tif")
    save(tmp_path / "b.tif", image.pixels, metadata=image.metadata)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.pages[0].resolution == (3, 7)
        assert tif.pages[0].resolutionunit.name == "CENTIMETER"
        assert tif.pages[0].tags[274].value == 6


def test_a_small_tiff_is_read_and_written_without_slow_imports(tmp_path):
    save(tmp_path / "a.tif", IMAGE)
    code = (
        "import sys; from dn_core import files\n"
        "image = files.read_image(sys.argv[1])\n"
        "with files.create_image(sys.argv[2], image) as target: target[...] = image.pixels\n"
        "print([name for name in ('zarr', 'PIL', 'torch', 'skimage', 'dask') if name in "
        "sys.modules])\n"
    )
    done = run_child(code, tmp_path / "a.tif", tmp_path / "b.tif")
    assert done.stdout == "[]\n", done.stdout + done.stderr


# PNG and JPEG


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_deep_png_keeps_16_bits(samples, tmp_path):
    pixels = np.random.default_rng(6).integers(0, 65536, (12, 10, samples)).astype(np.uint16)
    image = files.read_image(save(tmp_path / "a.png", pixels, "YXS"))
    assert image.dtype == np.uint16
    assert (image.pixels == pixels).all()
    assert image.alpha == (samples != 3)


def test_planar_rgb_becomes_an_interleaved_png(tmp_path):
    pixels = np.random.default_rng(7).integers(0, 256, (3, 12, 10)).astype(np.uint8)
    image = files.read_image(save(tmp_path / "a.png", pixels, "SYX"))
    assert (image.pixels == np.moveaxis(pixels, 0, -1)).all()


@pytest.mark.parametrize("transparent", [False, True])
def test_a_png_palette_is_expanded(transparent, tmp_path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30, 7, 7, 7])
    picture.save(tmp_path / "a.png", **({"transparency": 1} if transparent else {}))
    image = files.read_image(tmp_path / "a.png")
    assert image.pixels[0, 0].tolist() == ([10, 20, 30, 0] if transparent else [10, 20, 30])


def test_one_bit_png_is_bool(tmp_path):
    mask = IMAGE > 2000
    image = files.read_image(save(tmp_path / "a.png", mask))
    assert image.dtype == bool
    assert (image.pixels == mask).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_the_exif_orientation_is_applied_and_not_written_again(orientation, name, tmp_path):
    from PIL import ImageOps

    pixels = np.zeros((16, 24), np.uint8)
    pixels[:8, :8] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    image = files.read_image(tmp_path / name)
    with Image.open(tmp_path / name) as picture:
        np.testing.assert_array_equal(image.pixels, np.array(ImageOps.exif_transpose(picture)))
    save(tmp_path / f"b{name}", image.pixels, metadata=image.metadata)
    assert files.read_image(tmp_path / f"b{name}").shape == image.shape


@pytest.mark.parametrize("name", ["a.jpg", "b.JPEG"])
def test_jpeg_is_written_well(name, tmp_path):
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([2 * x, 2 * y, x + y], -1).astype(np.uint8)
    image = files.read_image(save(tmp_path / name, pixels, "YXS"))
    assert image.format == "jpeg"
    assert (
        np.abs(image.pixels.astype(int) - pixels).max() <= 8
    )  # quality 95; with fewer colour samples it is far more
    grey = files.read_image(save(tmp_path / f"g{name}", pixels[..., 0], "YX"))
    assert grey.axes == "YX"


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_cut_pictures_are_refused(name, part, tmp_path):
    content = save(tmp_path / name, (IMAGE % 256).astype(np.uint8)).read_bytes()
    with pytest.raises(ImageFileError, match=name):
        files.read_image(broken(tmp_path / name, content[: int(len(content) * part)]))


def test_a_cut_deep_png_is_refused(tmp_path):
    path = save(
        tmp_path / "a.png",
        np.random.default_rng(8).integers(0, 65536, (32, 32, 3)).astype(np.uint16),
        "YXS",
    )
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(ImageFileError, match=r"a\.png"):
            files.read_image(
                broken(tmp_path / "b_a.png", path.read_bytes()[: int(path.stat().st_size * part)])
            )


def test_cmyk_jpeg_is_refused(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageFileError, match="CMYK colours.*Convert it to RGB"):
        files.read_image(tmp_path / "a.jpg")


def test_a_png_that_claims_too_many_pixels_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    content = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageFileError, match="DecompressionBomb"):
        files.read_image(
            broken(
                tmp_path / "a.png",
                content + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")),
            )
        )
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_density_of_a_picture_is_kept(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png", dpi=(300, 300))
    image = files.read_image(tmp_path / "a.png")
    save(tmp_path / "b.png", image.pixels, metadata=image.metadata)
    assert files.read_image(tmp_path / "b.png").metadata["dpi"] == pytest.approx(
        (300, 300), abs=0.1
    )


# zarr


def ome_zarr(path, pixels=STACK, axes="ZYX", version=3):
    return save(path, pixels, axes, format="ome-zarr", metadata={"zarr_format": version})


def chunk_files(path):
    return sorted(
        p
        for p in (path / "0").rglob("*")
        if p.is_file() and p.name not in ("zarr.json", ".zarray", ".zattrs")
    )


@pytest.mark.parametrize("version", [2, 3])
def test_a_missing_chunk_is_filled_and_told_or_refused_when_asked(version, tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", version=version)
    assert (files.read_image(path).pixels == STACK).all()
    chunk_files(path)[3].unlink()
    with pytest.raises(ImageFileError, match=r"a\.ome\.zarr lacks 1 of 8 chunks.*missing=\"fill\""):
        files.read_image(path, missing="refuse")
    with pytest.warns(
        UserWarning, match=r"a\.ome\.zarr: 1 of 8 chunks \(12%\) are missing and were read as 0"
    ):
        assert not files.read_image(path).pixels[3].any()


@pytest.mark.parametrize("version", [2, 3])
def test_planes_of_zeros_are_no_missing_chunks(version, tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", np.zeros_like(STACK), version=version)
    assert not files.read_image(path, missing="refuse").pixels.any()


def test_a_sparse_bare_array_is_read(tmp_path):
    import zarr

    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(100, 1000, 1000), chunks=(1, 500, 500), dtype="u2", fill_value=7
    )
    array[3, :10, :10] = 1
    with files.open_image(tmp_path / "a.zarr") as image:
        assert image.axes == "QYX"
        assert image.format == "zarr"
        assert image.notes == ("399 of 400 chunks (over 99%) are missing and were read as 7",)
        assert image.source[3, 0, 0] == 1
        assert image.source[50, 0, 0] == 7


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_a_damaged_chunk_is_refused(version, damage, tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", version=version)
    chunk = chunk_files(path)[2]
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(
        {"empty": b"", "cut": bytes(content[: len(content) // 2]), "flipped": bytes(content)}[
            damage
        ]
    )
    with files.open_image(path) as image:
        assert (image.source[0] == STACK[0]).all()
        with pytest.raises(ImageFileError, match=r"a\.ome\.zarr"):
            image.source[2]


@pytest.mark.parametrize("version", [2, 3])
def test_every_flipped_bit_of_what_we_write_is_noticed(version, tmp_path):
    path = ome_zarr(tmp_path / "a.ome.zarr", IMAGE, "YX", version=version)
    chunk = chunk_files(path)[0]
    whole = chunk.read_bytes()
    generator = np.random.default_rng(9)
    for _ in range(50):
        content = bytearray(whole)
        content[generator.integers(len(content))] ^= 1 << generator.integers(8)
        chunk.write_bytes(content)
        try:
            assert (files.read_image(path).pixels == IMAGE).all()
        except ImageFileError:
            pass


def test_a_missing_zarr_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no image '.*a.zarr'. Check") as caught:
        files.read_image(tmp_path / "a.zarr")
    assert caught.value.errno == errno.ENOENT
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"{bad json",
        b"[]",
        b"{}",
        b'{"zarr_format": 9, "node_type": "array"}',
        json.dumps(
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"ome": {"version": "0.5", "multiscales": [{"datasets": []}]}},
            }
        ).encode(),
        json.dumps(
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"ome": {"multiscales": [{"datasets": [{"path": "../b"}]}]}},
            }
        ).encode(),
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode(),
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": []}}).encode(),
    ],
)
def test_bad_zarr_metadata_is_refused(content, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    broken(tmp_path / "a.zarr" / "zarr.json", content)
    with pytest.raises(ImageFileError, match=r"a\.zarr"):
        files.read_image(tmp_path / "a.zarr")


def changed_array(path, **changes):
    metadata = json.loads((path / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps({**metadata, **changes}))


def test_zarr_arrays_with_unknown_codecs_or_huge_shapes_are_refused(tmp_path):
    import zarr

    zarr.create_array(tmp_path / "a.zarr", shape=(8, 8), dtype="u2")
    changed_array(
        tmp_path / "a.zarr",
        codecs=[
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "magic", "configuration": {}},
        ],
    )
    with pytest.raises(ImageFileError, match=r"a\.zarr"):
        files.read_image(tmp_path / "a.zarr")
    zarr.create_array(tmp_path / "b.zarr", shape=(8, 8), dtype="u2")
    changed_array(tmp_path / "b.zarr", shape=[2**31, 2**31])
    with pytest.raises(ImageFileError, match=r"b\.zarr must have at most .* claims"):
        files.read_image(tmp_path / "b.zarr")


def test_pickled_objects_are_refused(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    metadata = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": None,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "pickle"}],
    }
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(metadata))
    (tmp_path / "a.zarr" / "0").write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ImageFileError, match=r"a\.zarr"):
        files.read_image(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", [2, 3])
def test_pyramids_are_made_again(version, tmp_path, monkeypatch):
    monkeypatch.setattr(ome_zarr_writer, "BAND_BYTES", 1)  # many bands
    pixels = np.random.default_rng(10).integers(0, 65536, (2, 67, 45)).astype(np.uint16)
    levels = [
        ("s0", (2, 67, 45)),
        ("s1", (2, 34, 23)),
        ("s2", (2, 17, 11)),
        ("odd", (2, 9, 10)),
        ("flat", (1, 8, 5)),
    ]
    image = like(
        pixels, "ZYX", format="ome-zarr", metadata={"zarr_format": version, "levels": levels}
    )
    with (
        pytest.warns(UserWarning, match="level .* left out") as caught,
        files.create_image(tmp_path / "a.ome.zarr", image) as target,
    ):
        target[...] = pixels
    assert len(caught) == 2
    back = files.read_image(tmp_path / "a.ome.zarr")
    assert back.metadata["levels"] == levels[:3]
    assert back.metadata["version"] == ("0.4" if version == 2 else "0.5")
    second = files.read_image(tmp_path / "a.ome.zarr" / "s1").pixels
    assert second[1, 3, 4] == round(float(pixels[1, 6:8, 8:10].mean()))
    assert second[0, 33, 22] == pixels[0, 66, 44]
    scale = back.metadata["attributes"].get("ome", back.metadata["attributes"])["multiscales"][0][
        "datasets"
    ][2]["coordinateTransformations"][0]["scale"]
    assert scale == [1, 4, 4]


def test_axes_are_put_into_the_order_that_ome_zarr_demands(tmp_path):
    pixels = np.arange(3 * 2 * 4 * 20 * 21, dtype=np.float32).reshape(3, 2, 4, 20, 21)
    with files.create_image(tmp_path / "a.ome.zarr", like(pixels, "ZTCYX")) as target:
        assert target.shape == pixels.shape
        target[0] = pixels[0]
        target[1:, ..., :10, :] = pixels[1:, ..., :10, :]
        for t in range(2):
            target[1:3, t, :, 10:] = pixels[1:3, t, :, 10:]
        target[2, 1, 3, 5] = 7
        target[2, 1, 3, 5, 4] = 8
        assert (target[:, 1, 2] == pixels[:, 1, 2]).all()
    pixels[2, 1, 3, 5] = 7
    pixels[2, 1, 3, 5, 4] = 8
    back = files.read_image(tmp_path / "a.ome.zarr")
    assert back.axes == "TCZYX"
    assert (back.pixels == pixels.transpose(1, 2, 0, 3, 4)).all()


def test_a_zarr_inside_a_collection_is_found(tmp_path):
    import zarr

    zarr.create_group(tmp_path / "a.zarr", attributes={"bioformats2raw.layout": 3}).create_group(
        "x"
    )
    ome_zarr(tmp_path / "b.ome.zarr").rename(tmp_path / "a.zarr" / "0")
    image = files.read_image(tmp_path / "a.zarr")
    assert (image.pixels == STACK).all()
    assert "collection" in image.notes[0]


# Finding images


def test_folders_are_searched_and_zarrs_are_single_images(tmp_path):
    for name in (
        "b/2.TIF",
        "b/1.jpeg",
        "a.png",
        ".hidden.tif",
        ".git/x.tif",
        "notes.txt",
        "c.ome.zarr/0/zarr.json",
        "c.ome.zarr/x.tif",
        "Z.Zarr/zarr.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    everything = [
        tmp_path / name for name in ("Z.Zarr", "a.png", "b/1.jpeg", "b/2.TIF", "c.ome.zarr")
    ]
    assert files.image_paths([tmp_path]) == everything
    assert files.image_paths(
        [tmp_path / "b", str(tmp_path / "a.png"), tmp_path / "b" / ".." / "a.png", tmp_path]
    ) == [*(tmp_path / name for name in ("b/1.jpeg", "b/2.TIF", "a.png", "Z.Zarr", "c.ome.zarr"))]
    assert files.image_paths([tmp_path / "*"]) == [
        tmp_path / name for name in ("Z.Zarr", "a.png", "c.ome.zarr")
    ]
    assert files.image_paths([tmp_path / "**" / "*"]) == everything
    assert files.image_paths([tmp_path / "c.ome.zarr"]) == [tmp_path / "c.ome.zarr"]
    assert files.image_paths([]) == []


def test_a_name_with_brackets_is_first_a_name(tmp_path):
    path = save(tmp_path / "cell [1].tif", IMAGE)
    assert files.image_paths([path]) == [path]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.tif", "there is no image"),
        ("*.tif", "no image matches"),
        (".", "no images .* in this folder"),
    ],
)
def test_inputs_that_stand_for_nothing_are_refused(given, message, tmp_path):
    with pytest.raises(FileNotFoundError, match=message) as caught:
        files.image_paths([tmp_path / given])
    assert caught.value.errno == errno.ENOENT


def test_formats_are_listed():
    assert {".tif", ".ome.tif", ".png", ".ome.zarr"} <= set(files.writable_formats())


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ImageFileError, match="must be an image file .* a folder. Give the files"):
        files.read_image(tmp_path)


def test_pixels_in_memory_do_not_depend_on_the_file(tmp_path):
    path = save(tmp_path / "a.tif", STACK)
    image = files.read_image(path)
    with files.open_image(path) as opened:
        pixels = opened.pixels
    path.write_bytes(bytes(path.stat().st_size))
    assert (image.pixels == STACK).all()
    assert (pixels == STACK).all()
    image.pixels[0] = 0  # and may be changed


@pytest.mark.parametrize(
    ("link", "target"), [("a.png", "b.dat"), ("a.jpg", "b.png"), ("a.tif", "b.dat")]
)
def test_the_name_of_the_output_decides_its_format_also_where_it_is_a_link(link, target, tmp_path):
    (tmp_path / link).symlink_to(tmp_path / target)
    save(tmp_path / link, np.zeros((16, 16), np.uint8))
    assert (
        files.read_image(tmp_path / link).format
        == {".png": "png", ".jpg": "jpeg", ".tif": "tiff"}[Path(link).suffix]
    )


def test_reading_changes_nothing_and_warns_of_nothing(tmp_path):
    path = save(tmp_path / "a.tif", STACK)
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with files.open_image(path) as image, pytest.raises(ValueError, match="read-only"):
            image.source[0] = 0
    assert path.read_bytes() == before

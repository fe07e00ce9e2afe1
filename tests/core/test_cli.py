"""The command line, run as a user runs it; and the pictures and figures that it shows."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from small_models import small_model
from typer.testing import CliRunner

import dn_core
from dn_core import files
from dn_core.checkpoints import load_checkpoint, save_checkpoint
from dn_core.cli import app
from dn_core.comparison import write_comparison
from dn_core.training.recipes import recipe_descriptions

DATA = (
    Path(os.environ.get("DN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
    / "microscopy_formats"
)
ENTRIES = (
    json.loads((DATA / "manifest.json").read_text("utf-8"))["files"]
    if (DATA / "manifest.json").exists()
    else []
)
# Files that can be read and still are not denoised, and what is said of them.
NOT_DENOISED = {
    "real_cmyk.jpg": "CMYK",
    "yx_bool.tif": "bool",
    "yx_f32_nan_inf.tif": "--nonfinite fill",
}
IMAGE = np.random.default_rng(0).normal(300, 30, (40, 44)).clip(0).astype(np.uint16)
MICROMETRES = {"nm": 1e-3, "µm": 1.0, "mm": 1e3}
posix = pytest.mark.skipif(os.name == "nt", reason="signals, pipes and names as POSIX has them")


def invoke(*arguments):
    """The command in this process, for speed."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def dn_resnet(*arguments, module="dn_core.cli", **options):
    """The command as a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        errors="replace",
        **options,
    )


def save(path, pixels, axes=None, **metadata):
    axes = axes or "YX".rjust(pixels.ndim, "Z")
    like = files.ImageFile(Path("memory"), pixels, axes, "tiff", metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.create_image(path, like) as target:
        target[...] = pixels
    return path


def pixels_of(path):
    return files.read_image(path).pixels


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def tree(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def noisy(tmp_path):
    path = tmp_path / "noisy.ome.tif"
    pixels = np.random.default_rng(0).normal(300, 30, (2, 3, 40, 44)).clip(0).astype(np.uint16)
    metadata = {
        "axes": "ZCYX",
        "PhysicalSizeX": 0.2,
        "PhysicalSizeY": 0.2,
        "Channel": {"Name": ["a", "b", "c"]},
    }
    tifffile.imwrite(path, pixels, metadata=metadata, ome=True)
    return path


@pytest.fixture
def small(tmp_path):
    return save(tmp_path / "small.tif", IMAGE)


@pytest.fixture
def slow_to_denoise(tmp_path):
    """16 megapixels: seconds of work on any CPU, so that a signal comes amid it."""
    return save(
        tmp_path / "in" / "large.tif",
        np.random.default_rng(0).integers(0, 999, (4, 2048, 2048)).astype(np.uint16),
    )


# What comes out is what went in, denoised


def test_a_stack_is_denoised_and_keeps_its_axes_type_and_names(noisy, tmp_path):
    result = dn_resnet(
        "denoise", noisy, "-o", tmp_path / "clean.ome.tif", "--compare", tmp_path / "compare.png"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""
    with tifffile.TiffFile(tmp_path / "clean.ome.tif") as file:
        assert file.series[0].axes == "ZCYX"
        assert 'PhysicalSizeX="0.2"' in file.ome_metadata
        assert 'Name="b"' in file.ome_metadata
        clean = file.asarray()
    assert clean.dtype == np.uint16
    assert clean.std() < tifffile.imread(noisy).std() / 2
    np.testing.assert_array_equal(clean, dn_core.denoise(tifffile.imread(noisy), channel_axis=1))
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:.* hot or dead pixel:UserWarning")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_every_real_file_is_denoised_with_all_it_said_or_refused_by_name(entry, tmp_path):
    path = DATA / entry["file"]
    lossy = "jpeg" in path.name and path.suffix == ".tif"
    with (
        pytest.warns(UserWarning, match=r"JPEG\w* compression")
        if lossy
        else contextlib.nullcontext()
    ):
        result = invoke("denoise", path, "-o", tmp_path)
    if not entry["should_read"] or entry["file"] in NOT_DENOISED:
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1
        assert entry["file"] in result.stderr
        assert NOT_DENOISED.get(entry["file"], "") in result.stderr
        assert not listed(tmp_path)
        return
    assert result.exit_code == 0, result.stderr
    assert listed(tmp_path) == [entry["file"]]
    before, after = files.read_image(path), files.read_image(tmp_path / entry["file"])
    assert (after.shape, after.dtype, after.axes) == (before.shape, before.dtype, before.axes)
    if entry.get("mode") != "P":  # colours by number come out as colours
        assert (list(after.shape), after.axes) == (entry["shape"], entry["axes"])
    assert after.dtype.name == entry["dtype"]
    for key in ("pixel_size", "pixel_unit", "channel_names", "time_increment", "time_unit"):
        assert after.metadata.get(key) == before.metadata.get(key), key
    if entry["pixel_size_um"]:
        sizes, units = after.metadata["pixel_size"], after.metadata["pixel_unit"]
        assert {
            axis: size * MICROMETRES[units[axis]] for axis, size in sizes.items()
        } == pytest.approx(entry["pixel_size_um"])
    assert np.isfinite(after.pixels).all()
    if before.alpha:
        np.testing.assert_array_equal(after.pixels[..., -1], before.pixels[..., -1])
    if before.pixels.min() == before.pixels.max():
        np.testing.assert_array_equal(after.pixels, before.pixels)


@pytest.mark.parametrize(
    ("ending", "axes"), [(".tif", "ZCYX"), (".ome.tif", "ZCYX"), (".ome.zarr", "CZYX")]
)
def test_a_change_of_format_keeps_axes_and_pixel_size(noisy, ending, axes, tmp_path):
    assert invoke("denoise", noisy, "-o", tmp_path / f"out{ending}").exit_code == 0
    image = files.read_image(tmp_path / f"out{ending}")
    assert image.axes == axes  # OME-Zarr wants channels before space
    assert image.dtype == np.uint16
    assert image.metadata["pixel_size"] == pytest.approx({"X": 0.2, "Y": 0.2})
    clean = dn_core.denoise(tifffile.imread(noisy), channel_axis=1)
    np.testing.assert_array_equal(image.pixels, clean if axes == "ZCYX" else clean.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("L", ".png"),
        ("LA", ".png"),
        ("RGB", ".png"),
        ("RGBA", ".png"),
        ("L", ".jpg"),
        ("RGB", ".jpeg"),
    ],
)
def test_pictures_stay_pictures(mode, ending, tmp_path):
    path, samples = tmp_path / f"in{ending}", len(mode)
    pixels = (
        np.random.default_rng(0).normal(120, 30, (40, 44, samples)).clip(0, 255).astype(np.uint8)
    )
    Image.fromarray(pixels if samples > 1 else pixels[..., 0]).save(path)
    assert invoke("denoise", path, "-o", tmp_path / "out").exit_code == 0
    with Image.open(tmp_path / "out" / path.name) as picture:
        assert picture.mode == mode
        clean = np.array(picture).reshape(pixels.shape)
    before = np.array(Image.open(path)).reshape(pixels.shape)
    assert clean[..., 0].std() < before[..., 0].std() / 2
    if "A" in mode:
        np.testing.assert_array_equal(clean[..., -1], before[..., -1])


def test_a_stack_as_narrow_as_colours_are_many_is_no_rgb(tmp_path):
    stack = np.random.default_rng(0).normal(300, 30, (20, 24, 3)).astype(np.float32)
    path = save(tmp_path / "narrow.ome.tif", stack, "ZYX")
    assert invoke("denoise", path, "-o", tmp_path / "out.ome.tif").exit_code == 0
    planes = np.stack([dn_core.denoise(plane) for plane in stack])
    np.testing.assert_allclose(pixels_of(tmp_path / "out.ome.tif"), planes, rtol=1e-5)


# Inputs: files, folders, patterns


@pytest.fixture
def many(tmp_path):
    """Ten images in a folder with folders."""
    places = [f"{'deep/' * (index % 3)}image{index}.tif" for index in range(10)]
    return [
        save(tmp_path / "in" / place, IMAGE + np.uint16(index))
        for index, place in enumerate(places)
    ]


def test_a_folder_with_its_folders(many, tmp_path):
    assert invoke("denoise", tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "in")
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "out" / many[3].name), dn_core.denoise(pixels_of(many[3]))
    )


def test_a_pattern(many, tmp_path):
    assert (
        invoke(
            "denoise", tmp_path / "in" / "**" / "image[0-4].tif", "-o", tmp_path / "out"
        ).exit_code
        == 0
    )
    assert tree(tmp_path / "out") == sorted(path.relative_to(tmp_path / "in") for path in many[:5])


def test_several_inputs_each_once(many, tmp_path):
    inputs = [many[0], many[4], tmp_path / "in" / "deep" / "deep", many[0]]
    assert invoke("denoise", *inputs, "-o", tmp_path / "out").exit_code == 0
    assert listed(tmp_path / "out") == [f"image{index}.tif" for index in (0, 2, 4, 5, 8)]


def test_one_input_goes_to_a_file_or_into_a_folder(small, tmp_path):
    (tmp_path / "there.d").mkdir()
    for output in ("out.tif", "new", "there.d", "deep/new"):
        assert invoke("denoise", small, "-o", tmp_path / output).exit_code == 0
    assert pixels_of(tmp_path / "out.tif").shape == IMAGE.shape
    for folder in ("new", "there.d", "deep/new"):
        assert listed(tmp_path / folder) == ["small.tif"]


def test_an_existing_zarr_is_an_image_and_no_folder_for_results(small, tmp_path):
    target = tmp_path / "out.ome.zarr"
    assert invoke("denoise", small, "-o", target).exit_code == 0
    before = listed(target)
    assert invoke("denoise", small, "-o", target).exit_code == 1
    assert invoke("denoise", small, "-o", target, "--overwrite").exit_code == 0
    assert listed(target) == before
    result = invoke("denoise", small, target, "-o", target)
    assert result.exit_code == 1
    assert "--output must be a folder for several inputs" in result.stderr


def test_several_inputs_do_not_fit_into_one_file(many, tmp_path):
    result = invoke("denoise", tmp_path / "in", "-o", tmp_path / "out.tif")
    assert result.exit_code == 1
    assert "for 10 inputs" in result.stderr
    assert not (tmp_path / "out.tif").exists()


def test_results_inside_the_input_folder_are_no_inputs(many, tmp_path):
    command = ("denoise", tmp_path / "in", "-o", tmp_path / "in" / "out", "--overwrite")
    for _ in range(2):
        result = invoke(*command)
        assert result.exit_code == 0, result.stderr
    assert tree(tmp_path / "in" / "out") == sorted(
        path.relative_to(tmp_path / "in") for path in many
    )


def test_a_folder_can_be_denoised_in_place_when_told(tmp_path):
    path = save(tmp_path / "in" / "a.tif", IMAGE)
    assert invoke("denoise", tmp_path / "in", "-o", tmp_path / "in").exit_code == 1
    np.testing.assert_array_equal(pixels_of(path), IMAGE)
    assert invoke("denoise", tmp_path / "in", "-o", tmp_path / "in", "--overwrite").exit_code == 0
    np.testing.assert_array_equal(pixels_of(path), dn_core.denoise(IMAGE))


@pytest.mark.parametrize("order", [1, -1])
def test_bad_files_of_a_batch_are_named_and_the_others_done(many, order, tmp_path):
    many[0].write_text("no image")
    many[4].write_bytes(many[4].read_bytes()[:-500])
    many[9].unlink()
    save(many[9], np.full((20, 20), np.nan, np.float32))
    result = invoke("denoise", *many[::order], "-o", tmp_path / "out")
    assert result.exit_code == 1
    lines = result.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        str(many[index]) for index in (0, 4, 9)[::order]
    ]
    assert lines[-1] == "7 of 10 images denoised, 3 failed (named above)."
    assert listed(tmp_path / "out") == sorted(
        path.name for index, path in enumerate(many) if index not in (0, 4, 9)
    )


def test_inputs_that_are_not_there_do_not_stop_the_others(many, tmp_path):
    result = invoke(
        "denoise", tmp_path / "missing.tif", *many[:2], tmp_path / "x*.tif", "-o", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "missing.tif" in result.stderr
    assert "x*.tif" in result.stderr
    assert "2 of 4 images denoised" in result.stderr
    assert listed(tmp_path / "out") == ["image0.tif", "image1.tif"]


def test_nothing_but_missing_inputs_makes_no_output(tmp_path):
    result = invoke("denoise", tmp_path / "a.tif", tmp_path / "b.tif", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "a.tif" in result.stderr
    assert "b.tif" in result.stderr


ODD_NAMES = [
    "with spaces",
    "µ",
    "细胞",
    "🔬",
    "a" * 240,
    "it's [1] 100% %d {x}",
    "[bold]red[/bold]",
    "-o",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_work(name, tmp_path):
    path = save(tmp_path / "in" / f"{name}.tif", IMAGE)
    assert invoke("denoise", path, "-o", tmp_path / "out").exit_code == 0
    assert listed(tmp_path / "out") == [path.name]
    path.write_text("no image")
    result = invoke("denoise", path, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert name in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_names_that_are_no_text_work_and_can_be_complained_about(tmp_path):
    name = os.fsdecode(b"caf\xe9.tif")
    save(tmp_path / "in" / name, IMAGE)
    result = dn_resnet("denoise", tmp_path / "in", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert listed(tmp_path / "out") == [name]
    (tmp_path / "in" / name).write_text("no image")
    for locale in ("C.UTF-8", "C"):
        result = dn_resnet(
            "denoise",
            tmp_path / "in" / name,
            "-o",
            tmp_path / "out",
            env={**os.environ, "LC_ALL": locale},
        )
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        assert "caf" in result.stderr


# Outputs: replaced only when told, whole or not at all


@pytest.mark.parametrize("ending", [".tif", ".png", ".ome.zarr"])
def test_an_existing_output_is_replaced_only_when_told(small, ending, tmp_path):
    target = save(tmp_path / f"out{ending}", IMAGE * 0)
    refused = invoke("denoise", small, "-o", target)
    assert refused.exit_code == 1
    assert "exists" in refused.stderr
    np.testing.assert_array_equal(pixels_of(target), IMAGE * 0)
    assert invoke("denoise", small, "-o", target, "--overwrite").exit_code == 0
    assert pixels_of(target).any()


def test_existing_outputs_of_a_batch_are_named_and_the_others_made(many, tmp_path):
    save(tmp_path / "out" / "deep" / "image4.tif", IMAGE * 0)
    result = invoke("denoise", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("the output exists") == 1
    assert "image4.tif" in result.stderr
    assert len(tree(tmp_path / "out")) == 10
    assert not pixels_of(tmp_path / "out" / "deep" / "image4.tif").any()


@pytest.mark.parametrize("way", ["same", "link", "dots"])
def test_the_input_is_replaced_only_when_told(small, way, tmp_path):
    target = {
        "same": small,
        "dots": tmp_path / "x" / ".." / "small.tif",
        "link": tmp_path / "link.tif",
    }[way]
    (tmp_path / "x").mkdir()
    if way == "link":
        target.symlink_to(small)
    refused = invoke("denoise", small, "-o", target)
    assert refused.exit_code == 1
    assert "the output is the input" in refused.stderr
    np.testing.assert_array_equal(pixels_of(small), IMAGE)
    assert invoke("denoise", small, "-o", target, "--overwrite").exit_code == 0
    np.testing.assert_array_equal(pixels_of(small), dn_core.denoise(IMAGE))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("missing/out.tif", "the folder of the output is missing; create it first"),
        ("out.bmp", "must end in one of"),
        ("out.jpg", "uint16 cannot be written as JPEG"),
    ],
)
def test_impossible_outputs_are_refused(small, output, message, tmp_path):
    result = invoke("denoise", small, "-o", tmp_path / output)
    assert result.exit_code == 1
    assert message in result.stderr
    assert listed(tmp_path) == ["small.tif"]


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("ending", [".tif", ".ome.zarr"])
def test_a_signal_leaves_neither_output_nor_temporary_files(
    slow_to_denoise, name, code, ending, tmp_path
):
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and so by children")
    out = tmp_path / "out"
    out.mkdir()
    if ending == ".tif":  # an old file stays
        save(out / "large.tif", IMAGE)
    arguments = [
        "denoise",
        slow_to_denoise,
        "-o",
        out / f"large{ending}",
        "--overwrite",
        "--model",
        "dn-resnet-13",
        "--tile-size",
        "64",
    ]
    command = [sys.executable, "-m", "dn_core.cli", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while child.poll() is None and not any(
            path.name.startswith(".part") for path in out.iterdir()
        ):
            time.sleep(0.02)
        time.sleep(0.3)
        child.send_signal(number)
        messages = child.stderr.read()
    assert child.returncode == code, messages
    assert messages == ""
    assert listed(out) == (["large.tif"] if ending == ".tif" else [])
    if ending == ".tif":
        np.testing.assert_array_equal(pixels_of(out / "large.tif"), IMAGE)


# Options


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_an_amount_of_0_changes_nothing(dtype, tmp_path):
    pixels = np.random.default_rng(0).normal(100, 20, (3, 40, 44)).astype(dtype)
    path = save(tmp_path / "in.tif", pixels)
    assert invoke("denoise", path, "-o", tmp_path / "out.tif", "--amount", 0).exit_code == 0
    np.testing.assert_array_equal(pixels_of(tmp_path / "out.tif"), pixels)


def test_an_amount_of_half_is_half_way(tmp_path):
    pixels = np.random.default_rng(0).normal(100, 20, (40, 44)).astype(np.float32)
    path = save(tmp_path / "in.tif", pixels)
    for amount in (0.5, 1):
        assert (
            invoke("denoise", path, "-o", tmp_path / f"{amount}.tif", "--amount", amount).exit_code
            == 0
        )
    half, full = pixels_of(tmp_path / "0.5.tif"), pixels_of(tmp_path / "1.tif")
    np.testing.assert_allclose(half, (pixels + full) / 2, atol=1e-3)
    assert np.abs(full - pixels).max() > 1


def test_tiles_give_the_same_image(tmp_path):
    pixels = np.random.default_rng(0).normal(100, 20, (150, 130)).astype(np.float32)
    path = save(tmp_path / "in.tif", pixels)
    for tile in (32, 1000):
        assert (
            invoke("denoise", path, "-o", tmp_path / f"{tile}.tif", "--tile-size", tile).exit_code
            == 0
        )
    np.testing.assert_allclose(
        pixels_of(tmp_path / "32.tif"), pixels_of(tmp_path / "1000.tif"), atol=1e-3
    )


def test_a_channel_axis_may_be_named_where_the_file_does_not_say(tmp_path):
    pixels = np.random.default_rng(0).normal(100, 20, (40, 44, 5)).astype(np.float32)
    path = tmp_path / "plain.tif"
    tifffile.imwrite(path, pixels, photometric="minisblack")
    for name, axis in (("pages", 0), ("last", 2), ("minus", -1)):
        assert (
            invoke(
                "denoise", path, "-o", tmp_path / f"{name}.tif", "--channel-axis", axis
            ).exit_code
            == 0
        )
        np.testing.assert_allclose(
            pixels_of(tmp_path / f"{name}.tif"),
            dn_core.denoise(pixels, channel_axis=axis),
            rtol=1e-5,
        )
    assert not np.allclose(pixels_of(tmp_path / "pages.tif"), pixels_of(tmp_path / "last.tif"))
    result = invoke("denoise", path, "-o", tmp_path / "out.tif", "--channel-axis", 7)
    assert result.exit_code == 1
    assert "channel_axis must be -3 to 2 for an image of shape" in result.stderr


def test_pixels_that_are_not_finite_are_refused_or_left_where_they_are(tmp_path):
    pixels = np.random.default_rng(0).normal(100, 20, (40, 44)).astype(np.float32)
    pixels[3, 4], pixels[5, 6] = np.nan, np.inf
    path = save(tmp_path / "in.tif", pixels)
    refused = invoke("denoise", path, "-o", tmp_path / "out.tif")
    assert refused.exit_code == 1
    assert re.search(
        r"2 pixels that are NaN or infinite.*\(3, 4\).*Use --nonfinite fill", refused.stderr
    )
    assert listed(tmp_path) == ["in.tif"]
    result = invoke(
        "denoise",
        path,
        "-o",
        tmp_path / "out.tif",
        "--nonfinite",
        "fill",
        "--compare",
        tmp_path / "c.png",
    )
    assert result.exit_code == 0, result.stderr
    clean = pixels_of(tmp_path / "out.tif")
    assert np.isnan(clean[3, 4])
    assert clean[5, 6] == np.inf
    assert np.isfinite(clean).sum() == clean.size - 2


def test_missing_chunks_are_told_or_refused(tmp_path):
    path = save(
        tmp_path / "in.ome.zarr",
        np.random.default_rng(0).integers(1, 999, (3, 40, 44)).astype(np.uint16),
    )
    next(
        chunk
        for chunk in sorted((path / "0").rglob("*"))
        if chunk.is_file() and chunk.name != "zarr.json"
    ).unlink()
    refused = invoke("denoise", path, "-o", tmp_path / "out.ome.zarr", "--missing", "refuse")
    assert refused.exit_code == 1
    assert "lacks 1 of 3 chunks" in refused.stderr
    assert "--missing fill" in refused.stderr
    told = invoke("denoise", path, "-o", tmp_path / "out.ome.zarr")
    assert told.exit_code == 0
    assert told.stderr.strip() == "in.ome.zarr: 1 of 3 chunks (33%) are missing and were read as 0"


def test_a_model_file_can_be_used(small, tmp_path):
    model = tmp_path / "own.safetensors"
    save_checkpoint(model, small_model().checkpoint)
    assert invoke("denoise", small, "-o", tmp_path / "out.tif", "--model", model).exit_code == 0
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "out.tif"), dn_core.denoise(IMAGE, small_model())
    )


def test_a_model_with_a_noise_map_is_told_the_noise(small, tmp_path):
    model = tmp_path / "own.safetensors"
    save_checkpoint(model, small_model("noise map").checkpoint)
    refused = invoke("denoise", small, "-o", tmp_path / "out.tif", "--model", model)
    assert refused.exit_code == 1
    assert "needs the noise level" in refused.stderr
    assert (
        invoke(
            "denoise", small, "-o", tmp_path / "out.tif", "--model", model, "--sigma", 30
        ).exit_code
        == 0
    )
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "out.tif"), dn_core.denoise(IMAGE, small_model("noise map"), sigma=30)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "dn-fsat"), "Did you mean dn-fast"),
        (("--model", "../secret"), "there is no model"),
        (("--sigma", 3), "is blind and takes no noise level"),
        (("--device", "abacus"), "'mps', got 'abacus'"),
        (("--nonfinite", "ignore"), "nonfinite must be one of ('raise', 'fill'), got 'ignore'"),
        (("--missing", "ignore"), "missing must be None"),
        (("--tile-size", 99999), "tile_size must be a whole number from 1 to 16384, got 99999"),
    ],
)
def test_what_cannot_be_done_is_explained_in_a_sentence(small, options, message, tmp_path):
    result = invoke("denoise", small, "-o", tmp_path / "out.tif", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert listed(tmp_path) == ["small.tif"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--colour",),
        ("denoise", "in.tif", "-o", "out.tif", "--colour"),
        ("denoise", "in.tif"),
        ("denoise", "-o", "out.tif"),
        ("denoise", "in.tif", "-o", "out.tif", "--amount", "2"),
        ("denoise", "in.tif", "-o", "out.tif", "--amount", "much"),
        ("denoise", "in.tif", "-o", "out.tif", "--tile-size", "0"),
        ("train", "dn-fast"),
        ("paint",),
    ],
)
def test_a_wrong_use_shows_the_usage_and_ends_with_2(arguments):
    result = dn_resnet(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Usage: dn-resnet" in result.stderr
    assert "Error:" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_command_the_help_is_shown():
    result = dn_resnet()
    assert result.returncode == 2
    assert "denoise" in result.stdout + result.stderr
    assert dn_resnet("--help").returncode == 0


def test_errors_are_sentences_and_tracebacks_only_with_debug(small, tmp_path):
    small.write_text("no image")
    for extra, shown in (((), False), (("--debug",), True)):
        result = dn_resnet("denoise", small, "-o", tmp_path / "out.tif", *extra)
        assert result.returncode == 1
        assert result.stdout == ""
        assert "small.tif is not a TIFF file" in result.stderr
        assert ("Traceback" in result.stderr) == shown
        result = dn_resnet("denoise", tmp_path / "missing.tif", "-o", tmp_path / "out.tif", *extra)
        assert result.returncode == 1
        assert "missing.tif" in result.stderr
        assert ("Traceback" in result.stderr) == shown


def test_notes_and_warnings_are_for_the_user(tmp_path):
    stack = np.random.default_rng(0).integers(0, 2**32, (40, 44)).astype(np.uint32)
    result = dn_resnet("denoise", save(tmp_path / "wide.tif", stack), "-o", tmp_path / "out.tif")
    assert result.returncode == 0
    assert re.fullmatch(
        r"warning: the range of the image, .* the last digits are lost\.\n", result.stderr
    )
    tifffile.imwrite(tmp_path / "two.tif", IMAGE, photometric="minisblack")
    tifffile.imwrite(tmp_path / "two.tif", IMAGE[:20], photometric="minisblack", append=True)
    result = dn_resnet("denoise", tmp_path / "two.tif", "-o", tmp_path / "one.tif")
    assert result.stderr == "two.tif: 2 images in the file; the first is used\n"


# A good citizen of the shell


@pytest.mark.parametrize("ending", [".tif", ".png", ".jpg"])
def test_small_images_need_no_torch(ending, tmp_path):
    path = tmp_path / f"small{ending}"
    save(path, IMAGE.clip(0, 255).astype(np.uint8))
    code = (
        "import sys; from dn_core.cli import main; main()\n"
        "print(sorted({'torch', 'scipy', 'skimage', 'dask', 'zarr'} & sys.modules.keys()))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "denoise",
        str(path),
        "-o",
        str(tmp_path / f"out{ending}"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout == "[]\n", result.stderr
    assert (tmp_path / f"out{ending}").exists()


@posix
def test_a_closed_pipe_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "dn_core.cli", "models"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=120)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")


@posix
def test_work_goes_on_when_nobody_reads_the_messages(many, tmp_path):
    many[0].write_text("no image")
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "-m",
        "dn_core.cli",
        "denoise",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=writing, timeout=120)
    os.close(writing)
    assert result.returncode == 1
    assert len(tree(tmp_path / "out")) == 9


@posix
def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path):
    path = save(
        tmp_path / "image.tif",
        np.random.default_rng(0).integers(0, 999, (512, 512)).astype(np.uint16),
    )
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-m",
        "dn_core.cli",
        "denoise",
        str(path),
        "-o",
        str(tmp_path / "out.tif"),
        "--tile-size",
        "64",
    ]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        environment.pop(name, None)
    shown = b""
    with subprocess.Popen(command, stderr=theirs, env=environment) as child:
        os.close(theirs)
        while select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is gone
                break
    os.close(ours)
    assert child.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "image.tif" in text
    assert re.search(r"[1-9]\d*%", text)
    assert re.search(r"\d:\d\d:\d\d", text)


def test_the_models_are_listed():
    result = dn_resnet("models")
    assert result.returncode == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["model", "weights", "kB"]
    assert len(lines) == 1 + len(dn_core.model_names())
    assert f"{dn_core.model_names()[0]} (default)" in lines[1]
    assert "149,344" in next(line for line in lines if line.strip().startswith("dn-resnet-13"))


# The before/after picture


def test_the_comparison_shows_the_input_beside_the_result(small, tmp_path):
    assert (
        invoke(
            "denoise", small, "-o", tmp_path / "out.tif", "--compare", tmp_path / "c.png"
        ).exit_code
        == 0
    )
    picture = np.array(Image.open(tmp_path / "c.png")).astype(float)
    assert picture.shape == (40, 44 + 4 + 44)
    assert (picture[:, 44:48] == 255).all()
    left, right = picture[:, :44], picture[:, 48:]
    clean = pixels_of(tmp_path / "out.tif")
    assert np.corrcoef(left.ravel(), IMAGE.ravel())[0, 1] > 0.99
    assert np.corrcoef(right.ravel(), clean.ravel())[0, 1] > 0.99
    assert right.std() / left.std() == pytest.approx(
        clean.std() / IMAGE.std(), rel=0.2
    )  # the same contrast


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_an_existing_comparison_is_replaced_only_when_told(small, options, tmp_path):
    (tmp_path / "c.png").write_bytes(b"old")
    result = invoke(
        "denoise", small, "-o", tmp_path / "out.tif", "--compare", tmp_path / "c.png", *options
    )
    assert result.exit_code == (0 if options else 1)
    assert ((tmp_path / "c.png").read_bytes() == b"old") == (not options)
    assert (tmp_path / "out.tif").exists() == bool(options)


@pytest.mark.parametrize(
    ("source", "output", "picture", "message"),
    [
        ("small.tif", "out.tif", "c.jpg", "must end in .png, got"),
        ("small.tif", "out.tif", "missing/c.png", "create it first"),
        ("small.tif", "c.png", "c.png", "is the input or the output"),
        ("in.png", "out.png", "in.png", "is the input or the output"),
        (".", "out", "c.png", "--compare takes one input, got 2"),
    ],
)
def test_impossible_comparisons_are_refused_before_computing(
    source, output, picture, message, small, tmp_path
):
    save(tmp_path / "in.png", IMAGE)
    before = listed(tmp_path)
    result = invoke(
        "denoise",
        tmp_path / source,
        "-o",
        tmp_path / output,
        "--compare",
        tmp_path / picture,
        "--overwrite",
    )
    assert result.exit_code == 1
    assert message in result.stderr
    assert listed(tmp_path) == before
    np.testing.assert_array_equal(pixels_of(tmp_path / "in.png"), IMAGE)


@pytest.mark.parametrize(
    ("shape", "axes", "shown"),
    [
        ((5, 20, 24), "ZYX", (20, 52)),
        ((2, 3, 20, 24), "TCYX", (20, 52)),
        ((20, 24, 3), "YXS", (20, 52, 3)),
        ((20, 24, 4), "YXS", (20, 52, 3)),
        ((20, 24, 2), "YXS", (20, 52)),
        ((3, 20, 24), "SYX", (20, 52, 3)),
        ((4, 3, 20, 24), "ZSYX", (20, 52, 3)),
        ((20, 24, 5), "YXC", (20, 52)),
        ((1, 1), "YX", (1, 6)),
        ((1030, 2000), "YX", (1024, 2052)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_comparisons_of_all_shapes(shape, axes, shown, dtype, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    write_comparison(tmp_path / "c.png", pixels, pixels, axes)
    picture = np.array(Image.open(tmp_path / "c.png"))
    assert picture.shape == shown
    half = (shown[1] - 4) // 2
    np.testing.assert_array_equal(picture[:, :half], picture[:, half + 4 :])


def test_a_stack_is_compared_in_its_middle(tmp_path):
    stack = np.zeros((5, 20, 24), np.uint8)
    stack[2, :10] = 200
    write_comparison(tmp_path / "c.png", stack, stack, "ZYX")
    picture = np.array(Image.open(tmp_path / "c.png"))
    assert (picture[:10, :24] == 255).all()
    assert (picture[10:, :24] == 0).all()


@pytest.mark.parametrize("value", [0, 7, 1e30, np.nan, np.inf])
def test_comparisons_of_constant_pictures(value, tmp_path):
    pixels = np.full((20, 24), value)
    write_comparison(tmp_path / "c.png", pixels, pixels, "YX")
    assert len(np.unique(np.array(Image.open(tmp_path / "c.png"))[:, :24])) == 1


# Training

RECIPE = """
name = "own"
epoch = 20

[network]
family = "half-resolution"
channels = 8
blocks = 1

[[noise]]
kind = "gaussian"
sigma = 25

[[phase]]
steps = {steps}
batch = 1
patch = 16
"""


@pytest.fixture
def to_train_on(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(5):
        save(tmp_path / "images" / f"{index}.png", rng.integers(0, 256, (40, 44)).astype(np.uint8))
    return tmp_path / "images"


def recipe_of(tmp_path, steps):
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.format(steps=steps))
    return path


def test_a_model_is_trained_from_a_folder_and_denoises(to_train_on, small, tmp_path):
    result = dn_resnet(
        "train", recipe_of(tmp_path, 60), "--data", to_train_on, "--out", tmp_path / "run"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "own: 4 images, 1 held out, 0 files skipped, 60 steps"
    assert [line.split(":")[0] for line in lines[1:]] == ["epoch 1", "epoch 2", "epoch 3"]
    assert re.fullmatch(
        r"epoch 3: loss 0\.\d+, held-out PSNR \d+\.\d\d dB, .* Mpx/s, 0 min left", lines[-1]
    )
    model = result.stdout.rstrip("\n")
    assert model == str(tmp_path / "run" / "own.safetensors")
    assert load_checkpoint(model).card.training["steps"] == 60
    assert invoke("denoise", small, "-o", tmp_path / "out.tif", "--model", model).exit_code == 0


def test_epochs_are_told_without_held_out_images_too(to_train_on, tmp_path):
    for name in ("0.png", "1.png"):
        (to_train_on / name).unlink()
    result = invoke(
        "train",
        recipe_of(tmp_path, 60),
        "--data",
        to_train_on,
        "--out",
        tmp_path / "run",
        "--steps",
        "40",
    )
    assert result.exit_code == 0, result.stderr
    assert "3 images, 0 held out" in result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines()[1:]] == ["epoch 1", "epoch 2"]
    assert "PSNR" not in result.stderr


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_training_goes_on_with_the_same_command(to_train_on, name, code, tmp_path):
    if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and so by children")
    arguments = ["train", recipe_of(tmp_path, 400), "--data", to_train_on, "--out"]
    command = [sys.executable, "-m", "dn_core.cli", *map(str, [*arguments, tmp_path / "run"])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        while "epoch 2" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(getattr(signal, name))
        rest = child.stderr.read()
    assert child.returncode == code, rest
    assert "Traceback" not in rest
    assert listed(tmp_path / "run") == ["state.safetensors", "training.lock"]
    for out in ("run", "whole"):
        assert dn_resnet(*arguments, tmp_path / out).returncode == 0
    assert (tmp_path / "run" / "own.safetensors").read_bytes() == (
        tmp_path / "whole" / "own.safetensors"
    ).read_bytes()


def test_images_that_cannot_be_trained_on_are_named_and_skipped_when_told(to_train_on, tmp_path):
    (to_train_on / "bad.png").write_bytes(b"")
    arguments = ("train", recipe_of(tmp_path, 2), "--data", to_train_on, "--out", tmp_path / "run")
    refused = invoke(*arguments)
    assert refused.exit_code == 1
    assert "bad.png" in refused.stderr
    assert "--skip-bad" in refused.stderr
    result = invoke(*arguments, "--skip-bad")
    assert result.exit_code == 0
    assert "bad.png: " in result.stderr
    assert "1 file skipped" in result.stderr


def test_another_training_in_the_folder_is_refused_unless_allowed(to_train_on, tmp_path):
    arguments = ("--data", to_train_on, "--out", tmp_path / "run")
    assert invoke("train", recipe_of(tmp_path, 2), *arguments).exit_code == 0
    refused = invoke("train", recipe_of(tmp_path, 4), *arguments)
    assert refused.exit_code == 1
    assert "recipe.phases" in refused.stderr
    assert (
        invoke("train", recipe_of(tmp_path, 4), *arguments, "--allow", "recipe.phases").exit_code
        == 0
    )
    assert load_checkpoint(tmp_path / "run" / "own.safetensors").card.training["steps"] == 4


def test_a_training_begins_with_the_model_given(to_train_on, tmp_path):
    command = ("train", recipe_of(tmp_path, 1), "--data", to_train_on, "--out")
    first, second = (tmp_path / name / "own.safetensors" for name in ("first", "second"))
    assert invoke(*command, first.parent, "--steps", "200").exit_code == 0
    assert invoke(*command, second.parent, "--start", first).exit_code == 0
    cards = [load_checkpoint(path).card for path in (first, second)]
    assert cards[1].recipe["start"] == str(first)
    assert cards[1].training["steps"] == 1
    assert cards[1].scores["held_out_psnr"] == pytest.approx(
        cards[0].scores["held_out_psnr"], abs=1
    )
    refused = invoke(*command, tmp_path / "third", "--start", "dn-fats")
    assert refused.exit_code == 1
    assert "dn-fast" in refused.stderr


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("dn-fst", {}, "there is no recipe 'dn-fst'. Did you mean dn-fast"),
        ("snow", {}, "there is no recipe 'snow'. Give a TOML file or one of dn-fast"),
        ("own.toml", {"--data": "missing"}, "there is no image or folder"),
        ("own.toml", {"--device": "abacus"}, "'mps', got 'abacus'"),
        ("dn-fast", {}, "at least 96x96 pixels, got 44x40"),
    ],
)
def test_trainings_that_cannot_be_are_explained(recipe, options, message, to_train_on, tmp_path):
    recipe = recipe_of(tmp_path, 2) if recipe == "own.toml" else recipe
    given = {"--data": to_train_on, "--out": tmp_path / "run", **options}
    result = invoke("train", recipe, *(word for pair in given.items() for word in pair))
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
    assert not (tmp_path / "run").exists()


def test_the_help_of_training_names_the_recipes():
    result = dn_resnet("train", "--help")
    assert result.returncode == 0
    for name, description in recipe_descriptions().items():
        assert "".join(f"{name}{description}".split()) in "".join(result.stdout.split())


# What `dev.py run` shows


def test_the_demo_prints_figures_and_writes_the_picture(tmp_path):
    result = dn_resnet("--output", tmp_path / "c.png", module="dn_core.demo")
    assert result.returncode == 0, result.stderr
    noisy, denoised = map(
        float, re.search(r"PSNR +noisy ([\d.]+) dB, denoised ([\d.]+) dB", result.stdout).groups()
    )
    assert noisy == pytest.approx(20.3, abs=0.3)  # clipped noise of sigma 25
    assert denoised > noisy + 7
    assert "megapixels per second" in result.stdout
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.size == (512 + 4 + 512, 512)


@pytest.mark.parametrize("name", ["image.tif", "grey and alpha.png", "stack.ome.tif"])
def test_the_demo_takes_an_image(name, tmp_path, noisy):
    path = tmp_path / name
    if name == "stack.ome.tif":
        noisy.rename(path)
    else:
        pixels = IMAGE.clip(0, 255).astype(np.uint8)
        save(
            path,
            np.stack([pixels, pixels], axis=2) if "alpha" in name else pixels,
            "YXS" if "alpha" in name else "YX",
        )
    result = dn_resnet(path, "--output", tmp_path / "c.png", module="dn_core.demo")
    assert result.returncode == 0, result.stderr
    assert "PSNR" not in result.stdout
    assert str(path) in result.stdout
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, b"no image", b""])
def test_the_demo_explains_what_it_cannot_open(content, tmp_path):
    path = tmp_path / "bad.tif"
    if content is not None:
        path.write_bytes(content)
    result = dn_resnet(path, "--output", tmp_path / "c.png", module="dn_core.demo")
    assert result.returncode == 1
    assert "bad.tif" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "c.png").exists()
